"""Adaptive instance normalization: channel statistics and the affine map they define (paper §5, Eq. 8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-5
"""Added to the variance before the square root, for content and style alike."""


class Statistics(NamedTuple):
    """Mean μ and standard deviation σ per sample and channel, each float32 [N, C]."""

    mean: Tensor
    std: Tensor


class AffineMap(NamedTuple):
    """The per-channel map t = scale ∘ f(c) + shift; each float32, [N, C]."""

    scale: Tensor
    shift: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """Map features [N, C, h, w]; the result keeps their dtype and memory format.

        Computed in float32: on flat contents scale and shift are in the thousands and nearly cancel.
        """
        scale, shift = self.scale[:, :, None, None], self.shift[:, :, None, None]
        return torch.addcmul(shift, features.float(), scale).to(features.dtype)


def statistics(features: Tensor, correction: int = 0) -> Statistics:
    """Return μ and σ = √(variance + ε) over space of features [N, C, h, w], in float32.

    The variance divides by n, or by n − 1 with a correction of 1.
    """
    variance, mean = torch.var_mean(features.float(), dim=(2, 3), correction=correction)
    return Statistics(mean, torch.sqrt(variance + EPSILON))


def adain(content: Statistics, style: Statistics, alpha: Tensor | float = 1.0) -> AffineMap:
    """Return AdaIN with the content-style trade-off as one affine map of the content features.

    AdaIN(x, y) = σ(y)·(x − μ(x))/σ(x) + μ(y) (Eq. 8), and t = (1−α)·x + α·AdaIN(x, y) (Eq. 14), so
    scale = α·σ(y)/σ(x) + 1−α and shift = α·(μ(y) − μ(x)·σ(y)/σ(x)). With α = 0 it is exactly the identity.

    Args:
        content: statistics of the content features, [N, C] (or [1, C]).
        style: statistics of the style features, [N, C] (or [1, C]).
        alpha: one number in 0..1, or one per sample, [N].
    """
    a = torch.as_tensor(alpha, dtype=torch.float32, device=style.mean.device).reshape(-1, 1)
    ratio = style.std / content.std
    return AffineMap(scale=a * ratio + (1 - a), shift=a * (style.mean - content.mean * ratio))
