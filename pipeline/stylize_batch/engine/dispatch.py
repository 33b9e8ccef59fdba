"""One phase of a run: every task is done by some actor, whatever becomes of actors and nodes.

The driver owns all retries: an actor gets a task only after it has answered a ping, at most two at a time; when it
dies only the oldest task in flight is blamed. A task that crashed its worker too often is an outcast, to be taken
apart, and so is one that meets trouble each time while others are finished: an image that storage never gives.

Actors of different speeds share the work by taking a task whenever they have finished one. At the end idle ones take
over what slower ones have not begun, and do once more what one has been at for too long (the backup tasks of Dean and
Ghemawat, MapReduce, OSDI 2004, section 3.6): a slow worker does not hold up the end, nor does one that hangs. What has
crashed too many is not done once more: who is still at it may be the one to finish it, until it hangs.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from stylize_batch.engine.base import Patience
from stylize_batch.engine.cluster import living_nodes
from stylize_batch.engine.crew import Crew, Pool, Slot, reason_of
from stylize_batch.engine.health import MAX_LOST, Health
from stylize_batch.engine.metrics import DriverMetrics
from stylize_batch.engine.ray_actor import Ref
from stylize_batch.engine.ray_tasks import Task
from stylize_batch.errors import DeviceError, HandedBackError, JobFailedError, SystemicError

MAX_CRASHES = 2
"""Workers a task may crash; after one more its pieces run alone."""

MAX_CRASHES_IN_A_ROW = 60
"""Workers that may die without one task finished in between: then it is no longer single images that are to blame."""

MAX_LOST_STARTS = 3
"""Times an actor may start and die before it can take work."""

DEPTH = 2
"""Tasks an actor has in flight, so that it never waits for the driver."""

STRAGGLING = 3.0
STRAGGLING_SECONDS = 5.0
"""A task is done once more by an idle actor when it has taken so many times what that one takes for one, and so long."""

HANGING_SECONDS = 600.0
"""The same where no actor has finished any yet; and how long one may be at a task that has crashed too many others."""

NOTICE_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Dispatch:
    """Hands tasks to actors, and takes back what they lose.

    Attributes:
        outcast: tasks that have crashed too many workers, or alone meet trouble each time, and the pool of the last.
    """

    def __init__(self, crew: Crew, tasks: Sequence[Task], metrics: DriverMetrics) -> None:
        self._crew = crew
        self._queue = deque(tasks)
        self._unfinished = len(tasks)
        self._metrics = metrics
        self._patience = Patience()
        self._health = Health()
        self._crashes: Counter[Task] = Counter()
        self._crashes_in_a_row = 0
        self._next_notice = dict.fromkeys(crew.pools, time.monotonic() + NOTICE_SECONDS)
        self._finished: Counter[Slot] = Counter()
        self._seconds: defaultdict[Slot, float] = defaultdict(float)
        self.outcast: dict[Task, Pool] = {}

    def run(self) -> Iterator[Any]:
        """Yield the results as they come, until only outcasts are left.

        Raises:
            JobFailedError: trouble that is no task's fault stayed.
        """
        while self._unfinished > len(self.outcast):
            self._feed()
            self._share()
            self._metrics.queue(len(self._queue))
            answered = self._crew.wait()
            for slot in list(self._crew.slots):
                if slot not in self._crew.slots:  # let go with its node, for what another there said
                    continue
                self._hear(slot, answered)
                for result in self._settle(slot, answered):
                    self._unfinished -= 1
                    yield result
            self._notice()

    @property
    def worked(self) -> bool:
        """Whether any task was finished by an actor."""
        return bool(self._finished)

    def _feed(self) -> None:
        """Fill actors up."""
        for slot in self._crew.slots:
            while self._queue and slot.takes_work and len(slot.in_flight) < DEPTH:
                slot.give(self._queue.popleft())

    def _share(self) -> None:
        """At the end, give actors that have nothing to do what others would finish later."""
        idle = [slot for slot in self._crew.slots if slot.takes_work and not slot.in_flight]
        if not idle:
            return
        mean_pace = self._mean_pace()
        self._give_up_hanging(mean_pace)
        # Looked up once, not for each idle actor, of which there may be a thousand.
        busy = sorted((slot for slot in self._crew.slots if slot.in_flight), key=lambda slot: -slot.elapsed)
        holders = sorted((slot for slot in busy if len(slot.in_flight) > 1), key=self._seconds_left)
        at_work: defaultdict[Task, list[Slot]] = defaultdict(list)
        for slot in busy:
            for _, task in slot.in_flight:
                at_work[task].append(slot)
        repeatable = [slot for slot in busy if not self._deadly(slot.task)]
        for slot in idle:
            pace = self._pace(slot)
            if holders and self._seconds_left(holders[-1]) >= (pace or 0):
                last = holders.pop()
                task = last.take_back()
                at_work[task].remove(last)
            else:
                task = _straggling(slot, pace or mean_pace, repeatable, at_work)
            if task is not None:
                slot.give(task)
                at_work[task].append(slot)

    def _give_up_hanging(self, mean_pace: float | None) -> None:
        """Put aside what has crashed too many workers, where it hangs all that are still at it."""
        late = max(HANGING_SECONDS, STRAGGLING * (mean_pace or 0))
        for task in filter(self._deadly, self._crashes):
            at_work = self._at_work(task)
            if at_work and all(slot.task is task and slot.elapsed > late for slot in at_work):
                self._end_all_at(task)
                self.outcast[task] = at_work[0].pool

    def _mean_pace(self) -> float | None:
        """Return the seconds that actors take for a task on average; None before one is finished."""
        finished = sum(self._finished.values())
        return sum(self._seconds.values()) / finished if finished else None

    def _pace(self, slot: Slot) -> float | None:
        """Return the seconds an actor takes for a task; None before it has finished one."""
        return self._seconds[slot] / self._finished[slot] if self._finished[slot] else None

    def _seconds_left(self, slot: Slot) -> float:
        """Return the seconds an actor will need for the task it works on and another one."""
        pace = self._pace(slot) or slot.elapsed
        return max(pace - slot.elapsed, 0) + pace

    def _at_work(self, task: Task | None) -> list[Slot]:
        """Return the actors that have a task in flight."""
        return [slot for slot in self._crew.slots if any(each is task for _, each in slot.in_flight)]

    def _end_all_at(self, task: Task) -> None:
        """Have new processes in place of those that are at a task, and put back what else these have lost."""
        for slot in self._at_work(task):
            self._requeue([each for each in slot.restart() if each is not task])

    def _deadly(self, task: Task | None) -> bool:
        """Whether a task has crashed too many workers."""
        return task is not None and self._crashes[task] > MAX_CRASHES

    def _hear(self, slot: Slot, answered: set[Ref]) -> None:
        reason = slot.hear(answered)
        if reason is not None and slot.lost_starts >= MAX_LOST_STARTS:
            reason = f"workers do not start: {reason}"
            # What was never constructed has no node to drop; while others work, or start again, it is tried again.
            tolerated = self._drop(slot.node, reason) if slot.node else self._crew.usable_without("")
            if not tolerated and not any(map(self._restarting, self._crew.slots)):
                raise JobFailedError(reason)

    def _restarting(self, slot: Slot) -> bool:
        """Whether an actor that has done tasks takes none at the moment, and may again."""
        return bool(self._finished[slot]) and not slot.takes_work and slot.lost_starts < MAX_LOST_STARTS

    def _settle(self, slot: Slot, answered: set[Ref]) -> Iterator[Any]:
        """Yield what an actor has finished; put back what it has lost, blaming the oldest task alone."""
        while slot.in_flight:
            ref, task = slot.in_flight[0]
            if ref not in answered:
                break
            try:
                result = ray.get(ref)
            except RayTaskError as error:
                if isinstance(error.cause, HandedBackError):
                    self._requeue(slot.restart())
                elif isinstance(error.cause, DeviceError):
                    slot.in_flight.popleft()
                    self._requeue(slot.restart())
                    self._blame(slot, task, reason_of(error))
                else:
                    slot.finish()
                    self._trouble(slot, task, error)
            except RayError:
                self._died(slot, task)
            else:
                self._seconds[slot] += slot.finish()
                self._finished[slot] += 1
                self._end_all_at(task)
                self._health.finished(slot.node)
                self._patience.finished()
                self._crashes_in_a_row = 0
                yield result
        if slot.leaving and not slot.in_flight:
            slot.restart()

    def _died(self, slot: Slot, task: Task) -> None:
        """Take note that a process is gone. Nothing is to blame if it had to go, or its whole node did."""
        had_to_go = slot.leaving or slot.node not in living_nodes()
        tasks = slot.lose()
        if had_to_go:
            self._crashed()
            self._requeue(tasks)
        else:
            self._requeue(tasks[1:])
            self._blame(slot, task, "its process died")

    def _blame(self, slot: Slot, task: Task, reason: str) -> None:
        self._crashed()
        self._crashes[task] += 1
        if self._deadly(task) and not self._at_work(task):
            self.outcast[task] = slot.pool
        else:
            self._put_last(task)
        _log.warning("a worker on %s was lost while it did %s: %s", slot.place, task, reason)
        self._health.lost(slot.node, task)
        if self._health.sick(slot.node):
            self._drop(slot.node, f"it has lost {MAX_LOST} tasks in a row, at last because {reason}")

    def _crashed(self) -> None:
        self._crashes_in_a_row += 1
        if self._crashes_in_a_row > max(MAX_CRASHES_IN_A_ROW, 6 * len(self._crew.slots)):
            raise JobFailedError(f"{self._crashes_in_a_row} workers died and no task was finished in between")

    def _trouble(self, slot: Slot, task: Task, error: RayTaskError) -> None:
        cause = error.cause if isinstance(error.cause, SystemicError) else SystemicError(reason_of(error))
        self._health.lost(slot.node, object())  # each time anew: it says nothing about the task
        # Where no node is well, it is the storage that is not.
        others = any(other.takes_work and self._health.well(other.node) for other in self._crew.slots)
        if self._health.sick(slot.node) and others and self._drop(slot.node, str(cause)):
            self._patience.reset()
        else:
            own = self._patience.trouble(cause, task, sum(slot.ready for slot in self._crew.slots))
            if own and not self._at_work(task):
                self.outcast[task] = slot.pool
                return
        self._put_last(task)

    def _drop(self, node: str, reason: str) -> bool:
        """Give a node no more work, if there is another one that works; return whether."""
        if not self._crew.usable_without(node):
            return False
        self._requeue(self._crew.drop(node, reason))
        return True

    def _requeue(self, tasks: list[Task]) -> None:
        """Put tasks back to the front, uncounted."""
        missing = [task for task in dict.fromkeys(tasks) if not self._at_work(task)]
        self._queue.extendleft(reversed(missing))

    def _put_last(self, task: Task) -> None:
        """Put a task back to the end: what is sound goes first."""
        # It is in the queue if another actor of a node that was just given up had it, too.
        if not self._at_work(task) and task not in self._queue:
            self._queue.append(task)

    def _notice(self) -> None:
        """Say which workers find no room: after a minute, and once a minute while there are no others."""
        ready = {slot.pool for slot in self._crew.slots if slot.ready}
        now = time.monotonic()
        for pool in self._crew.pools:
            if pool in ready:
                self._next_notice[pool] = now + NOTICE_SECONDS
            elif now > self._next_notice[pool]:
                _log.warning(
                    "no %s worker is ready; waiting for room for %s on the cluster",
                    pool.settings.device,
                    pool.options,
                )
                self._next_notice[pool] = math.inf if ready else now + NOTICE_SECONDS


def _straggling(
    idle: Slot, pace: float | None, busy: Sequence[Slot], at_work: Mapping[Task, Sequence[Slot]]
) -> Task | None:
    """Return the task that has taken longest, if an idle actor would have finished it long ago.

    Where two are at one and both are late, a third must be on another node: what hangs there may be the node's.

    Args:
        idle: the actor.
        pace: the seconds it takes for a task; None where nobody knows.
        busy: the actors that have tasks which may be done once more, who has been at one longest first.
        at_work: the actors that have a task in flight.
    """
    late = HANGING_SECONDS if pace is None else max(STRAGGLING * pace, STRAGGLING_SECONDS)
    for slot in busy:
        if slot.elapsed <= late:
            break
        if slot.task is not None:
            others = at_work[slot.task]
            elsewhere = len(others) == 1 or all(idle.node != other.node for other in others)
            if elsewhere and all(other.elapsed > late for other in others):
                return slot.task
    return None
