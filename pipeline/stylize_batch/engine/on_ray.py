"""Workers that are Ray actors, on a cluster or on a Ray of this run's own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from stylize_batch.engine.base import StyleRequest
from stylize_batch.engine.cluster import join, living_nodes
from stylize_batch.engine.crew import Crew, Pool, reason_of
from stylize_batch.engine.dispatch import MAX_CRASHES, Dispatch
from stylize_batch.engine.guardian import guarded, release
from stylize_batch.engine.metrics import DriverMetrics
from stylize_batch.engine.placement import place
from stylize_batch.engine.probe import Probed, check_nodes
from stylize_batch.engine.ray_actor import Ref
from stylize_batch.engine.ray_tasks import ShardTask, StyleTask, Task
from stylize_batch.errors import DeviceError, JobFailedError, SystemicError, UsageError
from stylize_batch.settings import Device, ShardReport, WorkerSettings
from stylize_batch.styles import StyleBank, StyleBatch

OBJECT_STORE_BYTES = 256 * 2**20


def object_store_bytes(bank_bytes: int) -> int:
    """Return the size of an object store that holds the styles as they were encoded, and then the bank of them."""
    return OBJECT_STORE_BYTES + 2 * bank_bytes


class RayEngine:
    """Feeds actors on a cluster, or on a Ray of its own on this machine."""

    def __init__(
        self,
        address: str | None,
        actors: int | Mapping[Device, int] | None,
        gpus_per_actor: float | None,
        bank_bytes: int,
        shards: int,
    ) -> None:
        """Connect.

        Args:
            address: of a cluster (`auto`, `host:port`, `ray://…`); None starts Ray here.
            actors: how many at most, on each device; None chooses one per GPU (or share of one), or one per four cores.
            gpus_per_actor: the share of a GPU that one actor takes; None chooses.
            bank_bytes: of all encoded styles, for the size of the object store.
            shards: that are left to do.

        Raises:
            UsageError: there is no cluster at the address, or one of other versions.
        """
        # No usage reports; GPUs stay visible to processes that were not given one.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        on_terminate = signal.getsignal(signal.SIGTERM)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        self._guardian = None
        try:
            if address is not None:
                join(address)
            else:
                store = object_store_bytes(bank_bytes)
                try:
                    # `local`, because a plain init would join whatever cluster an old address file names.
                    with guarded() as self._guardian:
                        ray.init("local", include_dashboard=False, object_store_memory=store, **quiet)
                except Exception as error:  # bare ones, such as when its processes do not come up in time
                    raise UsageError(f"cannot start Ray on this machine: {error}") from None
        except SystemExit:  # SIGTERM, for which ray.init puts handlers of its own in the place of ours
            raise KeyboardInterrupt from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)
        self._own = address is None
        self._actors = actors
        self._gpus_per_actor = gpus_per_actor
        self._shards = shards
        # References are kept in lists that `close` can empty, whoever else still holds these: one that outlived its Ray
        # would take the object of the same number from the next one in this process.
        self._model: list[Ref] = []
        self._bank: list[Ref] = []
        self._crew: Crew | None = None

    @property
    def device(self) -> Device:
        """CUDA if the cluster has GPUs."""
        return "cuda" if cast("dict[str, float]", ray.cluster_resources()).get("GPU", 0) > 0 else "cpu"

    @property
    def dropped(self) -> dict[str, str]:
        """The nodes that were given no more work, and why."""
        return self._crew.dropped if self._crew else {}

    def start(self, settings: Sequence[WorkerSettings], model: bytes) -> None:
        """Look at the nodes, then create all actors.

        Raises:
            UsageError: a GPU is demanded and the cluster has none, a node cannot take part, or none answers.
        """
        resources = [node["Resources"] for node in living_nodes().values()]
        actors = self._actors
        wanted: dict[Device, int | None] = {
            each.device: actors[each.device] if isinstance(actors, Mapping) else actors for each in settings
        }
        placements = place(
            resources, wanted, own=self._own, shards=self._shards, gpus_per_actor=self._gpus_per_actor
        )
        silent, sound = Probed({}, None) if self._own else check_nodes(settings)
        self._model.append(ray.put(model))
        pools = [Pool(each, placements[each.device]) for each in settings]
        self._crew = Crew(pools, self._model, silent, sound)

    def encode_styles(self, requests: list[StyleRequest]) -> Iterator[StyleBatch]:
        """Yield the encoded styles of each request."""
        return self._dispatch([StyleTask(request) for request in requests])

    def run_shards(self, shards: list[int], bank: StyleBank) -> Iterator[ShardReport]:
        """Stylize and commit the shards."""
        self._bank.append(ray.put(bank))  # read without a copy by every actor of a node
        del bank  # of up to gigabytes, one copy is enough
        yield from self._dispatch([ShardTask(shard, self._bank) for shard in shards])

    def rows_in_hand(self) -> int:
        """Return the rows finished in shards that are not, as of the last pings."""
        rows: dict[Task, int] = {}  # of a shard that two are at, the one that is further counts
        for slot in self._crew.slots if self._crew else []:
            if slot.task is not None:
                rows[slot.task] = max(rows.get(slot.task, 0), slot.rows)
        return sum(rows.values())

    def close(self) -> None:
        """Leave the cluster, or stop the Ray that was started here; actors end with their driver."""
        self._model.clear()
        self._bank.clear()
        if self._crew is not None:
            self._crew.let_go()
        ray.shutdown()
        if self._guardian is not None:
            release(self._guardian)

    def _dispatch(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield the results of tasks: what actors do, and then what is taken apart."""
        crew = self._crew
        assert crew, "start() comes first"
        crew.fill()
        dispatch = Dispatch(crew, tasks, DriverMetrics(crew.pools[0].settings))
        yield from dispatch.run()
        if dispatch.outcast:
            # The actors give way, so that the pieces get the same resources and so the same pixels.
            crew.dismiss()
            for task, pool in dispatch.outcast.items():
                try:
                    yield task.alone(pool.settings, partial(self._run_alone, pool, dispatch.worked))
                except SystemicError as error:
                    raise JobFailedError(str(error)) from None

    def _run_alone(
        self, pool: Pool, worked: bool, function: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Run `function(settings, model, *piece)` for each piece in a process that may die, with what a pool's actors
        have; None where it did.

        All start together; those that did not come through are tried again one at a time, so that none is taken for
        deadly because a neighbour used up the memory or a node was lost.

        Raises:
            JobFailedError: trouble that is no piece's fault.
        """
        task: Any = cast("Any", ray.remote)(**pool.options, max_retries=0, max_calls=1)(function)

        def start(piece: tuple[Any, ...]) -> Ref:
            return task.remote(pool.settings, self._model[0], *piece)

        def wait(ref: Ref) -> Any:
            try:
                return ray.get(ref)
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
        worked = worked or any(result is not None and not isinstance(result, RayError) for result in found)
        for index, result in enumerate(found):
            if isinstance(result, RayError):
                # A device that did its work for others was not what failed.
                of_device = isinstance(result, RayTaskError) and isinstance(result.cause, DeviceError)
                if not (worked and of_device):
                    raise JobFailedError(reason_of(result))
                found[index] = None
        return found
