"""What stands between two convolutions on a GPU, in one pass over the map.

cuDNN convolves without bias and without padding. One kernel then reads what it made and writes the next convolution's
input, border included: bias, ReLU, pooling, the places of up-sampling and the border, each of which would be one or two
passes over the map of its own. What comes before the first one, from bytes to numbers or AdaIN, is done likewise. At the
full size a pass takes as long as much of a convolution.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from stylize_batch.model.adain import AffineMap
from stylize_batch.model.chain import Framed, Given, Mapped
from stylize_batch.model.convolution import EnlargingConv2d, ReflectedConv2d, SubPixelConv2d
from stylize_batch.model.kernels import launching

ALIGNMENT = 8
"""Channels are made a multiple of this with zeros: tensor cores take 16 bytes of them at once."""

NUMBERS = 2048
"""Numbers of the map that a program of the kernel writes."""

CHANNELS = 128
"""At most so many channels of a place are one program's."""

CELL_CHANNELS = 16
"""At most so many channels of a 2×2 cell's four places come from one 4×4 kernel.

A picture's three channels leave most of a tensor core idle, and each place reads its whole neighborhood: so a cell costs
little more than one of its places.
"""


class Border(NamedTuple):
    """What a convolution sees.

    Attributes:
        channels: with those added for alignment.
        reflect: whether the border is reflected or replicated.
    """

    channels: int
    reflect: bool

    @classmethod
    def of(cls, conv: ReflectedConv2d | SubPixelConv2d) -> Border:
        """Return what a convolution as trained, or one of the small map, sees."""
        return cls(_aligned(conv.weight.shape[1]), isinstance(conv, ReflectedConv2d))


