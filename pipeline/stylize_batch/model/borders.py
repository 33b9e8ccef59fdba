"""What stands beyond a map's border, for loops that take it from the map instead of a padded copy."""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(64)
def padded(length: int, places: int, *, reflect: bool) -> np.ndarray:
    """Return which of a map's `length` rows (or columns) each of its padded ones is, of which the first lies before it.

    It is not to be written to: the next caller gets the same array.

    Args:
        length: at least 2.
        places: of the padded map; those more than one beyond the border are any.
        reflect: reflected as in the paper's network, or the border itself again.
    """
    at = np.arange(-1, places - 1)
    if reflect:
        at = np.where(at == length, length - 2, abs(at))
    return at.clip(0, length - 1)
