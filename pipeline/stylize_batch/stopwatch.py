"""Seconds by stage of the work, added up over threads."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by stage, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Count the time inside the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[stage] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return what was counted and start again from zero."""
        with self._lock:
            seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
