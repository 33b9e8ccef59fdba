"""What runs in processes that Ray starts: a worker as an actor, and single pieces of work on their own."""

from __future__ import annotations

import faulthandler
import logging
import math
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pyarrow as pa
import ray

from stylize_batch.engine.access import check_newcomer
from stylize_batch.engine.base import StyleRequest
from stylize_batch.engine.log import keep_log, tell
from stylize_batch.engine.metrics import WorkMetrics
from stylize_batch.errors import HandedBackError
from stylize_batch.manifest.shards import Shard
from stylize_batch.results import Outcome
from stylize_batch.settings import ShardReport, WorkerSettings
from stylize_batch.styles import StyleBank, StyleBatch

if TYPE_CHECKING:
    from stylize_batch.worker import Worker

GRACE_SECONDS = 8.0
"""How long a worker that is told to go may still work; `docker stop` waits 10 s, Kubernetes 30 s."""

MARGIN_SECONDS = 5.0
"""How long before its node is taken away a worker hands back what it has not finished."""

HANGING_ALONE_SECONDS = 3600.0
"""How long a process that works on its own may go without finishing a picture: even the largest one takes two cores less.
It counts for itself, since a driver cannot tell a process that hangs from one that waits for room."""

Ref = Any
"""A Ray object reference. In a list, it reaches an actor as a reference, to be fetched once."""


class Place(NamedTuple):
    """Where a process runs: the node's address and Ray's identity of it."""

    address: str
    node: str

    def __str__(self) -> str:
        return f"node {self.address} ({self.node[:8]})"


class Pulse(NamedTuple):
    """Rows finished in the shard in hand, and whether the worker has to go."""

    rows: int
    leaving: bool


class WorkerActor:
    """A `Worker` in a process of its own.

    The first ping makes the worker, and so does the first after Ray has restarted the process; the driver sends
    work only to actors that have answered one. Pings are answered beside the work.

    A process that gets SIGTERM, and one whose node is about to be taken away (Ray calls it draining), finishes the
    shard in hand if there is time and hands it back if there is not.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._worker: Worker | None = None
        self._bank: tuple[str, StyleBank] | None = None
        self._leave_by = math.inf
        keep_log()
        self._witness = Witness(settings)
        signal.signal(signal.SIGTERM, lambda number, frame: self._leave(GRACE_SECONDS))

    @ray.method(concurrency_group="control")
    def alive(self) -> Place:
        """Answer as soon as the process runs, before it has loaded anything."""
        return Place(ray.util.get_node_ip_address(), _node())

    @ray.method(concurrency_group="control")
    def ping(self, model: list[Ref], newcomer: bool) -> Pulse:
        """Answer once the worker is ready.

        Args:
            model: a reference to the bytes of the model file.
            newcomer: whether nobody has looked yet at what this node can read.

        Raises:
            SystemicError: it cannot read what others can.
            DeviceError: torch cannot use its device.
        """
        if self._worker is None:
            if newcomer:
                check_newcomer(self._settings)
            from stylize_batch.worker import Worker  # brings torch, which the driver does without

            worker = Worker(self._settings, ray.get(model[0]), self._witness)
            worker.leave_by = self._leave_by
            self._worker = worker
        if math.isinf(self._leave_by) and (seconds := _seconds_to_leave()) is not None:
            self._leave(seconds)
        return Pulse(self._worker.rows_done, math.isfinite(self._leave_by))

    def encode_styles(self, request: StyleRequest) -> StyleBatch:
        """See `Worker.encode_styles`."""
        return self._willing().encode_styles(request.uris, request.versions)

    def run_shard(self, shard: int, bank: list[Ref]) -> ShardReport:
        """See `Worker.run_shard`."""
        worker = self._willing()
        key = bank[0].hex()
        if self._bank is None or self._bank[0] != key:
            self._bank = (key, ray.get(bank[0]))
        self._witness.begun(shard)
        try:
            report = worker.run_shard(shard, self._bank[1])
        except Exception as error:
            tell(
                "shard given up", level=logging.WARNING, shard=shard, error=f"{type(error).__name__}: {error}"
            )
            raise
        self._witness.finished(report)
        return report

    def _willing(self) -> Worker:
        """Return the worker, unless it has to go: then nothing new is begun."""
        assert self._worker, "it has answered a ping"
        if math.isfinite(self._leave_by):
            raise HandedBackError("this worker has to go")
        return self._worker

    def _leave(self, seconds: float) -> None:
        self._leave_by = time.monotonic() + seconds
        if self._worker is not None:
            self._worker.leave_by = self._leave_by


class Witness:
    """Hears what becomes of pairs and shards, and passes it on to Ray's metrics and to the log."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._metrics = WorkMetrics(settings)
        self._shard = -1

    def begun(self, shard: int, **fields: Any) -> None:
        """Take note of the shard that the next pairs are of: should the process die, this line names it."""
        self._shard = shard
        tell("shard begun", shard=shard, **fields)

    def __call__(self, pair: str, outcome: Outcome) -> None:
        """Take note of a finished pair."""
        self._metrics.pair(outcome)
        if outcome.error is not None:
            tell("row failed", level=logging.WARNING, shard=self._shard, pair=pair, error=outcome.error)

    def finished(self, report: ShardReport) -> None:
        """Take note of a finished shard."""
        self._metrics.shard(report)
        tell("shard finished", shard=report.shard, ok=report.totals.ok, failed=report.totals.failed)


def encode_styles_alone(settings: WorkerSettings, model: bytes, request: StyleRequest) -> StyleBatch:
    """Encode styles in a process of their own, which ends if it hangs."""
    from stylize_batch.worker import Worker

    _end_if_hanging()
    return Worker(settings, model).encode_styles(request.uris, request.versions, alone=True)


def stylize_alone(
    settings: WorkerSettings, model: bytes, shard: Shard, plan: pa.Table, bank: list[Ref]
) -> pa.Table:
    """Stylize some rows of a shard in a process of their own, which ends if it hangs; the results are left to the driver
    to commit."""
    from stylize_batch.worker import Worker

    keep_log()
    witness = Witness(settings)
    witness.begun(shard.number, pairs=plan["pair_id"].to_pylist())

    def heard(pair: str, outcome: Outcome) -> None:
        _end_if_hanging()
        witness(pair, outcome)

    _end_if_hanging()
    return Worker(settings, model, heard).stylize(shard, plan, ray.get(bank[0]), alone=True)


def _end_if_hanging() -> None:
    """Have this process end, and tell its log what all threads are at, unless this is called again in time."""
    faulthandler.dump_traceback_later(HANGING_ALONE_SECONDS, exit=True)


def _node() -> str:
    return ray.get_runtime_context().get_node_id()


def _seconds_to_leave() -> float | None:
    """Return how long this process may still work if Ray is draining its node, as it does when Kubernetes ends a pod;
    None if it is not. On AWS Ray does not look out for the notice that a spot machine is about to be taken away."""
    # Nothing public tells; Ray Train asks the same.
    draining = cast("dict[str, int]", cast("Any", ray)._private.state.state.get_draining_nodes())
    deadline = draining.get(_node())
    if deadline is None:
        return None
    return deadline / 1000 - time.time() - MARGIN_SECONDS if deadline else GRACE_SECONDS
