"""One worker in this process: no Ray, easy to debug, and the only engine for `memory://`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from stylize_batch.engine.base import Patience, StyleRequest
from stylize_batch.errors import DeviceError, JobFailedError, SystemicError
from stylize_batch.model.device import usable_device
from stylize_batch.settings import Device, ShardReport, WorkerSettings
from stylize_batch.styles import StyleBank, StyleBatch
from stylize_batch.worker import Worker

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class InProcessEngine:
    """Runs the worker on the calling thread."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    @property
    def device(self) -> Device:
        """CUDA if this machine has it."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def dropped(self) -> dict[str, str]:
        """None: there is only this machine."""
        return {}

    def start(self, settings: Sequence[WorkerSettings], model: bytes) -> None:
        """Load the network, on the one device there is.

        Raises:
            UsageError: torch cannot use it.
        """
        (only,) = settings
        usable_device(only.device)
        self._worker = Worker(only, model)

    def encode_styles(self, requests: list[StyleRequest]) -> Iterator[StyleBatch]:
        """Yield the encoded styles of each request."""
        worker = self._started()
        return _each(
            requests,
            lambda request, alone: worker.encode_styles(request.uris, request.versions, alone=alone),
        )

    def run_shards(self, shards: list[int], bank: StyleBank) -> Iterator[ShardReport]:
        """Stylize and commit the shards, one after the other."""
        worker = self._started()
        return _each(shards, lambda shard, alone: worker.run_shard(shard, bank, alone=alone))

    def rows_in_hand(self) -> int:
        """Return the rows of the shard in hand that are finished."""
        return self._worker.rows_done if self._worker else 0

    def close(self) -> None:
        """Let the worker's threads go."""
        if self._worker:
            self._worker.close()

    def _started(self) -> Worker:
        assert self._worker, "start() comes first"
        return self._worker


def _each(tasks: Sequence[_Task], call: Callable[[_Task, bool], _Result]) -> Iterator[_Result]:
    patience = Patience()
    queue = deque((number, task, False) for number, task in enumerate(tasks))
    while queue:
        number, task, alone = queue.popleft()
        try:
            result = call(task, alone)
        except SystemicError as error:
            if alone:
                raise JobFailedError(str(error)) from None
            queue.append((number, task, patience.trouble(error, number)))
        except DeviceError as error:
            raise JobFailedError(f"the device failed: {error}; repeat the command to go on") from None
        else:
            patience.finished()
            yield result
