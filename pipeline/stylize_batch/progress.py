"""What a person sees while a job runs: a live bar on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stylize_batch.errors import printable, say

if TYPE_CHECKING:
    from stylize_batch.training.log import Step

LINE_SECONDS = 15.0
"""Time between two lines without a terminal."""


def _nothing() -> int:
    return 0


class Observer(Protocol):
    """Hears how a job comes along."""

    def phase(
        self, name: str, total: int | None, done: int = 0, in_hand: Callable[[], int] = _nothing
    ) -> None:
        """A phase begins: what is counted, how many in all (None: nobody knows), are done already, are in hand."""

    def advance(self, done: int, failed: int) -> None:
        """So many are done and so many failed in all."""

    def note(self, line: str) -> None:
        """A user should know this now, not when the job ends."""


class Silent(Observer):
    """Hears and says nothing."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f}/s", style="cyan")


class _Count(MofNCompleteColumn):
    """How many are done of how many, as far as there is anything to count."""

    def render(self, task: Task) -> Text:
        if task.total:
            return super().render(task)
        return Text(str(int(task.completed)) if task.completed else "", style="progress.download")


class _LiveBar(Progress):
    """A bar that also moves with rows of unfinished shards."""

    def __init__(self, console: Console) -> None:
        self.base = 0
        self.in_hand = _nothing
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            _Count(),
            _Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("[red]{task.fields[failures]}"),
            console=console,
            speed_estimate_period=120,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            if not task.finished:
                self.update(task.id, completed=max(task.completed, self.base + self.in_hand()))
        yield from super().get_renderables()


@contextmanager
def terminal_progress() -> Generator[Observer]:
    """Show progress on stderr: a bar, or lines where it would not move."""
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        with _LiveBar(console) as bar:
            yield _PhaseBars(bar)
    else:
        yield _SparseLines()


class _PhaseBars(Observer):
    """A bar for each phase."""

    def __init__(self, bar: _LiveBar) -> None:
        self._bar = bar

    def phase(
        self, name: str, total: int | None, done: int = 0, in_hand: Callable[[], int] = _nothing
    ) -> None:
        for task in self._bar.tasks:
            end = task.completed if task.total is None else task.total
            self._bar.update(task.id, completed=end, total=end)
        self._bar.base, self._bar.in_hand = done, in_hand
        self._bar.add_task(name, total=total, completed=done, failures="")

    def advance(self, done: int, failed: int) -> None:
        self._bar.base = done
        text = f"{failed} failed" if failed else ""
        self._bar.update(self._bar.task_ids[-1], completed=done, failures=text)

    def note(self, line: str) -> None:
        self._bar.console.print(printable(line), markup=False, highlight=False)


class _SparseLines(Observer):
    """A line at the start of a phase, at its end and every 15 seconds, with rate and time left."""

    def __init__(self) -> None:
        self._name, self._first, self._started, self._last = "", 0, 0.0, 0.0
        self._total: int | None = None

    def phase(
        self, name: str, total: int | None, done: int = 0, in_hand: Callable[[], int] = _nothing
    ) -> None:
        self._name, self._total, self._first = name, total, done
        self._started = self._last = time.monotonic()
        note = f", {done} already done" if done else ""
        say(f"{name}{'' if total is None else f': {total}'}{note}")

    def advance(self, done: int, failed: int) -> None:
        now = time.monotonic()
        unfinished = self._total is None or done < self._total
        if unfinished and now - self._last < LINE_SECONDS:
            return
        self._last = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        parts = [f"{self._name}: {done}{'' if self._total is None else f'/{self._total}'}", f"{rate:.2f}/s"]
        if self._total is not None and unfinished:
            left = (self._total - done) / rate if rate else 0.0
            parts.append(f"{duration(left)} left")
        if failed:
            parts.append(f"{failed} failed")
        say(", ".join(parts))

    def note(self, line: str) -> None:
        say(line)


class TrainingLines:
    """A line at the start and every 15 seconds: iteration, mean losses since the last line, time left."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._steps: list[Step] = []
        self._first: int | None = None

    def __call__(self, step: Step) -> None:
        """Hear of one iteration."""
        now = time.monotonic()
        if self._first is None:
            self._first = step.iteration - 1
        self._steps.append(step)
        if now - self._last < LINE_SECONDS and step.iteration < step.iterations:
            return
        rate = (step.iteration - self._first) / (now - self._started)
        means = (
            f"{name.replace('_', ' ')} {sum(getattr(each, name) for each in self._steps) / len(self._steps):.4g}"
            for name in ("loss", "content_loss", "style_loss")
            if getattr(step, name) == getattr(step, name)  # NaN where the stage has none
        )
        left = duration((step.iterations - step.iteration) / rate)
        say(
            f"{step.stage} {step.iteration}/{step.iterations}, {', '.join(means)}, {rate:.2f} it/s, {left} left"
        )
        self._last, self._steps = now, []


def duration(seconds: float) -> str:
    """Write a time span for people: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
