"""Pictures of any size in bounded memory: which tiles a picture is cut into, and what each must see around it.

A convolution sees a few pixels around each place. A tile that is given more than that around it (its halo) has the
same features, away from its edges, as the whole picture has; so tiles equal the whole picture exactly. Tiles begin
at multiples of `STRIDE`, where the grids of all layers begin; at the picture's own edges there is no halo, and
the layers pad by reflection there as they would anyway.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

STRIDE = 8
"""Pixels of a cell of the coarsest features."""

PASS_PIXELS = 2**21
"""Pixels the network takes at once, halo included; larger pictures are tiled. Two of 1024 × 1024, one of 1920 × 1080."""


class Box(NamedTuple):
    """A part of a picture, in pixels; right and bottom are outside. It begins at multiples of `STRIDE`."""

    top: int
    left: int
    bottom: int
    right: int

    def grown(self, margin: int, height: int, width: int) -> Box:
        """Return the box with a margin around it, as far as the picture goes."""
        return Box(
            max(0, self.top - margin),
            max(0, self.left - margin),
            min(height, self.bottom + margin),
            min(width, self.right + margin),
        )

    def crop(self, values: Tensor, outer: Box, stride: int = 1) -> Tensor:
        """Return this box's part of values [..., h, w] that cover an outer box, a cell for `stride` pixels."""
        top, left = (self.top - outer.top) // stride, (self.left - outer.left) // stride
        bottom, right = -(-(self.bottom - outer.top) // stride), -(-(self.right - outer.left) // stride)
        return values[..., top:bottom, left:right]


def tiles(height: int, width: int, halo: int, pass_pixels: int) -> list[Box]:
    """Cut a picture into tiles that the network can take with a halo around each; a small one stays whole."""
    side = int(pass_pixels**0.5)
    if min(height, width) < side:  # a long picture: tiles of its whole shorter side
        side = pass_pixels // min(height, width)
    rows, columns = _cuts(height, side, halo), _cuts(width, side, halo)
    return [Box(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def _cuts(length: int, side: int, halo: int) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    inner = max(1, (side - 2 * halo) // STRIDE) * STRIDE
    step = -(-length // (-(-length // inner)) // STRIDE) * STRIDE  # as even as the grid allows
    return [(start, min(length, start + step)) for start in range(0, length, step)]
