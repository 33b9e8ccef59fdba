"""Convolutions in bfloat16 on a CPU, and what stands between two of them, in one pass over the map.

Where the processor multiplies matrices of bfloat16 (AMX), arithmetic takes so little time that Winograd's way would cost
more than it saves, and what stands between convolutions counts. Here oneDNN convolves and adds the bias, and one loop
rectifies the result and brings it to where the next convolution reads it, border included. It takes 16 bits as they lie in
memory: a negative number has the first bit set, and of others the order is that of their bits.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from stylize_batch.model.borders import padded
from stylize_batch.model.chain import Framed, Given, Mapped
from stylize_batch.model.compiled import compiled, inlined
from stylize_batch.model.convolution import ReflectedConv2d, SubPixelConv2d
from stylize_batch.model.cores import on_all_cores

PICTURE_CHANNELS = 3
"""A picture and its kernels are sums of two numbers each, of whose products only the least is left out.

Half of what bfloat16 changes in the result would come from rounding these: styles lift small differences. And a
convolution of 9 channels takes little longer than one of 3.
"""

ROWS = 32
"""Of the map that a core writes at once."""

_NEGATIVE, _LEAST = 0x8000, 0xFF80
"""As bits, zero and infinity below zero; what lies beyond is no number, and stays."""

_HOW = [0, 0], [1, 1], [1, 1], 1
"""Padding, strides, dilation, groups."""


class Bfloat16Conv2d(nn.Module):
    """A 3×3 convolution, or four 2×2 ones of the small map, and what stands between it and the next one.

    [N, C, h, w] → [N, K, s h, s w], or pooled to half the size; `Framed` for the next one, where there is one. Bytes
    count as 255ths.
    """

    def __init__(
        self, conv: ReflectedConv2d | SubPixelConv2d, following: ReflectedConv2d | SubPixelConv2d | None
    ) -> None:
        """Take over a convolution's weights, of float32 at best; the one that follows sees the result."""
        super().__init__()
        weight, rest = _rounded(conv.weight.detach())
        self._of_picture = weight.shape[1] == PICTURE_CHANNELS
        if self._of_picture:
            weight = torch.cat([weight, weight, rest], 1)
        # In the order that oneDNN wants them in for all maps but small ones. No buffer: what is packed cannot be moved.
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, *_HOW, [1, weight.shape[1], 64, 64]
        )
        self._bias = None if conv.bias is None else conv.bias.detach().float()
        self._relu = conv.relu
        self._scale = 2 if isinstance(conv, SubPixelConv2d) else 1
        self._channels = len(weight) // self._scale**2
        self._pool = isinstance(conv, ReflectedConv2d) and conv.pool
        assert self._relu or not self._pool
        self._reflects = isinstance(conv, ReflectedConv2d)
        self._next_reflects = None if following is None else isinstance(following, ReflectedConv2d)

    def forward(self, input: Given) -> Tensor | Framed:
        """Convolve."""
        # Not rectified there: of what is no number oneDNN would make zero.
        made: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
            self._framed(input), self._weight, self._bias, *_HOW, "none", [], ""
        )
        if self._next_reflects is None and self._scale == 1 and not self._pool:
            return made.relu_() if self._relu else made
        height, width = (self._scale * (side - self._scale + 1) for side in made.shape[2:])
        if self._pool:
            height, width = -(-height // 2), -(-width // 2)
        found = _written(
            made, self._channels, height, width, self._next_reflects,
            scale=self._scale, relu=self._relu, pool=self._pool,
        )  # fmt: skip
        return found if self._next_reflects is None else Framed(found, self._channels)

    def _framed(self, input: Given) -> Tensor:
        """Return what the convolution sees of its input, [N, C, h + 2, w + 2]."""
        if isinstance(input, Framed):
            return input.whole
        map = input.affine.apply(input.map) if isinstance(input, Mapped) else input
        map = map.float() / 255 if map.dtype == torch.uint8 else map
        if self._of_picture:
            near, rest = _rounded(map)
            map = torch.cat([near, rest, near], 1)
        _, channels, height, width = map.shape
        return _written(map.bfloat16(), channels, height, width, self._reflects)


def _rounded(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest numbers in bfloat16, and what is left of each, rounded likewise."""
    near = numbers.bfloat16()
    return near, (numbers - near).bfloat16()


def _written(
    made: Tensor,
    channels: int,
    height: int,
    width: int,
    reflect: bool | None,
    *,
    scale: int = 1,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    """Return the map [N, channels, height, width] of what a convolution made, as the next one sees it.

    Args:
        made: [N, channels, height, width], twice that size where it is pooled, and with `scale`
            [N, scale² channels, ⌈height / scale⌉ + 1, ⌈width / scale⌉ + 1], of which each place of a cell has its own.
        channels: of the map.
        height: of the map.
        width: of the map.
        reflect: whether the border is reflected or replicated; None leaves the map without one.
        scale: places on a cell's side.
        relu: whether to rectify.
        pool: whether to keep the highest of 2×2 places, of one or two at an odd border, rectified.
    """
    if reflect is None:
        rows, columns = np.arange(height), np.arange(width)
    else:
        rows, columns = (padded(length, length + 2, reflect=reflect) for length in (height, width))
    out = made.new_empty(len(made), len(rows), len(columns), channels)
    given = made.permute(0, 2, 3, 1).contiguous().view(torch.uint16).numpy()
    written = out.view(torch.uint16).numpy()
    move = _pooling() if pool else _placing()
    least = np.uint16(_LEAST if relu else 0)

    def write(block: tuple[int, int]) -> None:
        sample, top = block
        move(given[sample], rows[top : top + ROWS], columns, scale, least, written[sample, top : top + ROWS])

    on_all_cores(write, [(sample, top) for sample in range(len(made)) for top in range(0, len(rows), ROWS)])
    return out.permute(0, 3, 1, 2)


def _types() -> tuple[Any, ...]:
    map, whole = numba.uint16[:, :, ::1], numba.int64
    return map, whole[::1], whole[::1], whole, numba.uint16, map


@functools.cache
def _placing() -> Any:
    return compiled(_place, *_types())


@functools.cache
def _pooling() -> Any:
    return compiled(_pool, *_types())


@inlined
def _rectified(bits: Any, least: Any) -> Any:
    return np.uint16(0) if _NEGATIVE <= bits <= least else bits


def _place(made: Any, rows: Any, columns: Any, scale: Any, least: Any, out: Any) -> None:
    channels = out.shape[2]
    for y in range(out.shape[0]):
        row = made[(rows[y] + scale - 1) // scale]
        for x in range(out.shape[1]):
            first = (rows[y] % scale * scale + columns[x] % scale) * channels
            place = row[(columns[x] + scale - 1) // scale, first : first + channels]
            for k in range(channels):
                out[y, x, k] = _rectified(place[k], least)


def _pool(made: Any, rows: Any, columns: Any, scale: Any, least: Any, out: Any) -> None:
    height, width, channels = made.shape
    for y in range(out.shape[0]):
        above = made[2 * rows[y]]
        below = made[min(2 * rows[y] + 1, height - 1)]
        for x in range(out.shape[1]):
            left, right = 2 * columns[x], min(2 * columns[x] + 1, width - 1)
            for k in range(channels):
                out[y, x, k] = max(
                    max(_rectified(above[left, k], least), _rectified(above[right, k], least)),
                    max(_rectified(below[left, k], least), _rectified(below[right, k], least)),
                )
