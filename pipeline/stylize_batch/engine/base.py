"""What an engine offers a job, and the rule both engines share for trouble that is no row's fault."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from stylize_batch.errors import JobFailedError, SystemicError
from stylize_batch.settings import Device, ShardReport, WorkerSettings
from stylize_batch.styles import StyleBank, StyleBatch

MAX_SYSTEMIC = 3
"""Tasks in a row for each worker, without one finished in between, that systemic trouble may stop before the job
ends; and times it may stop one task while others are finished."""


class StyleRequest(NamedTuple):
    """Some styles to encode unless they are unchanged since the version the bank has."""

    uris: list[str]
    versions: dict[str, str]


class Engine(Protocol):
    """Runs workers. `start` once, then the phases in order, then `close`."""

    @property
    def device(self) -> Device:
        """Where the network runs when the job says auto."""
        ...

    @property
    def dropped(self) -> dict[str, str]:
        """The nodes that were given no more work, and why."""
        ...

    def start(self, settings: Sequence[WorkerSettings], model: bytes) -> None:
        """Create the workers; settings are those of each device they run on."""
        ...

    def encode_styles(self, requests: list[StyleRequest]) -> Iterator[StyleBatch]:
        """Yield the encoded styles of each request, in any order.

        Raises:
            JobFailedError: systemic trouble stayed.
        """
        ...

    def run_shards(self, shards: list[int], bank: StyleBank) -> Iterator[ShardReport]:
        """Stylize and commit the shards; yield each one's report, in any order.

        Raises:
            JobFailedError: systemic trouble stayed.
        """
        ...

    def rows_in_hand(self) -> int:
        """Return the rows finished in shards that are not."""
        ...

    def close(self) -> None:
        """End the workers; unfinished shards are dropped."""
        ...


class Patience:
    """Counts systemic trouble: in a row, where it is the storage's, and by task, where it may be the task's own."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._finished = 0
        self._met: defaultdict[object, list[int]] = defaultdict(list)

    def reset(self) -> None:
        """Take note that what made trouble is gone."""
        self._in_a_row = 0

    def finished(self) -> None:
        """Take note of a finished task."""
        self._in_a_row = 0
        self._finished += 1

    def trouble(self, error: SystemicError, task: object, workers: int = 1) -> bool:
        """Take note of trouble that one of so many workers met with a task; return whether that is to blame: it meets
        trouble each time, and others were finished meanwhile.

        Raises:
            JobFailedError: it was once too often.
        """
        met = self._met[task]
        met.append(self._finished)
        if met[0] < self._finished:  # or several such tasks, the last that are left, would end the job
            return len(met) >= MAX_SYSTEMIC
        self._in_a_row += 1
        if self._in_a_row >= MAX_SYSTEMIC * max(1, workers):
            raise JobFailedError(str(error))
        return False
