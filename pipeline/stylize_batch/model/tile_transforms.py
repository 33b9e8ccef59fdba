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

from stylize_batch.model.compiled import compiled, inlined

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

    Of a tile's numbers [side, side, C] the first index is the column's.

    Attributes:
        gather: (map [h, w, C], rows, columns, first, across, tiles) writes the transformed tiles from number `first` on, of
            which there are `across` side by side; `rows` and `columns` say where each row and column of the tiles is
            in the map.
        scatter: (products [T, side, side, s² K], first, across, s, floor, height, width, map) writes what the products
            transform to, 4 × 4 places of a tile, none of them lower than `floor`, to a map [height, width, K], or the
            highest of 2 × 2 places to one of half the size. Of the s² kernels of a sub-pixel convolution each makes one
            place of a cell, and sees the map from one place further up or left than the next.
    """

    gather: Callable[[np.ndarray, np.ndarray, np.ndarray, int, int, np.ndarray], None]
    scatter: Callable[[np.ndarray, int, int, int, np.float32, int, int, np.ndarray], None]


@functools.cache
def transforms(side: int) -> Transforms:
    """Compile the transforms of tiles of this side, which takes seconds, or load what was compiled before."""
    number, whole = numba.float32, numba.int64
    map, tiles, indices = number[:, :, ::1], number[:, :, :, ::1], whole[::1]
    gather, scatter = (_gather_6, _scatter_6) if side == 6 else (_gather_5, _scatter_5)
    return Transforms(
        compiled(gather, map, indices, indices, whole, whole, tiles),
        compiled(scatter, tiles, whole, whole, whole, number, whole, whole, map),
    )


def _gather_6(map: Any, rows: Any, columns: Any, first: int, across: int, tiles: Any) -> None:
    _gather(map, rows, columns, first, across, tiles, True)


def _gather_5(map: Any, rows: Any, columns: Any, first: int, across: int, tiles: Any) -> None:
    _gather(map, rows, columns, first, across, tiles, False)


@inlined
def _gather(map: Any, rows: Any, columns: Any, first: int, across: int, tiles: Any, six: bool) -> None:
    count, side, channels = tiles.shape[0], 6 if six else 5, map.shape[2]
    strip = np.empty((4 * count + 2, side, channels), np.float32)
    # A column of a tile at once: few long loops are faster than many short ones.
    given, made = strip.reshape(4 * count + 2, side * channels), tiles.reshape(count, side, side * channels)
    done = 0
    while done < count:  # tiles side by side: the columns that two of them share are transformed once
        row, column = 4 * ((first + done) // across), (first + done) % across
        width = min(count - done, across - column)
        for place in range(4 * width + 2):
            at = columns[4 * column + place]
            d0, d1, d2 = map[rows[row], at], map[rows[row + 1], at], map[rows[row + 2], at]
            d3, d4, d5 = map[rows[row + 3], at], map[rows[row + 4], at], map[rows[row + 5], at]
            out = strip[place]
            for c in range(channels):
                out[0, c], out[1, c], out[2, c], out[3, c], out[4, c], more = _values(
                    six, d0[c], d1[c], d2[c], d3[c], d4[c], d5[c]
                )
                if six:
                    out[5, c] = more
        for tile in range(width):
            d0, d1, d2 = given[4 * tile], given[4 * tile + 1], given[4 * tile + 2]
            d3, d4, d5 = given[4 * tile + 3], given[4 * tile + 4], given[4 * tile + 5]
            out = made[done + tile]
            for k in range(side * channels):
                out[0, k], out[1, k], out[2, k], out[3, k], out[4, k], more = _values(
                    six, d0[k], d1[k], d2[k], d3[k], d4[k], d5[k]
                )
                if six:
                    out[5, k] = more
        done += width


def _scatter_6(
    products: Any, first: int, across: int, scale: int, floor: float, height: int, width: int, map: Any
) -> None:
    _scatter(products, first, across, scale, floor, height, width, map, True)


def _scatter_5(
    products: Any, first: int, across: int, scale: int, floor: float, height: int, width: int, map: Any
) -> None:
    _scatter(products, first, across, scale, floor, height, width, map, False)


@inlined
def _scatter(
    products: Any, first: int, across: int, scale: int, floor: float, height: int, width: int, map: Any,
    six: bool,
) -> None:  # fmt: skip
    side, kernels = 6 if six else 5, products.shape[3]
    last, channels = side - 1, kernels // scale**2
    pools = map.shape[0] < height
    columns = products.reshape(products.shape[0], side, side * kernels)
    half = np.empty((4, side, kernels), np.float32)
    halves = half.reshape(4, side * kernels)
    cells = np.empty((4, 4, channels), np.float32)
    for tile in range(products.shape[0]):
        row, column = 4 * ((first + tile) // across), 4 * ((first + tile) % across)
        m = columns[tile]
        for k in range(side * kernels):
            halves[0, k], halves[1, k], halves[2, k], halves[3, k] = _outputs(
                six, m[0, k], m[1, k], m[2, k], m[3, k], m[4, k], m[last, k]
            )
        for kernel in range(scale**2):
            below, right = kernel // scale, kernel % scale
            top, left = scale * (row - below) + below, scale * (column - right) + right
            far = 3 * scale
            inside = top >= 0 and left >= 0 and top + far < height and left + far < width
            for j in range(4):
                m = half[j, :, kernel * channels : (kernel + 1) * channels]
                if inside and not pools:
                    x = left + j * scale
                    out0, out1 = map[top, x], map[top + scale, x]
                    out2, out3 = map[top + 2 * scale, x], map[top + far, x]
                else:
                    out0, out1, out2, out3 = cells[0, j], cells[1, j], cells[2, j], cells[3, j]
                for c in range(channels):
                    r0, r1, r2, r3 = _outputs(six, m[0, c], m[1, c], m[2, c], m[3, c], m[4, c], m[last, c])
                    out0[c], out1[c] = max(r0, floor), max(r1, floor)
                    out2[c], out3[c] = max(r2, floor), max(r3, floor)
            if pools:
                for i in range(0, min(4, height - row), 2):
                    for j in range(0, min(4, width - column), 2):
                        down, on = min(i + 1, height - row - 1), min(j + 1, width - column - 1)
                        out = map[(row + i) // 2, (column + j) // 2]
                        for c in range(channels):
                            out[c] = max(
                                max(cells[i, j, c], cells[i, on, c]),
                                max(cells[down, j, c], cells[down, on, c]),
                            )
            elif not inside:
                for i in range(4):
                    for j in range(4):
                        y, x = top + i * scale, left + j * scale
                        if 0 <= y < height and 0 <= x < width:
                            for c in range(channels):
                                map[y, x, c] = cells[i, j, c]


@inlined
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


@inlined
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
