"""Pictures side by side on the cores of a CPU, each on cores of its own.

Threads that share the layers of one small picture wait for each other at the end of every step, and for whatever else
runs on the machine; pictures that have a core each wait for nothing. So a picture gets as many cores as its share of a
pass: small ones one core each, one that fills a pass all of them, and together they never take more memory than one
full pass. A GPU is fed from lanes too: it works for one while the other prepares.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile
from types import TracebackType
from typing import TypeVar

import torch

from stylize_batch.stopwatch import Stopwatch

_T = TypeVar("_T")


class Lanes:
    """Threads that run units of the network's work. A context: what is unfinished at its end is dropped."""

    def __init__(
        self, cores: int, pass_pixels: int, clock: Stopwatch, begin: Callable[[], None] = lambda: None
    ) -> None:
        """Open the lanes.

        Args:
            cores: to share; of a GPU, threads that feed it.
            pass_pixels: pixels that the network takes at once on all of them.
            clock: is told, as the stage `wait`, the seconds that lanes have nothing to do.
            begin: is called first by each lane's thread.
        """
        self.count = self._free = cores
        """How many there are."""
        self.pass_pixels = pass_pixels
        """Pixels of a unit that has all lanes to itself."""
        self._clock = clock
        self._threads = ThreadPoolExecutor(cores, "lane", begin)
        self._changed = threading.Condition()
        self._counted = time.perf_counter()
        self._closed = False

    @property
    def ahead(self) -> int:
        """Units handed in, and not taken back, that keep all lanes at work."""
        return self.count + 1

    def submit(self, pixels: int, unit: Callable[[], Iterable[_T]]) -> Future[list[_T]]:
        """Have a unit of work on so many pixels at once run on its share of the cores.

        Units start in order, but one that waits for many cores lets smaller ones pass.
        """
        cores = min(self.count, max(1, -(-self.count * pixels // self.pass_pixels)))
        return self._threads.submit(self._run, cores, unit)

    def _run(self, cores: int, unit: Callable[[], Iterable[_T]]) -> list[_T]:
        self._take(cores)
        try:
            torch.get_num_threads()  # settles this thread's, which else is the last one set anywhere
            torch.set_num_threads(cores)  # of this thread alone
            return [] if self._closed else list(takewhile(lambda _: not self._closed, unit()))
        finally:
            self._take(-cores)

    def _take(self, cores: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= cores)
            now = time.perf_counter()
            self._clock.add("wait", (now - self._counted) * (self._free // abs(cores)))
            self._counted = now
            self._free -= cores
            self._changed.notify_all()

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        # Not for the threads: Python forgets one that it was interrupted in waiting for, and aborts where that one works on.
        with self._changed:
            self._changed.wait_for(lambda: self._free == self.count)
