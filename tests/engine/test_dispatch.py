"""Who does which task when workers differ, hang, die or never start; a simulated crew, and a clock of its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import pytest
from ray.exceptions import RayTaskError, WorkerCrashedError

from stylize_batch.engine import dispatch as dispatching
from stylize_batch.engine.crew import Crew
from stylize_batch.engine.dispatch import (
    HANGING_SECONDS,
    MAX_CRASHES,
    MAX_CRASHES_IN_A_ROW,
    MAX_LOST_STARTS,
    Dispatch,
)
from stylize_batch.engine.metrics import DriverMetrics
from stylize_batch.errors import DeviceError, HandedBackError, JobFailedError, SystemicError

Answer = Callable[["Worker", str], float]
"""The seconds a worker takes for a task; it hangs for ever with infinity, and dies with a negative number."""


class TroubleError(RayTaskError):
    """What Ray raises where a worker has raised something."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class Given(NamedTuple):
    """A task that a worker has."""

    task: str
    to: Worker


class Worker:
    """A slot of the crew, with everything that Dispatch asks of one."""

    def __init__(self, crew: Workers, node: str, answer: Answer, lost_starts: int = 0) -> None:
        self._crew, self._answer = crew, answer
        self.node = self.place = node
        self.pool = "pool"
        self.in_flight: deque[tuple[Given, str]] = deque()
        self._begun = 0.0
        self.lost_starts = lost_starts
        self.ready = not lost_starts
        self.leaving = False
        self.lost = 0  # processes so far
        self.died_with: list[str] = []
        self.done: list[str] = []

    @property
    def takes_work(self) -> bool:
        return self.ready and not self.leaving

    @property
    def task(self) -> str | None:
        return self.in_flight[0][1] if self.in_flight else None

    @property
    def elapsed(self) -> float:
        return self._crew.now - self._begun if self.in_flight else 0.0

    @property
    def ends(self) -> float:
        """When it will have an answer."""
        return self._begun + abs(self._answer(self, self.in_flight[0][1])) if self.in_flight else float("inf")

    def result(self) -> str:
        task = self.in_flight[0][1]
        if self._answer(self, task) < 0:
            self.died_with.append(task)
            raise WorkerCrashedError
        if self._crew.trouble(self, task):
            raise TroubleError(self._crew.cause)
        self.done.append(task)
        return task

    def give(self, task: str) -> None:
        assert self.takes_work
        if not self.in_flight:
            self._begun = self._crew.now
        self.in_flight.append((Given(task, self), task))

    def finish(self) -> float:
        seconds = self.elapsed
        self.in_flight.popleft()
        self._begun = self._crew.now
        return seconds

    def take_back(self) -> str:
        return self.in_flight.pop()[1]

    def lose(self) -> list[str]:
        self.lost += 1
        self.leaving = False
        tasks = [task for _, task in self.in_flight]
        self.in_flight.clear()
        return tasks

    restart = end = lose

    def hear(self, answered: set[Given]) -> str | None:
        return "RuntimeError: no environment" if self.lost_starts else None


class Workers:
    """A crew whose clock jumps to the next answer."""

    def __init__(self, answers: Sequence[Answer], nodes: str = "") -> None:
        self.now = 0.0
        self.trouble: Callable[[Worker, str], bool] = lambda *_: False
        self.cause: Exception = SystemicError("storage does not answer")
        self.gone: set[str] = set()
        self.pools: list[Any] = []
        self.slots = [
            Worker(self, node, answer)
            for node, answer in zip(nodes or "a" * len(answers), answers, strict=True)
        ]
        self.dropped: dict[str, str] = {}

    def wait(self) -> set[Given]:
        self.now = min([self.now + 1, *(slot.ends for slot in self.slots)])
        assert self.now < 10_000, "the work does not end"
        return {slot.in_flight[0][0] for slot in self.slots if slot.in_flight and slot.ends <= self.now}

    def usable_without(self, node: str) -> bool:
        return any(slot.takes_work and slot.node != node for slot in self.slots)

    def drop(self, node: str, reason: str) -> list[str]:
        assert node in {slot.node for slot in self.slots} - {""}
        self.dropped[node] = reason
        tasks = [task for slot in self.slots if slot.node == node for task in slot.lose()]
        self.slots = [slot for slot in self.slots if slot.node != node]
        return tasks


class NoMetrics:
    def queue(self, length: int) -> None: ...


def dispatched(crew: Workers, tasks: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Dispatch]:
    monkeypatch.setattr(dispatching.ray, "get", lambda given: given.to.result())  # pyright: ignore
    monkeypatch.setattr(
        dispatching,
        "living_nodes",
        lambda: {slot.node: {} for slot in crew.slots if slot.node not in crew.gone},
    )
    names: list[Any] = [f"task {number}" for number in range(tasks)]
    work = Dispatch(cast("Crew", crew), names, cast("DriverMetrics", NoMetrics()))
    return list(work.run()), work


