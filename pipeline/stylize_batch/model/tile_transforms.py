"""The transforms of Winograd's convolutions (Lavin & Gray 2016, §4): y = Aᵀ[(G g) ⊙ (Bᵀ d)] for a kernel g and inputs d.

The r taps of a kernel are a polynomial's coefficients, and G is its values at `POINTS`; Bᵀ and Aᵀ are interpolation and
evaluation there, transposed (Toom and Cook). In two dimensions rows are transformed, then columns. Bᵀ and Aᵀ are loops
that Numba compiles for the processor at hand, over maps [height, width, channels] and tiles [T, side, side, channels],
where a side has 6 numbers for a 3×3 kernel and 5 for a 2×2 one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

_HOW: dict[str, Any] = {
    "fastmath": {"contract", "nsz"},
    "error_model": "numpy",
    "nogil": True,
}
_inline: Callable[..., Any] = numba.njit(inline="always", **_HOW)  # pyright: ignore

# Python's numbers would make the sums double.
_TWO, _THREE, _FOUR, _FIVE, _EIGHT = (np.float32(number) for number in (2, 3, 4, 5, 8))


POINTS = (0, 1, -1, 2, -2)
"""Where polynomials are evaluated, and at infinity; for a 2×2 kernel at the first four."""

ONE = POINTS.index(1)


def for_kernel(taps: int) -> np.ndarray:
    """Return G for so many taps a side, [3 + taps, taps]."""
    points = POINTS[: taps + 2]
    values = np.zeros((taps + 3, taps))
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        values[row] = np.power(float(point), range(taps)) / np.prod([point - other for other in others])
    values[-1, -1] = 1
    return values


class Transforms(NamedTuple):
    """The way to tiles, and back to a map.

    Attributes:
        gather: (map [h, w, C], rows, columns, first, across, tiles) writes the transformed tiles from number `first` on, of
            which there are `across` side by side; `rows` and `columns` say where each row and column of the tiles is
            in the map.
        scatter: (products [T, side, side, s² K], first, across, s, floor, map [s h, s w · K]) writes to the map what
            the products transform to, 4 × 4 places of a tile, none of them lower than `floor`. Of the s² kernels of
            a sub-pixel convolution each makes one place of a cell, and sees the map from one place further up or left
            than the next.
    """

    gather: Callable[[np.ndarray, np.ndarray, np.ndarray, int, int, np.ndarray], None]
    scatter: Callable[[np.ndarray, int, int, int, np.float32, np.ndarray], None]


@functools.cache
def transforms(side: int) -> Transforms:
    """Compile the transforms of tiles of this side, which takes seconds, or load what was compiled before."""
    number = numba.float32
    whole = numba.int64
    indices = whole[::1]
    tiles = number[:, :, :, ::1]
    return Transforms(
        _compile(
            _gather_6 if side == 6 else _gather_5, number[:, :, ::1], indices, indices, whole, whole, tiles
        ),
        _compile(_scatter_6 if side == 6 else _scatter_5, tiles, whole, whole, whole, number, number[:, ::1]),
    )


def _compile(function: Callable[..., None], *types: Any) -> Callable[..., None]:
    signature = numba.void(*types)
    try:
        return numba.njit(signature, cache=True, **_HOW)(function)
    except Exception:  # no place to keep it, or what is kept there is damaged: whatever pickle raises
        return numba.njit(signature, **_HOW)(function)


def _gather_6(map: Any, rows: Any, columns: Any, first: int, across: int, tiles: Any) -> None:
    _gather(map, rows, columns, first, across, tiles, True)


def _gather_5(map: Any, rows: Any, columns: Any, first: int, across: int, tiles: Any) -> None:
    _gather(map, rows, columns, first, across, tiles, False)


@_inline
def _gather(map: Any, rows: Any, columns: Any, first: int, across: int, tiles: Any, six: bool) -> None:
    count, side, channels = tiles.shape[0], 6 if six else 5, map.shape[2]
    strip = np.empty((6, 4 * count + 2, channels), np.float32)
    done = 0
    while done < count:  # tiles side by side: the columns that two of them share are transformed once
        row, column = 4 * ((first + done) // across), (first + done) % across
        width = min(count - done, across - column)
        for place in range(4 * width + 2):
            at = columns[4 * column + place]
            d0, d1, d2 = map[rows[row], at], map[rows[row + 1], at], map[rows[row + 2], at]
            d3, d4, d5 = map[rows[row + 3], at], map[rows[row + 4], at], map[rows[row + 5], at]
            for c in range(channels):
                (
                    strip[0, place, c], strip[1, place, c], strip[2, place, c],
                    strip[3, place, c], strip[4, place, c], strip[5, place, c],
                ) = _values(six, d0[c], d1[c], d2[c], d3[c], d4[c], d5[c])  # fmt: skip
        for tile in range(width):
            for i in range(side):
                d0, d1, d2 = strip[i, 4 * tile], strip[i, 4 * tile + 1], strip[i, 4 * tile + 2]
                d3, d4, d5 = strip[i, 4 * tile + 3], strip[i, 4 * tile + 4], strip[i, 4 * tile + 5]
                out = tiles[done + tile, i]
                for c in range(channels):
                    out[0, c], out[1, c], out[2, c], out[3, c], out[4, c], more = _values(
                        six, d0[c], d1[c], d2[c], d3[c], d4[c], d5[c]
                    )
                    if six:
                        out[5, c] = more
        done += width


def _scatter_6(products: Any, first: int, across: int, scale: int, floor: float, map: Any) -> None:
    _scatter(products, first, across, scale, floor, map, True)


def _scatter_5(products: Any, first: int, across: int, scale: int, floor: float, map: Any) -> None:
    _scatter(products, first, across, scale, floor, map, False)


@_inline
def _scatter(products: Any, first: int, across: int, scale: int, floor: float, map: Any, six: bool) -> None:
    side, kernels = 6 if six else 5, products.shape[3]
    last, channels = side - 1, kernels // scale**2
    height, width = map.shape[0] // scale, map.shape[1] // channels // scale
    half = np.empty((4, side, kernels), np.float32)
    line = np.empty(4 * scale * channels, np.float32)
    places = line.reshape(4 * scale, channels)
    for tile in range(products.shape[0]):
        row, column = 4 * ((first + tile) // across), 4 * ((first + tile) % across)
        for j in range(side):
            for c in range(kernels):
                half[0, j, c], half[1, j, c], half[2, j, c], half[3, j, c] = _outputs(
                    six, products[tile, 0, j, c], products[tile, 1, j, c], products[tile, 2, j, c],
                    products[tile, 3, j, c], products[tile, 4, j, c], products[tile, last, j, c],
                )  # fmt: skip
        for i in range(4):
            for below in range(scale):
                y = row + i - below
                if y < 0 or y >= height:
                    continue
                for right in range(scale):
                    kernel = (below * scale + right) * channels
                    place = scale - 1 - right
                    for c in range(channels):
                        (
                            places[place, c], places[place + scale, c],
                            places[place + 2 * scale, c], places[place + 3 * scale, c],
                        ) = _outputs(
                            six, half[i, 0, kernel + c], half[i, 1, kernel + c], half[i, 2, kernel + c],
                            half[i, 3, kernel + c], half[i, 4, kernel + c], half[i, last, kernel + c],
                        )  # fmt: skip
                start = scale * column - (scale - 1)  # of the line, in the map's row
                begin, end = max(0, -start), min(4 * scale, scale * width - start)
                found = line[begin * channels : end * channels]
                out = map[scale * y + below, (start + begin) * channels : (start + end) * channels]
                for c in range(len(found)):
                    out[c] = max(found[c], floor)


@_inline
def _values(six: bool, d0: Any, d1: Any, d2: Any, d3: Any, d4: Any, d5: Any) -> Any:
    """Bᵀ d: each point's row are the coefficients of ∏ (x − q) over the other points q."""
    if six:
        even, odd = d4 - _FOUR * d2, d3 - _FOUR * d1
        even2, odd2 = d4 - d2, _TWO * (d3 - d1)
        return (
            _FOUR * d0 - _FIVE * d2 + d4, even + odd, even - odd,
            even2 + odd2, even2 - odd2, _FOUR * d1 - _FIVE * d3 + d5,
        )  # fmt: skip
    step = d3 - d1
    return (
        _TWO * (d0 - d2) + step, d3 - d2 - _TWO * d1, d3 - _THREE * d2 + _TWO * d1,
        step, d4 - d2 - _TWO * step, d5,
    )  # fmt: skip


@_inline
def _outputs(six: bool, m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any) -> Any:
    """Aᵀ m: four sums of the products, each weighted by powers of its point; m5 is infinity's."""
    total, difference = m1 + m2, m1 - m2
    if six:
        total2, difference2 = m3 + m4, m3 - m4
        return (
            m0 + total + total2, difference + _TWO * difference2,
            total + _FOUR * total2, difference + _EIGHT * difference2 + m5,
        )  # fmt: skip
    return m0 + total + m3, difference + _TWO * m3, total + _FOUR * m3, difference + _EIGHT * m3 + m5
