"""The driver: feeds workers that are Ray actors, and survives their deaths.

The driver owns all retries: an actor gets a task only after it has answered a ping, at most two at a time; when it
dies only the oldest task in flight is blamed, and a task that crashed its worker too often is taken apart and its
pieces run alone, so that one poisonous image fails its own rows and no others.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stylize_batch.engine.base import Patience, StyleRequest
from stylize_batch.engine.cluster import join
from stylize_batch.engine.guardian import guarded, release
from stylize_batch.engine.ray_actor import Ref, WorkerActor
from stylize_batch.engine.ray_tasks import ShardTask, StyleTask, Task
from stylize_batch.errors import DeviceError, JobFailedError, SystemicError, UsageError
from stylize_batch.settings import Device, ShardReport, WorkerSettings
from stylize_batch.storage import TEMPORARY, Root
from stylize_batch.styles import StyleBank, StyleBatch

MAX_CRASHES = 2
"""Workers a task may crash; after one more its pieces run alone."""

MAX_CRASHES_IN_A_ROW = 60
"""Workers that may die without one task finished in between: then it is no longer single images that are to blame."""

MAX_LOST_STARTS = 3
"""Times an actor may start and die before it can take work."""

DEPTH = 2
"""Tasks an actor has in flight, so that it never waits for the driver."""

PING_SECONDS = 1.0
NOTICE_SECONDS = 60.0
CORES_PER_ACTOR = 4
OBJECT_STORE_BYTES = 256 * 2**20

_log = logging.getLogger(__name__)


class Slot:
    """The driver's view of one actor: whether it answers, and what it has in flight, oldest first.

    A process that is placed or restarted first answers `alive`, then the `ping` that loads the network, and only then
    gets work. While it waits for a place, it owes no answer.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.in_flight: deque[tuple[Ref, Task]] = deque()
        self.question: Ref | None = actor.alive.remote()
        self.next_question = 0.0
        self.alive = False
        self.ready = False
        self.rows = 0
        self.lost_starts = 0

    def lose(self) -> None:
        """Take note that the process is gone; Ray restarts it, and it is fed again once it answers."""
        self.alive = self.ready = False
        self.rows = 0
        if self.question is None:
            self.next_question = time.monotonic() + PING_SECONDS

    def ask(self, model: Ref) -> None:
        """Put the next question, if it is time for one."""
        if self.question is None and time.monotonic() >= self.next_question:
            actor = self.actor
            self.question = actor.ping.remote([model]) if self.alive else actor.alive.remote()

    def hear(self) -> None:
        """Hear the answer to the last question, if there is one.

        Raises:
            JobFailedError: the process has started several times and never got as far as to take work.
        """
        if self.question is None or not ray.wait([self.question], timeout=0)[0]:
            return
        question, self.question = self.question, None
        try:
            answer = ray.get(question)
        except RayError as error:
            if self.alive and not self.ready:
                self.lost_starts += 1
            if self.lost_starts >= MAX_LOST_STARTS:
                raise JobFailedError(f"workers do not start: {_reason(error)}") from None
            self.lose()
            return
        if self.alive:
            self.ready = True
            self.lost_starts = 0
            self.rows = cast("int", answer)
            self.next_question = time.monotonic() + PING_SECONDS
        else:
            self.alive = True


