"""Seconds by stage of the work, and bytes moved, added up over threads.

The network's lanes spend theirs on `encode` (contents, styles), `stylize` and `metrics`, or `wait` for something to do.
Threads beside them `fetch` and `decode` images, turn pictures into files (`codec`) and `put` them where they belong.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Generator, Mapping
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


def where_it_went(seconds: Mapping[str, float]) -> str:
    """Say where workers' time went: shares of the time their lanes had, and what threads did beside them in the same
    measure, `network 71 %, losses 20 %, waiting 9 %; beside it decoding 4 %, …`. Empty when no lane did anything.
    """
    lanes = {
        "network": seconds.get("encode", 0.0) + seconds.get("stylize", 0.0),
        "losses": seconds.get("metrics", 0.0),
        "waiting": seconds.get("wait", 0.0),
    }
    beside = {
        name: seconds.get(stage, 0.0)
        for name, stage in (
            ("fetching", "fetch"),
            ("decoding", "decode"),
            ("encoding", "codec"),
            ("writing", "put"),
        )
    }
    whole = sum(lanes.values())
    if not lanes["network"]:
        return ""
    ranked = [
        ", ".join(
            f"{name} {value / whole:.0%}".replace("%", " %")
            for name, value in sorted(part.items(), key=lambda each: -each[1])
            if value / whole >= 0.005  # else it reads 0 %
        )
        for part in (lanes, beside)
    ]
    return "; beside it ".join(each for each in ranked if each)
