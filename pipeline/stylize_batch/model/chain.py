"""Networks of convolutions one after the other, whose maps may come with the border that the next one sees."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn


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


class Chain(nn.Module):
    """Its children are convolutions, each of which takes what the one before makes: a map, or a `Framed` one."""

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the map that each convolution makes."""
        made = x
        for conv in self.children():
            made = conv(made)
            yield made.map if isinstance(made, Framed) else made

    def forward(self, x: Tensor) -> Tensor:
        """Return the last convolution's map."""
        return functools.reduce(lambda _, found: found, self.maps(x), x)