class FusedConv2d(nn.Module):
    """A 3×3 convolution, or four 2×2 ones of the small map, and what stands between it and the next one.

    [N, C, h, w] → [N, K, s h, s w], or pooled to half the size; `Framed` for the next one, where there is one. Bytes
    count as 255ths.
    """

    weight: Tensor
    bias: Tensor | None
    cells: Tensor | None

    def __init__(
        self, conv: ReflectedConv2d | SubPixelConv2d, following: ReflectedConv2d | SubPixelConv2d | None
    ) -> None:
        """Take over a convolution's weights; the one that follows sees the result."""
        super().__init__()
        made, channels = conv.weight.shape[:2]
        weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, -channels % ALIGNMENT, 0, -made % ALIGNMENT))
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        self._scale = 2 if isinstance(conv, SubPixelConv2d) else 1
        self._channels = made // self._scale**2
        self._relu, self._pool = conv.relu, isinstance(conv, ReflectedConv2d) and conv.pool
        self.register_buffer("cells", None)
        if isinstance(conv, ReflectedConv2d) and 4 * made <= CELL_CHANNELS and not self._pool:
            self.cells = _of_cells(self.weight, made)
        self._sees = Border.of(conv)
        self._next = following and Border.of(following)

    def forward(self, input: Given) -> Tensor | Framed:
        """Convolve."""
        whole = self._framed(input)
        height, width = (self._scale * (side - 2) for side in whole.shape[2:])
        if self._pool:
            height, width = -(-height // 2), -(-width // 2)
        if self.cells is not None and height % 2 == width % 2 == 0:
            made, scale, overlap = F.conv2d(whole, self.cells, stride=2), 2, False
        else:
            made, scale, overlap = F.conv2d(whole, self.weight), self._scale, True
        found = _written(
            made, self.bias, self._channels, height, width, self._next,
            scale=scale, overlap=overlap, relu=self._relu, pool=self._pool,
        )  # fmt: skip
        return self._finished(found)

    def _framed(self, input: Given) -> Tensor:
        """Return what the convolution sees of its input, [N, C′, h + 2, w + 2]."""
        if isinstance(input, Framed):
            return input.whole
        map, affine = input if isinstance(input, Mapped) else (input, None)
        _, channels, height, width = map.shape
        return _written(
            map, None, channels, height, width, self._sees, affine=affine, dtype=self.weight.dtype
        )

    def _finished(self, found: Tensor) -> Tensor | Framed:
        return Framed(found, self._channels) if self._next else found


def right(kind: type[FusedConv2d], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions, the first of them of a kind, do on a GPU what they should."""
    with torch.random.fork_rng([]):
        first = ReflectedConv2d(3, 64, relu=True)
        second = ReflectedConv2d(64, 5, relu=True, pool=True)
        third = EnlargingConv2d(5, 6, relu=True)
        last = ReflectedConv2d(6, 3)
    images = torch.linspace(0, 255, 3 * 11 * 7).view(1, 3, 11, 7).to(device, dtype) / 16
    for conv in (first, second, third, last):
        conv.to(device, dtype)  # pyright: ignore[reportCallIssue]
    large = SubPixelConv2d(third)
    quick = (
        kind(first, second),
        FusedConv2d(second, large),
        FusedConv2d(large, last),
        FusedConv2d(last, None),
    )
    affine = AffineMap(*torch.linspace(-1, 1, 6, device=device).view(2, 1, 3, 1, 1))
    return all(
        torch.allclose(
            quick[3](quick[2](quick[1](quick[0](given)))),
            last(third(second(first(seen)))),
            rtol=0.02,
            atol=0.02,
        )
        for given, seen in (
            (Mapped(images, affine), affine.apply(images)),
            (images.byte(), images.byte().to(dtype) / 255),
        )
    )


def _of_cells(weight: Tensor, made: int) -> Tensor:
    """Return what makes the four places of a cell, row by row, from the 4×4 places that they see together."""
    channels = weight.shape[1]
    cells = weight.new_zeros(CELL_CHANNELS, channels, 4, 4)
    for place in range(4):
        row, column = place // 2, place % 2
        cells[place * made : (place + 1) * made, :, row : row + 3, column : column + 3] = weight[:made]
    return cells.contiguous(memory_format=torch.channels_last)


def _aligned(channels: int) -> int:
    return channels + -channels % ALIGNMENT


def room(
    like: Tensor,
    channels: int,
    height: int,
    width: int,
    border: Border | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return memory for a map as the next convolution sees it, of a tensor's samples, and of its type or another."""
    frame = 0 if border is None else 1
    return torch.empty(
        (len(like), channels if border is None else border.channels, height + 2 * frame, width + 2 * frame),
        dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last,
    )  # fmt: skip


def _written(
    made: Tensor,
    bias: Tensor | None,
    channels: int,
    height: int,
    width: int,
    border: Border | None,
    *,
    scale: int = 1,
    overlap: bool = True,
    relu: bool = False,
    pool: bool = False,
    affine: AffineMap | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the map [N, channels, height, width] of what a convolution made, as the next one sees it.

    Args:
        made: [N, ≥ channels, height, width], twice that size where it is pooled, and
            [N, ≥ 4 channels, height / 2, width / 2] where the places of a cell are to be brought together, with one
            row and one column more where they overlap.
        bias: of its channels, not yet added.
        channels: of the map.
        height: of the map.
        width: of the map.
        border: what to write around it; None leaves the map as it is.
        scale: places on a cell's side.
        overlap: whether a cell's odd places were made one place further than its even ones.
        relu: whether to rectify.
        pool: whether to keep the highest of 2×2 places, of one or two at an odd border.
        affine: of each sample and channel, applied before all else, in float32.
        dtype: of what is returned; None is the map's. Of bytes 255 becomes 1.
    """
    samples, _, rows, columns = made.shape
    by_sample, by_channel, by_row, by_column = made.stride()
    out = room(made, channels, height, width, border, dtype)
    gain, offset = (made, made) if affine is None else (each.contiguous() for each in affine)
    written = out.shape[1]
    block_channels = min(CHANNELS, triton.next_power_of_2(written))
    block_places = NUMBERS // block_channels
    places = out.shape[2] * out.shape[3]
    blocks = triton.cdiv(places, block_places)
    write: Any = _write[samples * blocks, triton.cdiv(written, block_channels)]  # its types are those inside
    with launching(made):
        write(
            made, made if bias is None else bias, gain, offset, out, by_sample, by_channel, by_row, by_column,
            places, blocks, height, width, rows, columns,
            channels=channels, written=written, scale=scale, overlap=int(overlap), pool=pool, relu=relu,
            biased=bias is not None,
            affine=affine is not None, of_bytes=made.dtype == torch.uint8,
            frame=0 if border is None else 1, reflect=int(border is not None and border.reflect),
            block_places=block_places, block_channels=block_channels,
        )  # fmt: skip
    return out


# Sizes vary from picture to picture: a kernel compiled for what divides them would be compiled again and again.
@triton.jit(do_not_specialize=["places", "blocks", "height", "width", "rows", "columns"])
def _write(
    made: tl.tensor,
    bias: tl.tensor,
    gain: tl.tensor,
    offset: tl.tensor,
    out: tl.tensor,
    by_sample: tl.tensor,
    by_channel: tl.tensor,
    by_row: tl.tensor,
    by_column: tl.tensor,
    places: tl.tensor,
    blocks: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    channels: tl.constexpr,
    written: tl.constexpr,
    scale: tl.constexpr,
    overlap: tl.constexpr,
    pool: tl.constexpr,
    relu: tl.constexpr,
    biased: tl.constexpr,
    affine: tl.constexpr,
    of_bytes: tl.constexpr,
    frame: tl.constexpr,
    reflect: tl.constexpr,
    block_places: tl.constexpr,
    block_channels: tl.constexpr,
):
    # Offsets are int64 where maps can pass 2³¹ numbers.
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    place = program % blocks * block_places + tl.arange(0, block_places)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    row = inside(place // (width + 2 * frame) - frame, height, reflect)
    column = inside(place % (width + 2 * frame) - frame, width, reflect)
    there = (place < places)[:, None]
    known = there & (channel < channels)[None, :]
    made += sample * by_sample
    across = (channel * by_channel)[None, :]
    if pool:
        upper, lower = 2 * row, tl.minimum(2 * row + 1, rows - 1)
        left, right = 2 * column, tl.minimum(2 * column + 1, columns - 1)
        value = _highest(
            _highest(
                _at(made, upper, left, by_row, by_column, across, known),
                _at(made, upper, right, by_row, by_column, across, known),
            ),
            _highest(
                _at(made, lower, left, by_row, by_column, across, known),
                _at(made, lower, right, by_row, by_column, across, known),
            ),
        )
    elif scale == 2:
        which = (row % 2 * 2 + column % 2) * channels
        made += which[:, None] * by_channel
        cell_row, cell_column = row // 2 + row % 2 * overlap, column // 2 + column % 2 * overlap
        value = _at(made, cell_row, cell_column, by_row, by_column, across, known)
    else:
        value = _at(made, row, column, by_row, by_column, across, known)
    if of_bytes:
        value = tl.div_rn(value, 255.0)
    if affine:
        number = sample * channels + channel
        scale_of = tl.load(gain + number, channel < channels, 0.0)
        shift_of = tl.load(offset + number, channel < channels, 0.0)
        value = value * scale_of[None, :] + shift_of[None, :]
    if biased:
        value += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)[None, :]
    if relu:
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    to = out + (sample * places + place)[:, None] * written + channel[None, :]
    tl.store(to, value, there & (channel < written)[None, :])


@triton.jit
def inside(at: tl.tensor, length: tl.tensor, reflect: tl.constexpr):
    """Return which of a map's rows or columns stands at a place that may lie one beyond its border."""
    at = tl.where(at < 0, reflect, at)
    return tl.where(at >= length, length - 1 - reflect, at)


@triton.jit
def _at(
    made: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    by_row: tl.tensor,
    by_column: tl.tensor,
    across: tl.tensor,
    known: tl.tensor,
):
    """Return the channels of places; those that are not known are zero."""
    offset = row.to(tl.int64) * by_row + column * by_column
    return tl.load(made + (offset[:, None] + across), known, 0.0).to(tl.float32)


@triton.jit
def _highest(one: tl.tensor, other: tl.tensor):
    """Return the higher one, or NaN: a picture that has one is told to its user."""
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)
