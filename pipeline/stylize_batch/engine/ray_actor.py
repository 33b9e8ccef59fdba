"""What runs in processes that Ray starts: a worker as an actor, and single pieces of work on their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from stylize_batch.engine.base import StyleRequest
from stylize_batch.manifest.plan import Shard
from stylize_batch.settings import ShardReport, WorkerSettings
from stylize_batch.styles import StyleBank, StyleBatch

if TYPE_CHECKING:
    from stylize_batch.worker import Worker

Ref = Any
"""A Ray object reference. In a list, it reaches an actor as a reference, to be fetched once."""


class WorkerActor:
    """A `Worker` in a process of its own.

    The first ping makes the worker, and so does the first after Ray has restarted the process; the driver sends
    work only to actors that have answered one. Pings are answered beside the work.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._worker: Worker | None = None
        self._bank: tuple[str, StyleBank] | None = None

    @ray.method(concurrency_group="control")
    def alive(self) -> None:
        """Answer as soon as the process runs, before it has loaded anything."""

    @ray.method(concurrency_group="control")
    def ping(self, model: list[Ref]) -> int:
        """Answer, once the worker is ready, with the rows done in the shard in hand."""
        if self._worker is None:
            from stylize_batch.worker import Worker  # brings torch, which the driver does without

            self._worker = Worker(self._settings, ray.get(model[0]))
        return self._worker.rows_done

    def encode_styles(self, request: StyleRequest) -> StyleBatch:
        """See `Worker.encode_styles`."""
        assert self._worker
        return self._worker.encode_styles(request.uris, request.versions)

    def run_shard(self, shard: int, bank: list[Ref]) -> ShardReport:
        """See `Worker.run_shard`."""
        assert self._worker
        key = bank[0].hex()
        if self._bank is None or self._bank[0] != key:
            self._bank = (key, ray.get(bank[0]))
        return self._worker.run_shard(shard, self._bank[1])


def encode_styles_alone(settings: WorkerSettings, model: bytes, request: StyleRequest) -> StyleBatch:
    """Encode styles in a process of their own."""
    from stylize_batch.worker import Worker

    return Worker(settings, model).encode_styles(request.uris, request.versions, alone=True)


def stylize_alone(
    settings: WorkerSettings, model: bytes, shard: Shard, plan: pa.Table, bank: StyleBank
) -> pa.Table:
    """Stylize some rows of a shard in a process of their own; the results are left to the driver to commit."""
    from stylize_batch.worker import Worker

    return Worker(settings, model).stylize(shard, plan, bank, alone=True)