def test_every_task_is_done_once_and_the_faster_worker_does_more(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Workers([lambda *_: 1.0, lambda *_: 3.0])
    found, _ = dispatched(crew, 40, monkeypatch)
    assert sorted(found) == sorted(f"task {number}" for number in range(40))
    assert len(crew.slots[0].done) == pytest.approx(30, abs=1)


def test_the_end_waits_for_no_straggler(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "task 7"
    crew = Workers([lambda worker, task: 500.0 if task == slow and worker is crew.slots[0] else 2.0] * 2)
    found, _ = dispatched(crew, 12, monkeypatch)
    assert len(found) == len(set(found)) == 12
    assert crew.now < 60


def test_what_hangs_on_every_worker_of_a_node_is_done_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Workers([lambda worker, _: float("inf") if worker.node == "a" else 2.0] * 3, nodes="aab")
    found, _ = dispatched(crew, 6, monkeypatch)
    assert len(found) == len(set(found)) == 6
    assert crew.now < 60


def test_what_a_hundred_workers_are_late_with_takes_the_driver_of_a_thousand_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = "".join(chr(0x4E00 + worker // 8) for worker in range(1000))
    crew = Workers([lambda *_: 2.0] * 900 + [lambda *_: float("inf")] * 100, nodes=nodes)
    began = time.process_time()
    found, _ = dispatched(crew, 1000, monkeypatch)
    assert len(set(found)) == 1000
    assert time.process_time() - began < 10


def test_what_an_idle_worker_has_done_instead_of_one_that_hangs_is_not_done_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = Workers([lambda worker, _: 2.0 if worker.lost else float("inf")] * 2 + [lambda *_: 2.0])
    found, _ = dispatched(crew, 6, monkeypatch)
    assert sorted(found) == [f"task {number}" for number in range(6)]
    assert [worker.lost for worker in crew.slots] == [1, 1, 0]


def test_a_task_is_not_put_aside_while_a_slow_worker_is_at_it_though_another_dies_of_it_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(worker: Worker, task: str) -> float:
        if task != "task 0":
            return 1.0
        return 20.0 if worker is crew.slots[0] else -1.0

    crew = Workers([answer] * 2)
    found, work = dispatched(crew, 6, monkeypatch)
    assert crew.slots[1].died_with.count("task 0") > MAX_CRASHES
    assert sorted(found) == [f"task {number}" for number in range(6)]
    assert not work.outcast


def test_a_task_that_hangs_where_it_began_and_kills_all_that_try_it_too_is_put_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(worker: Worker, task: str) -> float:
        if task == "task 0":
            return float("inf") if worker is crew.slots[0] else -1.0
        return float("inf") if task == "task 1" and worker is crew.slots[1] else 1.0

    crew = Workers([answer] * 4)
    found, work = dispatched(crew, 12, monkeypatch)
    assert sorted(found) == sorted(f"task {number}" for number in range(1, 12))
    assert [str(task) for task in work.outcast] == ["task 0"]
    assert sum(worker.died_with.count("task 0") for worker in crew.slots) == MAX_CRASHES + 1
    assert crew.slots[0].lost == 1
    assert HANGING_SECONDS < crew.now < HANGING_SECONDS + 10


@pytest.mark.parametrize("has_to_go", [False, True])
def test_what_another_worker_is_at_is_not_done_once_more_when_one_that_helped_is_lost(
    has_to_go: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(worker: Worker, task: str) -> float:
        if task == "task 0" and worker is not crew.slots[0]:
            worker.leaving, worker.ready = has_to_go, False  # and no new process is there soon
            return -1.0
        return {"task 0": 12.0, "task 15": 30.0}.get(task, 1.0)

    crew = Workers([answer] * 3)
    found, _ = dispatched(crew, 16, monkeypatch)
    assert crew.slots[1].died_with == ["task 0"]
    assert len(found) == len(set(found)) == 16
    assert [worker.lost for worker in crew.slots] == [0, 1, 0]


def test_what_two_workers_of_a_node_were_at_when_it_was_given_up_is_put_back_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(worker: Worker, task: str) -> float:
        if task == "task 0" and worker is first:
            return 1000.0
        return {"task 21": 3.0, "task 22": 5.5}.get(task, 1.0)

    crew = Workers([answer] * 4, nodes="aabb")
    first = crew.slots[0]
    crew.trouble = lambda worker, task: task == "task 0" and worker.node == "a"
    found, _ = dispatched(crew, 23, monkeypatch)
    assert set(crew.dropped) == {"a"}
    assert len(found) == len(set(found)) == 23
    assert [worker.lost for worker in crew.slots] == [0, 0]


@pytest.mark.parametrize(("nodes", "others"), [("aaaaaa", 0), ("abcdef", 1)])
def test_a_task_that_takes_long_is_not_begun_by_all_idle_workers(
    nodes: str, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(worker: Worker, task: str) -> float:
        if task != "task 0":
            return 1.0
        return float("inf") if worker is crew.slots[0] else 10.0

    crew = Workers([answer] * 6, nodes=nodes)
    found, _ = dispatched(crew, 30, monkeypatch)
    assert len(found) == 30
    assert sum(worker.lost for worker in crew.slots[1:]) == others


def test_a_task_that_hangs_before_any_is_finished_is_tried_by_another_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = Workers([lambda worker, _: float("inf") if worker is crew.slots[0] else 2.0] * 2)
    found, _ = dispatched(crew, 1, monkeypatch)
    assert found == ["task 0"]
    assert HANGING_SECONDS < crew.now < HANGING_SECONDS + 10


def test_a_task_that_kills_its_workers_is_put_aside_and_the_others_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = Workers([lambda _, task: -1.0 if task == "task 3" else 1.0] * 2)
    found, work = dispatched(crew, 10, monkeypatch)
    assert sorted(found) == sorted(f"task {number}" for number in range(10) if number != 3)
    assert [str(task) for task in work.outcast] == ["task 3"]


def test_a_task_that_some_workers_died_with_is_done_by_the_next_even_if_it_waited_behind_one_that_kills_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(worker: Worker, task: str) -> float:
        return -1.0 if task == "task 0" or worker.died_with.count(task) < MAX_CRASHES else 1.0

    crew = Workers([answer])
    found, work = dispatched(crew, 2, monkeypatch)
    assert found == ["task 1"]
    assert [str(task) for task in work.outcast] == ["task 0"]


def test_a_task_that_ends_the_use_of_its_device_gets_new_processes_and_is_then_put_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = Workers([lambda *_: 1.0] * 2)
    crew.trouble = lambda _, task: task == "task 3"
    crew.cause = DeviceError("CUDA error: an illegal memory access was encountered")
    found, work = dispatched(crew, 10, monkeypatch)
    assert sorted(found) == [f"task {number}" for number in range(10) if number != 3]
    assert [str(task) for task in work.outcast] == ["task 3"]
    assert sum(worker.lost for worker in crew.slots) == MAX_CRASHES + 1


@pytest.mark.parametrize("why", ["it had to go", "its node is gone"])
def test_a_process_that_is_taken_away_again_and_again_is_no_tasks_fault(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(worker: Worker, _: str) -> float:
        if worker.lost > MAX_CRASHES + 1:
            return 1.0
        worker.leaving = why == "it had to go"
        return -1.0

    crew = Workers([answer])
    crew.gone = {"a"} if why == "its node is gone" else set()
    found, work = dispatched(crew, 1, monkeypatch)
    assert found == ["task 0"]
    assert not work.outcast


def test_what_workers_that_have_to_go_hand_back_is_no_tasks_fault_and_done_by_new_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = Workers([lambda *_: 1.0])
    crew.trouble = lambda worker, _: worker.lost < 5
    crew.cause = HandedBackError("this worker has to go")
    found, work = dispatched(crew, 2, monkeypatch)
    assert found == ["task 0", "task 1"]
    assert not work.outcast
    assert crew.slots[0].lost == 5


def test_a_worker_that_has_to_go_gets_nothing_more_and_makes_room_for_a_new_process_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = Workers([lambda *_: 1.0])

    def leaves(worker: Worker, task: str) -> bool:
        worker.leaving |= task == "task 0"
        return False

    crew.trouble = leaves
    found, _ = dispatched(crew, 6, monkeypatch)
    assert found == [f"task {number}" for number in range(6)]
    assert crew.slots[0].lost == 1


def test_workers_that_die_with_whatever_they_are_given_end_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Workers([lambda *_: -1.0] * 2)
    with pytest.raises(JobFailedError, match="61 workers died and no task was finished in between"):
        dispatched(crew, 2 * MAX_CRASHES_IN_A_ROW, monkeypatch)


def test_workers_that_die_now_and_then_end_no_long_job_and_no_node_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(worker: Worker, task: str) -> float:
        return -1.0 if int(task[5:]) % 3 == 0 and task not in worker.died_with else 1.0

    crew = Workers([answer, lambda *_: 20.0], nodes="ab")
    found, _ = dispatched(crew, 6 * MAX_CRASHES_IN_A_ROW, monkeypatch)
    assert len(found) == len(set(found)) == 6 * MAX_CRASHES_IN_A_ROW
    assert crew.slots[0].lost > MAX_CRASHES_IN_A_ROW
    assert not crew.dropped


def test_a_node_that_loses_everything_gets_no_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Workers([lambda worker, _: -0.5 if worker.node == "a" else 1.0] * 2, nodes="ab")
    found, work = dispatched(crew, 20, monkeypatch)
    assert len(found) == len(set(found)) == 20
    assert set(crew.dropped) == {"a"}
    assert not work.outcast


def test_workers_that_never_start_do_not_end_the_job_while_others_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = Workers([lambda *_: 1.0])
    crew.slots.append(Worker(crew, "", lambda *_: 1.0, lost_starts=MAX_LOST_STARTS))
    found, _ = dispatched(crew, 5, monkeypatch)
    assert len(found) == 5


def test_a_node_on_which_no_worker_starts_is_given_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Workers([lambda *_: 1.0])
    crew.slots += [Worker(crew, "b", lambda *_: 1.0, lost_starts=MAX_LOST_STARTS) for _ in range(2)]
    found, _ = dispatched(crew, 5, monkeypatch)
    assert len(found) == 5
    assert set(crew.dropped) == {"b"}


def test_where_no_worker_starts_the_job_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Workers([])
    crew.slots = [Worker(crew, "", lambda *_: 1.0, lost_starts=MAX_LOST_STARTS) for _ in range(2)]
    with pytest.raises(JobFailedError, match="workers do not start: RuntimeError: no environment"):
        dispatched(crew, 5, monkeypatch)


def test_a_worker_that_is_being_restarted_does_not_end_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Workers([lambda *_: 1.0])
    works = crew.slots[0]
    crew.slots.append(Worker(crew, "", lambda *_: 1.0, lost_starts=MAX_LOST_STARTS))
    pauses = {3.0, 4.0}

    def wait() -> set[Given]:
        answered = Workers.wait(crew)
        works.ready = crew.now not in pauses
        return answered

    monkeypatch.setattr(crew, "wait", wait)
    found, _ = dispatched(crew, 8, monkeypatch)
    assert len(found) == 8


def test_two_bad_nodes_of_eight_get_no_more_work_and_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Workers([lambda worker, _: 0.5 if worker.node in "ab" else 60.0] * 8, nodes="abcdefgh")
    crew.trouble = lambda worker, _: worker.node in "ab"
    found, _ = dispatched(crew, 40, monkeypatch)
    assert len(found) == len(set(found)) == 40
    assert set(crew.dropped) == {"a", "b"}


def test_the_trouble_of_a_node_that_gets_no_more_work_is_not_held_against_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew = Workers([lambda worker, _: 0.5 if worker.node == "a" else 60.0] * 2, nodes="ab")
    crew.trouble = lambda worker, _: worker.node == "a" or crew.now == 60
    found, _ = dispatched(crew, 6, monkeypatch)
    assert len(found) == len(set(found)) == 6
    assert set(crew.dropped) == {"a"}


def test_an_outage_that_all_nodes_meet_is_no_nodes_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Workers([lambda *_: 10.0] * 2, nodes="ab")
    crew.trouble = lambda worker, _: 100 < crew.now < (140 if worker.node == "a" else 130)
    found, _ = dispatched(crew, 40, monkeypatch)
    assert len(found) == 40
    assert not crew.dropped


def test_an_outage_that_one_worker_survives_ends_fifty_no_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    for workers in (1, 50):
        crew = Workers([lambda *_: 60.0] * workers, nodes="".join(map(chr, range(100, 100 + workers))))
        crew.trouble = lambda *_, crew=crew: 100 < crew.now < 200
        found, _ = dispatched(crew, 4 * workers, monkeypatch)
        assert len(found) == 4 * workers


def test_trouble_that_stays_ends_the_job_whatever_the_number_of_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for workers in (1, 8):
        crew = Workers([lambda *_: 1.0] * workers)
        crew.trouble = lambda *_: True
        with pytest.raises(JobFailedError, match="storage does not answer"):
            dispatched(crew, 40, monkeypatch)
        assert crew.now <= 3


@pytest.mark.parametrize("workers", [1, 4])
def test_tasks_that_storage_never_answers_for_are_put_aside_and_the_others_are_done(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = Workers([lambda *_: 1.0] * workers)
    bad = {f"task {number}" for number in (0, 3, 4, 9, 12)}
    crew.trouble = lambda _, task: task in bad
    found, work = dispatched(crew, 20, monkeypatch)
    assert sorted(found) == sorted({f"task {number}" for number in range(20)} - bad)
    assert {str(task) for task in work.outcast} == bad
