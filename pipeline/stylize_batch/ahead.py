"""Calls that threads begin ahead of the item in hand, in the items' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_T = TypeVar("_T")


def begun_ahead(
    threads: ThreadPoolExecutor, call: Callable[[_Item], _T], items: Iterable[_Item], ahead: int
) -> Generator[tuple[_Item, Future[_T]]]:
    """Yield items in order, each with a call for it that threads have begun so many items before.

    Whoever stops early leaves nothing behind that they would still begin.
    """
    waiting: deque[tuple[_Item, Future[_T]]] = deque()
    try:
        for item in items:
            waiting.append((item, threads.submit(call, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()
