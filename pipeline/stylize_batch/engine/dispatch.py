"""One phase of a run: every task is done by some actor, whatever becomes of actors and nodes.

The driver owns all retries: an actor gets a task only after it has answered a ping, at most two at a time; when it
dies only the oldest task in flight is blamed, and a task that crashed its worker too often is an outcast, to be
taken apart.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from stylize_batch.engine.base import Patience
from stylize_batch.engine.crew import Crew, Slot, reason_of
from stylize_batch.engine.health import MAX_LOST, Health
from stylize_batch.engine.metrics import DriverMetrics
from stylize_batch.engine.probe import living_nodes
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

NOTICE_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Dispatch:
    """Hands tasks to actors, and takes back what they lose.

    Attributes:
        outcast: tasks that have crashed too many workers.
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
        self._next_notice = time.monotonic() + NOTICE_SECONDS
        self.outcast: list[Task] = []

    def run(self) -> Iterator[Any]:
        """Yield the results as they come, until only outcasts are left.

        Raises:
            JobFailedError: trouble that is no task's fault stayed.
        """
        while self._unfinished > len(self.outcast):
            self._feed()
            self._share()
            self._metrics.queue(len(self._queue))
            self._crew.wait()
            for slot in list(self._crew.slots):
                self._hear(slot)
                for result in self._settle(slot):
                    self._unfinished -= 1
                    yield result
            self._notice()

    def _feed(self) -> None:
        """Fill actors up."""
        for slot in self._crew.slots:
            while self._queue and slot.takes_work and len(slot.in_flight) < DEPTH:
                slot.give(self._queue.popleft())

    def _share(self) -> None:
        """At the end, let actors that have nothing to do take over what the slowest have not begun."""
        for slot in self._crew.slots:
            if slot.takes_work and not slot.in_flight:
                holders = [other for other in self._crew.slots if len(other.in_flight) > 1]
                if holders:
                    slowest = min(holders, key=lambda other: other.finished)
                    slot.give(slowest.take_back())

    def _hear(self, slot: Slot) -> None:
        reason = slot.hear()
        if reason is not None and slot.lost_starts >= MAX_LOST_STARTS:
            reason = f"workers do not start: {reason}"
            if not self._drop(slot.node, reason):
                raise JobFailedError(reason)

    def _settle(self, slot: Slot) -> Iterator[Any]:
        """Yield what an actor has finished; put back what it has lost, blaming the oldest task alone."""
        while slot.in_flight:
            ref, task = slot.in_flight[0]
            if not ray.wait([ref], timeout=0)[0]:
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
                    slot.in_flight.popleft()
                    self._trouble(slot, task, error)
            except RayError:
                self._died(slot, task)
            else:
                slot.in_flight.popleft()
                slot.finished += 1
                slot.rows = 0
                self._health.finished(slot.node)
                self._patience.reset()
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
        if self._crashes[task] > MAX_CRASHES:
            self.outcast.append(task)
        else:
            self._queue.append(task)  # to the end: what is sound goes first
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
        self._queue.append(task)
        self._health.lost(slot.node, object())  # each time anew: it says nothing about the task
        if self._health.sick(slot.node) and self._drop(slot.node, str(cause)):
            self._patience.reset()
        else:
            self._patience.trouble(cause)

    def _drop(self, node: str, reason: str) -> bool:
        """Give a node no more work, if there is another one that works; return whether."""
        if not self._crew.usable_without(node):
            return False
        self._requeue(self._crew.drop(node, reason))
        _log.warning("%s gets no more work: %s", list(self._crew.dropped)[-1], reason)
        return True

    def _requeue(self, tasks: list[Task]) -> None:
        """Put tasks back to the front, uncounted."""
        self._queue.extendleft(reversed(tasks))

    def _notice(self) -> None:
        """Say once a minute that nothing can be done, and why."""
        if any(slot.ready for slot in self._crew.slots):
            self._next_notice = time.monotonic() + NOTICE_SECONDS
        elif time.monotonic() > self._next_notice:
            _log.warning("no worker is ready; waiting for room for %s on the cluster", self._crew.options)
            self._next_notice = time.monotonic() + NOTICE_SECONDS