class RayEngine:
    """Feeds actors on a cluster, or on a Ray of its own on this machine."""

    def __init__(self, address: str | None, actors: int | None, styles: int) -> None:
        """Connect.

        Args:
            address: of a cluster (`auto`, `host:port`, `ray://…`); None starts Ray here.
            actors: how many; None chooses one per GPU, or one per four cores.
            styles: distinct styles, for the size of the object store.

        Raises:
            UsageError: there is no cluster at the address.
        """
        # No usage reports; GPUs stay visible to processes that were not given one.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        on_terminate = signal.getsignal(signal.SIGTERM)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        self._guardian = None
        try:
            if address is None:
                store = OBJECT_STORE_BYTES + styles * 2 * 8192
                # `local`, because a plain init would join whatever cluster an old address file names.
                with guarded() as self._guardian:
                    ray.init("local", include_dashboard=False, object_store_memory=store, **quiet)
            else:
                join(address)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"cannot start Ray on this machine: {reason}") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # ray.init replaces it by one that prints a stack
        self._resources = cast("dict[str, float]", ray.cluster_resources())
        self._address = address
        self._actors = actors
        self._slots: list[Slot] = []
        self._options: dict[str, Any] = {}
        self._model: Ref = None
        self._settings: WorkerSettings = cast("WorkerSettings", None)

    @property
    def device(self) -> Device:
        """CUDA if the cluster has GPUs."""
        return "cuda" if self._resources.get("GPU", 0) > 0 else "cpu"

    def start(self, settings: WorkerSettings, model: bytes) -> None:
        """Create all actors at once: those that find no room yet make an autoscaler add nodes.

        Raises:
            UsageError: a GPU is demanded and the cluster has none, or a node does not see a local output root.
        """
        gpus, cpus = self._resources.get("GPU", 0.0), self._resources.get("CPU", 1.0)
        if settings.device == "cuda":
            autoscaling = self._address is not None and self._actors is not None
            if not gpus and not autoscaling:
                raise UsageError(
                    "--device cuda: the cluster has no GPU; use --device cpu, or --actors N if it adds GPU nodes"
                )
            count = self._actors or int(gpus)
            self._options = {"num_gpus": min(1.0, gpus / count) if gpus else 1.0, "num_cpus": 0}
        else:
            count = self._actors or max(1, int(cpus // CORES_PER_ACTOR))
            smallest = min((size for node in _nodes() if (size := node["Resources"].get("CPU"))), default=1.0)
            cores = max(1, int(min(cpus // count, smallest)))
            self._options = {"num_cpus": cores if count <= cpus else cpus / count, "num_gpus": 0}
            settings = replace(settings, threads=cores)
        self._actors = count
        self._settings = settings
        self._check_shared_root(settings)
        self._model = ray.put(model)
        self._fill_slots()

    def encode_styles(self, requests: list[StyleRequest]) -> Iterator[StyleBatch]:
        """Yield the encoded styles of each request."""
        return self._dispatch([StyleTask(request) for request in requests])

    def run_shards(self, shards: list[int], bank: StyleBank) -> Iterator[ShardReport]:
        """Stylize and commit the shards."""
        reference = ray.put(bank)  # kept alive here; read without a copy by every actor of a node
        yield from self._dispatch([ShardTask(shard, reference) for shard in shards])

    def rows_in_hand(self) -> int:
        """Return the rows finished in shards that are not, as of the last pings."""
        return sum(slot.rows for slot in self._slots)

    def close(self) -> None:
        """Leave the cluster, or stop the Ray that was started here; actors end with their driver."""
        ray.shutdown()
        if self._guardian is not None:
            release(self._guardian)

    def _run_alone(self, function: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run `function(settings, model, *piece)` for each piece in a process that may die; None where it did.

        All start together; those that did not come through are tried again one at a time, so that none is taken for
        deadly because a neighbour used up the memory or a node was lost.

        Raises:
            JobFailedError: trouble that is no piece's fault.
        """
        options = dict(self._options, max_retries=0, max_calls=1)
        task: Any = cast("Any", ray.remote)(**options)(function)

        def start(piece: tuple[Any, ...]) -> Ref:
            return task.remote(self._settings, self._model, *piece)

        def wait(ref: Ref) -> Any:
            try:
                return ray.get(ref)
            except RayTaskError as error:
                raise JobFailedError(_reason(error)) from None
            except (WorkerCrashedError, OutOfMemoryError):
                return None
            except RayError as error:
                return error

        found = [wait(ref) for ref in [start(piece) for piece in pieces]]
        for index, piece in enumerate(pieces):
            for _ in range(MAX_CRASHES + 1):
                if found[index] is not None and not isinstance(found[index], RayError):
                    break
                found[index] = wait(start(piece))
                if found[index] is None:
                    break
            if isinstance(found[index], RayError):
                raise JobFailedError(_reason(found[index]))
        return found

    def _fill_slots(self) -> None:
        """Create the actors that are missing."""
        options = dict(self._options, max_concurrency=1, max_restarts=-1, max_task_retries=0)
        actor: Any = cast("Any", ray.remote)(concurrency_groups={"control": 1}, **options)(WorkerActor)
        while len(self._slots) < (self._actors or 1):
            self._slots.append(Slot(actor.remote(self._settings)))

    def _dispatch(self, tasks: Sequence[Task]) -> Iterator[Any]:
        patience = Patience()
        queue = deque(tasks)
        crashes: dict[int, int] = {}
        outcast: list[Task] = []
        unfinished = len(queue)
        crashes_in_a_row = 0
        next_notice = time.monotonic() + NOTICE_SECONDS
        self._fill_slots()

        def blame(task: Task) -> None:
            nonlocal crashes_in_a_row
            crashes_in_a_row += 1
            if crashes_in_a_row > max(MAX_CRASHES_IN_A_ROW, 6 * len(self._slots)):
                raise JobFailedError(f"{crashes_in_a_row} workers died and no task was finished in between")
            crashes[id(task)] = crashes.get(id(task), 0) + 1
            if crashes[id(task)] > MAX_CRASHES:
                outcast.append(task)
            else:
                queue.append(task)  # to the end: what is sound goes first

        while unfinished > len(outcast):
            for slot in self._slots:
                while slot.ready and queue and len(slot.in_flight) < DEPTH:
                    task = queue.popleft()
                    slot.in_flight.append((task.submit(slot.actor), task))
            self._wait()
            for slot in self._slots:
                slot.hear()
                slot.ask(self._model)
                for result in self._settle(slot, queue, blame, patience):
                    unfinished -= 1
                    crashes_in_a_row = 0
                    yield result
            if any(slot.ready for slot in self._slots):
                next_notice = time.monotonic() + NOTICE_SECONDS
            elif time.monotonic() > next_notice:
                _log.warning("no worker is ready; waiting for room for %s on the cluster", self._options)
                next_notice = time.monotonic() + NOTICE_SECONDS
        if outcast:
            # The actors give way, so that the pieces get the same resources and so the same pixels.
            for slot in self._slots:
                ray.kill(slot.actor)
            self._slots.clear()
            for task in outcast:
                yield task.alone(self._settings, self._run_alone)

    def _wait(self) -> None:
        refs = [ref for slot in self._slots for ref, _ in slot.in_flight]
        refs += [slot.question for slot in self._slots if slot.question is not None]
        if refs:
            ray.wait(refs, num_returns=1, timeout=PING_SECONDS)
        else:
            time.sleep(PING_SECONDS / 10)

    def _settle(
        self, slot: Slot, queue: deque[Task], blame: Callable[[Task], None], patience: Patience
    ) -> Iterator[Any]:
        """Yield what an actor has finished; put back what it has lost, blaming the oldest task alone."""
        while slot.in_flight:
            ref, task = slot.in_flight[0]
            if not ray.wait([ref], timeout=0)[0]:
                return
            slot.in_flight.popleft()
            try:
                result = ray.get(ref)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, DeviceError):
                    ray.kill(slot.actor, no_restart=False)
                    self._requeue(slot, queue)
                    blame(task)
                elif isinstance(cause, SystemicError):
                    patience.trouble(cause)
                    queue.append(task)
                else:
                    patience.trouble(SystemicError(_reason(error)))
                    queue.append(task)
            except RayError:
                self._requeue(slot, queue)
                blame(task)
            else:
                patience.reset()
                slot.rows = 0
                yield result

    def _requeue(self, slot: Slot, queue: deque[Task]) -> None:
        """Put back, uncounted, what a lost actor had not begun."""
        queue.extendleft(task for _, task in reversed(slot.in_flight))
        slot.in_flight.clear()
        slot.lose()

    def _check_shared_root(self, settings: WorkerSettings) -> None:
        """Refuse a local output root that some node does not share with this one."""
        root = Root(settings.root, settings.run)
        nodes = _nodes()
        if not root.local or len(nodes) < 2:
            return
        nonce = uuid.uuid4().hex
        root.put(f"{TEMPORARY}/{settings.run}/nonce", nonce.encode())
        echo: Any = ray.remote(_echo)
        for node in nodes:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            key = f"{TEMPORARY}/{settings.run}/nonce-{node['NodeID']}"
            try:
                ray.get(
                    echo.options(num_cpus=0, scheduling_strategy=strategy).remote(settings, key), timeout=120
                )
                seen = root.read(key).decode() == nonce
            except (RayError, OSError):
                seen = False
            # A node that was lost meanwhile has nothing to share; one that takes its place is found at the end.
            if not seen and any(other["NodeID"] == node["NodeID"] for other in _nodes()):
                raise UsageError(
                    f"node {node.get('NodeManagerAddress')} does not share {root.uri}; "
                    "with several nodes use object storage or a shared file system for --output"
                )


def _echo(settings: WorkerSettings, key: str) -> None:
    root = Root(settings.root, settings.run)
    root.put(key, root.read(f"{TEMPORARY}/{settings.run}/nonce"))


def _nodes() -> list[dict[str, Any]]:
    return [node for node in cast("list[dict[str, Any]]", ray.nodes()) if node["Alive"]]


def _reason(error: RayError) -> str:
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
