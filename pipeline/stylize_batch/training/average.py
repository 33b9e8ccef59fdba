"""The running mean of the weights, which is better than they are at any moment, and what a training makes a model of."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class RunningMean:
    """Follows weights while they are trained.

    Attributes:
        values: the mean by the weights' names, on their device.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """Begin with what the weights are; `decay` is the share of the mean that a step keeps."""
        self._weights, self._decay = weights, decay
        self.values = _copies(weights)

    @torch.no_grad()
    def follow(self, updates: int, sound: Tensor) -> None:
        """Move a little after a step, if it was sound; early on, after few updates, the mean forgets faster."""
        step = 1 - min(self._decay, updates / (updates + 9))
        for name, weight in self._weights.items():
            mean = self.values[name]
            mean.copy_(mean.lerp(weight, step).where(sound > 0, mean))

    @contextmanager
    def lent(self) -> Generator[None]:
        """Have the weights be their mean for a while."""
        own = _copies(self._weights)
        assign(self._weights, self.values)
        try:
            yield
        finally:
            assign(self._weights, own)


@torch.no_grad()
def assign(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give weights the values of the same names, in place and from whatever device."""
    for name, weight in weights.items():
        weight.copy_(values[name])


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}
