"""The convolution of a picture's three channels on a GPU and what stands between it and the next one, in one kernel.

Of so few channels a convolution has little to compute and much to write: to write its map, read it and write it again
with a border takes longer than all else. So the products of matrices are made here, and what comes of them is written
once, as the next convolution's input. Their rows are the places of what is written: those of the border are computed
again. With more channels cuDNN's faster products save more than the passes cost (`fused`).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stylize_batch.model.chain import Framed, Given
from stylize_batch.model.convolution import ReflectedConv2d, SubPixelConv2d
from stylize_batch.model.fused import ALIGNMENT, FusedConv2d, inside, room
from stylize_batch.model.kernels import launching

PLACES = 128
"""A program's."""

CHANNELS = 64
"""Of the output: all are one program's."""

DEPTH = 32
"""Of the products of matrices that are summed: numbers of the input at a time."""


def suits(conv: ReflectedConv2d | SubPixelConv2d) -> bool:
    """Whether the kernel is for a convolution; of float32 it would be slower."""
    return (
        isinstance(conv, ReflectedConv2d)
        and conv.weight.dtype.itemsize == 2
        and conv.weight.shape[0] <= CHANNELS
        and conv.weight.shape[1] <= ALIGNMENT
        and not conv.pool
    )


class FromRgb(FusedConv2d):
    """A `FusedConv2d` of few channels whose map of products is never in memory."""

    matrix: Tensor

    def __init__(
        self, conv: ReflectedConv2d | SubPixelConv2d, following: ReflectedConv2d | SubPixelConv2d | None
    ) -> None:
        """Take over a convolution's weights; the one that follows sees the result."""
        super().__init__(conv, following)
        kernels = self.weight[: self._channels]
        matrix = kernels.permute(2, 3, 1, 0).reshape(-1, self._channels)
        # [9 C, K], zeros where a block would end beyond.
        self.register_buffer(
            "matrix", F.pad(matrix, (0, CHANNELS - self._channels, 0, -len(matrix) % DEPTH)).contiguous()
        )

    def forward(self, input: Given) -> Tensor | Framed:
        """Convolve."""
        given = self._framed(input)
        height, width = (side - 2 for side in given.shape[2:])
        out = room(given, self._channels, height, width, self._next)
        samples, written, rows, columns = out.shape
        places = samples * rows * columns
        convolve: Any = _convolve[triton.cdiv(places, PLACES),]  # its types are those inside
        with launching(given):
            convolve(
                given, self.matrix, given if self.bias is None else self.bias, out,
                places, rows, columns, height, width,
                given_channels=given.shape[1], channels=self._channels, written=written, depth=len(self.matrix),
                relu=self._relu, biased=self.bias is not None,
                frame=0 if self._next is None else 1, reflect=int(self._next is not None and self._next.reflect),
                block_places=PLACES, block_channels=CHANNELS, block_depth=DEPTH,
                num_warps=4, num_stages=2,
            )  # fmt: skip
        return self._finished(out)


# As in `fused`, sizes are not compiled in.
@triton.jit(do_not_specialize=["places", "rows", "columns", "height", "width"])
def _convolve(
    given: tl.tensor,
    matrix: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    places: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    given_channels: tl.constexpr,
    channels: tl.constexpr,
    written: tl.constexpr,
    depth: tl.constexpr,
    relu: tl.constexpr,
    biased: tl.constexpr,
    frame: tl.constexpr,
    reflect: tl.constexpr,
    block_places: tl.constexpr,
    block_channels: tl.constexpr,
    block_depth: tl.constexpr,
):
    to = tl.program_id(0) * block_places + tl.arange(0, block_places)
    channel = tl.arange(0, block_channels)
    place = tl.minimum(to, places - 1)
    row = inside(place // columns % rows - frame, height, reflect)
    column = inside(place % columns - frame, width, reflect)
    sample = (place // (rows * columns)).to(tl.int64)
    corner = given + ((sample * (height + 2) + row) * (width + 2) + column) * given_channels
    number = tl.arange(0, block_depth)
    total = tl.zeros((block_places, block_channels), tl.float32)
    for step in range(depth // block_depth):
        index = step * block_depth + number
        tap = index // given_channels
        offset = (tap // 3 * (width + 2) + tap % 3) * given_channels + index % given_channels
        left = tl.load(corner[:, None] + offset[None, :], (tap < 9)[None, :], 0.0)
        right = tl.load(matrix + index[:, None] * block_channels + channel[None, :])
        total = tl.dot(left, right, total, input_precision="ieee")
    if biased:
        total += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)[None, :]
    if relu:
        total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    there = (to < places)[:, None] & (channel < written)[None, :]
    tl.store(out + to.to(tl.int64)[:, None] * written + channel[None, :], total, there)
