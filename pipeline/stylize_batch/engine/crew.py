"""The driver's view of its actors: who answers, from which node, and what each has in flight."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from stylize_batch import heap
from stylize_batch.engine.placement import Placement
from stylize_batch.engine.ray_actor import Place, Pulse, Ref, WorkerActor
from stylize_batch.engine.ray_tasks import Task
from stylize_batch.settings import WorkerSettings

PING_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Pool:
    """Actors that are alike.

    Attributes:
        settings: of their workers.
        actors: how many there shall be.
        options: what each asks for, and is started with.
    """

    def __init__(self, settings: WorkerSettings, placement: Placement) -> None:
        self.settings = replace(settings, threads=placement.cores, gpu_share=placement.num_gpus)
        self.actors = placement.actors
        self.options = placement.options
        if settings.device == "cpu":
            self.options["runtime_env"] = {"env_vars": heap.ENVIRONMENT}

    def avoid(self, nodes: Sequence[str]) -> None:
        """Have actors that are created from now on stay away from nodes."""
        self.options = {**self.options, "label_selector": {"ray.io/node-id": f"!in({','.join(nodes)})"}}

    def create(self) -> Any:
        """Create an actor."""
        options = dict(self.options, max_concurrency=1, max_restarts=-1, max_task_retries=0)
        actor: Any = cast("Any", ray.remote)(concurrency_groups={"control": 1}, **options)(WorkerActor)
        return actor.remote(self.settings)


class Slot:
    """One actor.

    A process that is placed or restarted first answers `alive`, then the `ping` that loads the network, and only then
    gets work. While it waits for a place, it owes no answer.

    Attributes:
        pool: it is one of.
        in_flight: tasks it has been given, oldest first; it works on the oldest.
        place: where its process runs, as it said last; None before it has answered, and of one never constructed.
        ready: whether it takes work.
        leaving: whether it hands back what it does not finish in time.
        rows: finished in the shard in hand.
        lost_starts: times in a row that it started and could not take work.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._actor: Any = pool.create()
        self._question: Ref | None = self._actor.alive.remote()
        self._next_question = 0.0
        self._alive = False
        self.in_flight: deque[tuple[Ref, Task]] = deque()
        self.place: Place | None = None
        self.ready = False
        self.leaving = False
        self.rows = 0
        self.lost_starts = 0
        self._begun = 0.0

    @property
    def node(self) -> str:
        """The identity of the node it was on last."""
        return self.place.node if self.place else ""

    @property
    def takes_work(self) -> bool:
        """Whether it may be given tasks."""
        return self.ready and not self.leaving

    @property
    def task(self) -> Task | None:
        """What it works on."""
        return self.in_flight[0][1] if self.in_flight else None

    @property
    def elapsed(self) -> float:
        """Seconds it has worked on that."""
        return time.monotonic() - self._begun if self.in_flight else 0.0

    @property
    def refs(self) -> list[Ref]:
        """What it owes an answer to."""
        question = [] if self._question is None else [self._question]
        return [ref for ref, _ in self.in_flight] + question

    def give(self, task: Task) -> None:
        """Give it a task, to be begun when the earlier ones are done."""
        if not self.in_flight:
            self._begun = time.monotonic()
        self.in_flight.append((task.submit(self._actor), task))

    def finish(self) -> float:
        """Take note that the oldest task is done, and return the seconds it took."""
        seconds = self.elapsed
        self.in_flight.popleft()
        self._begun += seconds
        self.rows = 0
        return seconds

    def take_back(self) -> Task:
        """Take away the last task, which it has not begun.

        Should it just have begun, two actors do the same, and both write the same.
        """
        ref, task = self.in_flight.pop()
        ray.cancel(ref)
        return task

    def lose(self) -> list[Task]:
        """Take note that the process is gone, and return what it had in flight. Ray restarts it where there is room."""
        tasks = [task for _, task in self.in_flight]
        self.in_flight.clear()
        self._reset()
        return tasks

    def _reset(self) -> None:
        self._alive = self.ready = False
        self.leaving &= bool(self.in_flight)  # which are yet to be found lost, and then it tells why
        self.rows = 0
        if self._question is None:
            self._next_question = time.monotonic() + PING_SECONDS

    def _replace(self) -> None:
        """Have a new actor in place of one that Ray will not restart. Where that was, it could not say."""
        ray.kill(self._actor)
        self._actor = self.pool.create()
        self.place = None

    def restart(self) -> list[Task]:
        """Have a new process in place of this one, and return what it had in flight."""
        ray.kill(self._actor, no_restart=False)
        return self.lose()

    def end(self) -> list[Task]:
        """End it for good, and return what it had in flight."""
        ray.kill(self._actor)
        return self.lose()

    def let_go(self) -> None:
        """Forget the actor and what it owes an answer to."""
        self._actor = self._question = None
        self.in_flight.clear()

    def ask(self, model: list[Ref], newcomer: bool) -> None:
        """Put the next question, if it is time for one.

        Args:
            model: a reference to the bytes of the model file.
            newcomer: whether it is on a node that nobody has looked at.
        """
        if self._question is None and time.monotonic() >= self._next_question:
            actor = self._actor
            self._question = actor.ping.remote(model, newcomer) if self._alive else actor.alive.remote()

    def hear(self, answered: set[Ref]) -> str | None:
        """Hear the answer to the last question, if there is one; return why a started process can take no work."""
        if self._question is None or self._question not in answered:
            return None
        question, self._question = self._question, None
        try:
            answer = cast("Place | Pulse", ray.get(question))
        except RayError as error:
            failed_start = self._alive and not self.ready
            if not self._alive and _not_constructed(error):
                failed_start = True
                self._replace()
            self._reset()
            if not failed_start:
                return None
            self.lost_starts += 1
            return reason_of(error)
        if isinstance(answer, Place):
            self.place = answer
            self._alive = True
        elif self._alive:
            # Else it was asked before the process was lost, and says nothing of where the new one is.
            self.ready, self.rows, self.leaving = True, answer.rows, answer.leaving
            self.lost_starts = 0
            self._next_question = time.monotonic() + PING_SECONDS
        return None


