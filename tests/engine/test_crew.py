"""What the driver makes of an actor's answers; actors that answer as the tests say, and a clock of the tests' own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import RayActorError, RuntimeEnvSetupError

from stylize_batch.engine import crew as crewing
from stylize_batch.engine.crew import PING_SECONDS, Crew, Pool, Slot
from stylize_batch.engine.placement import Placement
from stylize_batch.engine.ray_actor import Place, Pulse
from stylize_batch.engine.ray_tasks import Task
from tests.conftest import worker_settings

HERE = Place("10.0.0.1", "a" * 56)
READY = Pulse(rows=0, leaving=False)


class Actor:
    """A handle to an actor: a call's reference is its name."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: name)


class Driver:
    """A slot, the clock its driver sees, and the answers to its questions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self._answers: list[Any] = []
        monkeypatch.setattr(crewing, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(crewing.ray, "get", self._get)  # pyright: ignore[reportPrivateImportUsage]
        monkeypatch.setattr(crewing.ray, "kill", lambda *_, **__: None)  # pyright: ignore[reportPrivateImportUsage]
        self.created = 0
        self.slot = Slot(cast("Pool", SimpleNamespace(create=self._create)))

    def _create(self) -> Actor:
        self.created += 1
        return Actor()

    def _get(self, _: object) -> Any:
        answer = self._answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def hear(self, *answers: Any) -> str | None:
        """Put questions and have them answered; return what is said of the last."""
        said = None
        for answer in answers:
            self.now += PING_SECONDS
            self.slot.ask([], newcomer=False)
            self._answers.append(answer)
            said = self.slot.hear(set(self.slot.refs))
        return said


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


def task() -> Task:
    return cast("Task", SimpleNamespace(submit=lambda actor: object()))


def test_an_actor_gets_no_work_on_an_answer_its_last_process_gave(driver: Driver) -> None:
    driver.hear(HERE, READY)
    assert driver.slot.takes_work
    driver.now += PING_SECONDS
    driver.slot.ask([], newcomer=False)
    driver.slot.lose()
    driver.hear(READY)
    assert not driver.slot.takes_work
    driver.hear(HERE, READY)
    assert driver.slot.takes_work


def test_starts_in_a_row_that_come_to_nothing_are_counted_until_one_succeeds(driver: Driver) -> None:
    for starts in (1, 2, 3):
        said = driver.hear(HERE, RayActorError(error_msg="the network does not fit in memory"))
        assert said == "the network does not fit in memory"
        assert driver.slot.lost_starts == starts
    assert driver.hear(HERE, READY) is None
    assert driver.slot.lost_starts == 0


def test_an_actor_that_could_not_be_made_is_made_anew_and_its_last_node_is_not_blamed(driver: Driver) -> None:
    driver.hear(HERE, READY)
    driver.slot.lose()
    assert driver.hear(RuntimeEnvSetupError("no environment")) == "no environment"
    assert (driver.slot.lost_starts, driver.slot.node, driver.created) == (1, "", 2)


def test_a_process_that_is_lost_after_it_could_take_work_is_no_failed_start(driver: Driver) -> None:
    driver.hear(HERE, READY)
    assert driver.hear(RayActorError()) is None
    assert (driver.slot.lost_starts, driver.slot.ready, driver.created) == (0, False, 1)


def test_a_new_process_need_not_leave_because_the_last_one_had_to(driver: Driver) -> None:
    driver.hear(HERE, Pulse(rows=0, leaving=True))
    assert driver.slot.leaving
    driver.slot.restart()
    assert not driver.slot.leaving


def test_a_question_that_a_process_died_with_hides_not_that_it_had_to_leave_what_it_had_in_flight(
    driver: Driver,
) -> None:
    driver.hear(HERE, READY)
    driver.slot.give(task())
    driver.hear(Pulse(rows=0, leaving=True), RayActorError())
    assert driver.slot.leaving
    assert len(driver.slot.lose()) == 1
    assert not driver.slot.leaving


def test_a_process_that_left_with_nothing_in_flight_is_waited_for_as_any_other(driver: Driver) -> None:
    driver.hear(HERE, Pulse(rows=0, leaving=True), RayActorError())
    assert not driver.slot.leaving


def test_rows_of_a_finished_shard_are_not_in_hand(driver: Driver) -> None:
    driver.slot.give(task())
    driver.hear(HERE, Pulse(rows=7, leaving=False))
    assert driver.slot.rows == 7
    driver.slot.finish()
    assert driver.slot.rows == 0


def test_actors_in_place_of_those_of_a_node_that_is_given_up_stay_away_from_all_such_nodes(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def create(pool: Pool) -> Actor:
        asked.append(pool.options.get("label_selector"))
        return Actor()

    monkeypatch.setattr(Pool, "create", create)
    pool = Pool(worker_settings(tmp_path), Placement(actors=1, num_gpus=0, num_cpus=1, cores=1))
    crew = Crew([pool], [], {Place("10.0.0.2", "silent"): "does not answer"}, None)
    crew.slots[0].place = Place("10.0.0.3", "sick")
    crew.drop("sick", "it has lost everything")
    assert asked == [{"ray.io/node-id": "!in(silent)"}, {"ray.io/node-id": "!in(silent,sick)"}]
    assert len(crew.slots) == 1


def test_the_time_a_task_takes_begins_when_the_one_before_it_is_done(driver: Driver) -> None:
    first, second = task(), task()
    driver.slot.give(first)
    driver.now += 4
    driver.slot.give(second)
    driver.now += 6
    assert driver.slot.finish() == 10
    driver.now += 3
    assert (driver.slot.task, driver.slot.elapsed) == (second, 3)
