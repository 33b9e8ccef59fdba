"""Networks of convolutions one after the other, whose maps may come with the border that the next one sees."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from stylize_batch.model.adain import AffineMap


class Framed(NamedTuple):
    """A map with what the next convolution sees around it.

    Attributes:
        whole: [N, C′, h + 2, w + 2], channels last; C′ ≥ C.
        channels: C: those beyond are zero.
    """

    whole: Tensor
    channels: int

    @property
    def map(self) -> Tensor:
        """The map itself, [N, C, h, w], a view."""
        return self.whole[:, : self.channels, 1:-1, 1:-1]


class Mapped(NamedTuple):
    """A map that is still to be mapped.

    Attributes:
        map: [N, C, h, w].
        affine: of each sample and channel, [N, C, 1, 1].
    """

    map: Tensor
    affine: AffineMap


Given = Tensor | Framed | Mapped
"""What a fused convolution takes."""


class Chain(nn.Module):
    """Its children are convolutions, each of which takes what the one before makes: a map, or a `Framed` one."""

    fused: bool = False
    """Whether the first one takes bytes too, of which 255 counts as 1, and a `Mapped` map."""

    def maps(self, x: Tensor | Mapped) -> Iterator[Tensor]:
        """Yield the map that each convolution makes."""
        made: Given = x
        for conv in self.children():
            found: Tensor | Framed = conv(made)
            yield found.map if isinstance(found, Framed) else found
            made = found

    def forward(self, x: Tensor | Mapped) -> Tensor:
        """Return the last convolution's map."""
        maps = self.maps(x)
        return functools.reduce(lambda _, found: found, maps, next(maps))


def is_fused(network: nn.Module) -> bool:
    """Whether a network is a chain whose first convolution takes bytes too, and a `Mapped` map."""
    return isinstance(network, Chain) and network.fused


def mapped(features: Tensor, affine: AffineMap, network: nn.Module) -> Tensor | Mapped:
    """Return an affine map of features as a network takes it; a fused one applies it itself."""
    if is_fused(network) and affine.scale.shape == affine.shift.shape == (*features.shape[:2], 1, 1):
        return Mapped(features, affine)
    return affine.apply(features)
