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
        """Map features [N, C, h, w]; the result keeps their dtype and memory format."""
        scale = self.scale[:, :, None, None].to(features.dtype)
        shift = self.shift[:, :, None, None].to(features.dtype)
        return torch.addcmul(shift, features, scale)


def statistics(features: Tensor) -> Statistics:
    """Return μ and σ = √(biased variance + ε) over space of features [N, C, h, w], in float32."""
    variance, mean = torch.var_mean(features.float(), dim=(2, 3), correction=0)
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


def interpolate(styles: Statistics, weights: Tensor) -> Statistics:
    """Blend the statistics of K styles (Eq. 15): [K, C] and weights [K], summing to 1, give [1, C].

    AdaIN is affine in (μ, σ), so AdaIN with blended statistics equals the blend of K AdaINs.
    """
    row = weights.to(styles.mean)[None]
    return Statistics(row @ styles.mean, row @ styles.std)
