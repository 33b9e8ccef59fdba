"""Work in blocks, each done by one core, as many of them at a time as torch has cores in the thread that asks."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

_Block = TypeVar("_Block")


def on_all_cores(work: Callable[[_Block], None], blocks: Sequence[_Block]) -> None:
    """Do the work of all blocks on as many cores as torch has in this thread, each block on one."""
    cores = torch.get_num_threads()
    if cores == 1:
        for block in blocks:
            work(block)
        return
    left = iter(blocks)

    def take() -> None:
        try:
            for block in left:
                work(block)
        finally:
            _drop(left)  # some are left where one has failed

    # Even a single block: what a block calls is set up for one thread.
    with _STARTING:
        threads = _threads()
    taken = [threads.submit(take) for _ in range(min(cores, len(blocks)))]
    try:
        wait(taken)
    finally:
        _drop(left)  # some are left when this is interrupted
    # For this and all new threads, which otherwise get what was last set anywhere.
    torch.set_num_threads(cores)
    for each in taken:
        each.result()


def _drop(left: Iterator[object]) -> None:
    for _ in left:
        pass


_STARTING = threading.Lock()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Start a thread for each core, in which torch has one."""
    own = torch.get_num_threads()
    count = os.cpu_count() or 1
    threads = ThreadPoolExecutor(count, "core", _use_one_core)
    together = threading.Barrier(count + 1)
    for _ in range(count):
        threads.submit(together.wait)
    together.wait()
    torch.set_num_threads(own)  # new threads take the number that was set last, in whatever thread
    return threads


os.register_at_fork(after_in_child=_threads.cache_clear)  # where the threads of this process are not


def _use_one_core() -> None:
    torch.get_num_threads()  # settles this thread's number, which would else be the last one set
    torch.set_num_threads(1)