class Crew:
    """All actors of a run.

    Attributes:
        pools: the kinds of actors.
        slots: one for each actor.
        dropped: nodes that get no more work, as people know them, and why.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        model: list[Ref],
        silent: Mapping[Place, str],
        sound: frozenset[str] | None,
    ) -> None:
        """Create all actors at once: those that find no room yet make an autoscaler add nodes.

        Args:
            pools: the kinds of actors.
            model: a reference to the bytes of the model file.
            silent: nodes that get no work, and why.
            sound: the nodes that read what others read, which those not among them have to show first; None asks it of
                none.
        """
        self._model = model
        self._sound = sound
        self._avoided: list[str] = []
        self.pools = pools
        self.slots: list[Slot] = []
        self.dropped: dict[str, str] = {}
        for place, reason in silent.items():
            self._avoid(place, reason)
        self.fill()

    def fill(self) -> None:
        """Create the actors that are missing."""
        for pool in self.pools:
            present = sum(slot.pool is pool for slot in self.slots)
            self.slots += [Slot(pool) for _ in range(pool.actors - present)]

    def wait(self) -> set[Ref]:
        """Put the next questions, wait until an actor has something to say, for a second at most, and return all
        answers there are."""
        for slot in self.slots:
            slot.ask(self._model, self._sound is not None and slot.node not in self._sound)
        refs = [ref for slot in self.slots for ref in slot.refs]
        if not refs:
            time.sleep(PING_SECONDS / 10)
            return set()
        ray.wait(refs, num_returns=1, timeout=PING_SECONDS)
        return set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])

    def usable_without(self, node: str) -> bool:
        """Whether an actor on another node takes work."""
        return any(slot.takes_work and slot.node != node for slot in self.slots)

    def drop(self, node: str, reason: str) -> list[Task]:
        """End the actors on a node, have others elsewhere in their place, and return what they had in flight."""
        ended = [slot for slot in self.slots if slot.node == node]
        place = ended[0].place
        assert place
        self._avoid(place, reason)
        tasks = [task for slot in ended for task in slot.end()]
        self.slots = [slot for slot in self.slots if slot.node != node]
        self.fill()
        return tasks

    def _avoid(self, place: Place, reason: str) -> None:
        _log.warning("%s gets no more work: %s", place, reason)
        self.dropped[str(place)] = reason
        self._avoided.append(place.node)
        for pool in self.pools:
            pool.avoid(self._avoided)

    def dismiss(self) -> None:
        """End all actors."""
        for slot in self.slots:
            slot.end()
        self.slots.clear()

    def let_go(self) -> None:
        """Forget all actors, which end with their driver."""
        for slot in self.slots:
            slot.let_go()
        self.slots.clear()


def _not_constructed(error: RayError) -> bool:
    """Whether an actor could not be made: its constructor raised, the node cannot load the class, in whose place Ray
    puts one whose methods raise, or cannot make what it needs around it, after which Ray does not try again."""
    if isinstance(error, RayTaskError | RuntimeEnvSetupError | ActorUnschedulableError):
        return True
    return isinstance(error, RayActorError) and error.actor_init_failed


def reason_of(error: RayError) -> str:
    """Return the last line of what Ray says, or what the code it ran has raised."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
