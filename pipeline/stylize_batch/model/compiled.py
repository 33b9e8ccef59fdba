"""Loops over feature maps that Numba compiles for the processor at hand; no lock is held while they run.

Numba has no bfloat16: loops take such numbers as bits, the first 16 of a float32's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_HOW: dict[str, Any] = {
    "fastmath": {"contract", "nsz"},
    "error_model": "numpy",
    "nogil": True,
}

inlined: Callable[..., Any] = numba.njit(inline="always", **_HOW)  # pyright: ignore
"""Decorates what becomes a part of the functions that call it."""


@inlined
def widened(bits: Any) -> Any:
    """Return the float32 that bits of bfloat16 stand for."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@inlined
def rounded(number: Any) -> Any:
    """Return the bits of the bfloat16 nearest to a float32, the even one of two as near; what is no number stays so."""
    bits = np.float32(number).view(np.uint32)
    if number != number:
        return np.uint16(bits >> np.uint32(16) | np.uint32(0x40))
    return np.uint16((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16))


def compiled(function: Callable[..., None], *types: Any) -> Callable[..., None]:
    """Compile a function of arguments of these types, which takes seconds, or load what was compiled before."""
    signature = numba.void(*types)
    try:
        return numba.njit(signature, cache=True, **_HOW)(function)
    except Exception:  # no place to keep it, or what is kept there is damaged: whatever pickle raises
        return numba.njit(signature, **_HOW)(function)
