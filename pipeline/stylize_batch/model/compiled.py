"""Loops over feature maps that Numba compiles for the processor at hand: float32, and no lock held while they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

_HOW: dict[str, Any] = {
    "fastmath": {"contract", "nsz"},
    "error_model": "numpy",
    "nogil": True,
}

inlined: Callable[..., Any] = numba.njit(inline="always", **_HOW)  # pyright: ignore
"""Decorates what becomes a part of the functions that call it."""


def compiled(function: Callable[..., None], *types: Any) -> Callable[..., None]:
    """Compile a function of arguments of these types, which takes seconds, or load what was compiled before."""
    signature = numba.void(*types)
    try:
        return numba.njit(signature, cache=True, **_HOW)(function)
    except Exception:  # no place to keep it, or what is kept there is damaged: whatever pickle raises
        return numba.njit(signature, **_HOW)(function)
