"""The memory that feature maps are made in on a CPU: one heap of the C library, which keeps what was freed.

Otherwise glibc gives large maps back to the system, which clears the pages of every new one, and threads each fill an
arena of their own. A thread stays in the arena that it has begun with, so it matters when this is said.
"""

from __future__ import annotations

import ctypes

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""Of a process that has threads before `keep_freed_memory` can be called, such as one that Ray starts."""

_OPTIONS = {-1: 2**31 - 1, -4: 0, -8: 1}
"""glibc's `M_TRIM_THRESHOLD`, `M_MMAP_MAX` and `M_ARENA_MAX` (malloc.h)."""


def keep_freed_memory() -> None:
    """Have this process keep memory that was freed for the next feature map, and new threads use one heap.

    Where another C library is at work, nothing changes.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        for parameter, value in _OPTIONS.items():
            tune(parameter, value)
