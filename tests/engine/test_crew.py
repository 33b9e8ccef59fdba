"""What the driver makes of an actor's answers; actors that answer as the tests say, and a clock of the tests' own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import RayActorError

from stylize_batch.engine import crew as crewing
from stylize_batch.engine.crew import PING_SECONDS, Pool, Slot
from stylize_batch.engine.ray_actor import Place, Pulse
from stylize_batch.engine.ray_tasks import Task

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
        self.slot = Slot(cast("Pool", SimpleNamespace(create=Actor)))

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


def test_the_time_a_task_takes_begins_when_the_one_before_it_is_done(driver: Driver) -> None:
    first, second = task(), task()
    driver.slot.give(first)
    driver.slot.give(second)
    driver.now += 10
    assert driver.slot.finish() == 10
    driver.now += 3
    assert (driver.slot.task, driver.slot.elapsed) == (second, 3)
