"""Seconds by stage of the work, and bytes moved, added up over threads."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager


class _Thread(threading.local):
    """What each thread keeps: the seconds of finished stages inside the one it is in."""

    inside: float = 0.0


class Stopwatch:
    """Adds up seconds by stage and bytes by direction, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = _Thread()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._sizes: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Count the time inside the block, less that of stages inside it: every second of a thread is counted once."""
        started = time.perf_counter()
        before, self._thread.inside = self._thread.inside, 0.0
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.add(stage, elapsed - self._thread.inside)
            self._thread.inside = before + elapsed

    def add(self, stage: str, seconds: float) -> None:
        """Count seconds measured elsewhere."""
        with self._lock:
            self._seconds[stage] += seconds

    def count(self, direction: str, size: int) -> None:
        """Count bytes."""
        with self._lock:
            self._sizes[direction] += size

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return seconds by stage and bytes by direction, and start again from zero."""
        with self._lock:
            counted = dict(self._seconds), dict(self._sizes)
            self._seconds.clear()
            self._sizes.clear()
        return counted
