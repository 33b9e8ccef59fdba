"""Adaptive instance normalization: channel statistics and the affine map they define (paper §5, Eq. 8; §7.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, NestedIOFunction

from stylize_batch.model.kernels import tried

EPSILON = 1e-5
"""Added to the variance before the square root, for content and style alike."""

MOST_PLACES = 64 * 64
"""Of a map whose statistics one kernel finds: a program of it sums all places of its channels, so that no batch changes a
bit, and of more would be slow."""


class Statistics(NamedTuple):
    """Mean μ and standard deviation σ per sample and channel, each float32 [N, C]."""

    mean: Tensor
    std: Tensor


class Moments(NamedTuple):
    """What statistics are made of; those of two parts of a picture merge into those of both, in float64.

    Attributes:
        weight: positions seen, or the sum of their weights, [N, 1].
        mean: [N, C].
        variance: biased, [N, C].
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both parts together (Chan et al. 1979)."""
        weight = self.weight + other.weight
        share = other.weight / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        step = other.mean - self.mean
        variance = self.variance + share * (other.variance - self.variance) + share * (1 - share) * step**2
        return Moments(weight, self.mean + share * step, variance)

    def statistics(self, correction: int = 0) -> Statistics:
        """Return μ and σ = √(variance + ε); the variance divides by n, or by n − 1 with a correction of 1.

        A region of at most one position has no unbiased variance, and keeps the biased one; of one to two positions, which
        soft masks can leave, it is divided by one.
        """
        variance = self.variance * (self.weight / (self.weight - correction).clamp(min=1)).clamp(min=1)
        return Statistics(self.mean.float(), torch.sqrt(variance + EPSILON).float())


class _MeanAndVariance(torch.autograd.Function):
    """Mean and biased variance over space of a map [N, C, h, w], float32, differentiated as one affine map of it.

    Autograd goes five times over the map and mixes memory formats; and `torch.var_mean` takes ten times as long on a CPU
    where channels lie last.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.device.type == "cpu":
            from stylize_batch.model.channel_moments import mean_and_variance  # Numba, which no GPU needs

            mean, variance = mean_and_variance(x.detach())
        else:
            variance, mean = torch.var_mean(x, (2, 3), correction=0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: NestedIOFunction, *grad_outputs: Tensor) -> Tensor:
        by_mean, by_variance = grad_outputs
        x, mean = ctx.saved_tensors
        scale = by_variance * (2 / x[0, 0].numel())
        shift = by_mean / x[0, 0].numel() - scale * mean
        return _mapped(x, scale[:, :, None, None], shift[:, :, None, None])


def moments(features: Tensor, weights: Tensor | None = None) -> Moments:
    """Return the moments over space of features [N, C, h, w], each position counting `weights`, [N, 1, h, w]."""
    if weights is None:
        mean, variance = _mean_and_variance(features)
        weight = torch.full_like(mean[:, :1], features[0, 0].numel())
    else:
        x = features.float()
        # In two steps: a sum of one number would be taken in parts, as many as there are cores.
        weight = weights.double().sum(3).sum(2)
        shares = weights / weight.float().clamp(min=torch.finfo(torch.float32).tiny)[:, :, None, None]
        mean = (x * shares).sum((2, 3))
        variance = ((x - mean[:, :, None, None]).square() * shares).sum((2, 3))
    return Moments(weight.double(), mean.double(), variance.double())


def _mean_and_variance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over space, each float32 [N, C]."""
    # Training's compiler makes a kernel of torch's own operators, and knows no layout of maps that another one needs.
    compiling = torch.compiler.is_compiling()
    suits = features.is_cuda and features.dtype.itemsize == 2 and features[0, 0].numel() <= MOST_PLACES
    if suits and not (features.requires_grad or compiling):
        kernel = moments_of_halves(features.device, features.dtype)
        if kernel is not None:
            return kernel(features)
    as_they_are = features.device.type == "cpu" and features.dtype == torch.bfloat16
    return _MeanAndVariance.apply(features if as_they_are else features.float())


@tried
def moments_of_halves(
    device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    from stylize_batch.model.half_moments import mean_and_variance

    features = torch.linspace(-1, 2, 2 * 40 * 9 * 15).view(2, 9, 15, 40).to(device, dtype).permute(0, 3, 1, 2)
    found = mean_and_variance(features)
    expected = torch.var_mean(features.float(), (2, 3), correction=0)[::-1]
    right = all(torch.allclose(*each, atol=1e-4) for each in zip(found, expected, strict=True))
    return mean_and_variance if right else None


def merged(before: Sequence[Moments], more: Sequence[Moments]) -> list[Moments]:
    """Merge the moments of each layer with those of another part of the picture; nothing before is no part."""
    return [one.merge(other) for one, other in zip(before, more, strict=True)] if before else list(more)


def statistics(features: Tensor, correction: int = 0) -> Statistics:
    """Return μ and σ over space of features [N, C, h, w], in float32; see `Moments.statistics`."""
    return moments(features).statistics(correction)


class AffineMap(NamedTuple):
    """The map t = scale ∘ f(c) + shift; each float32, [N, C, 1, 1], or [N, C, h, w] where places differ."""

    scale: Tensor
    shift: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """Map features [N, C, h, w]; the result keeps their dtype and memory format.

        Computed in float32, the type of scale and shift: on flat contents they are in the thousands and nearly cancel.
        """
        return _mapped(features, self.scale, self.shift)


def _mapped(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale ∘ features + shift, computed in float32, in the type of the features."""
    constant = scale.shape == shift.shape == (*features.shape[:2], 1, 1)
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in (features, scale, shift))
    if constant and not learns and features.device.type == "cpu" and features.dtype == torch.bfloat16:
        from stylize_batch.model.channel_affine import mapped_channels

        return mapped_channels(features, scale[:, :, 0, 0], shift[:, :, 0, 0])
    return torch.addcmul(shift, features, scale).to(features.dtype)


def adain(
    content: Statistics, style: Statistics, alpha: Tensor | float = 1.0, max_gain: float = math.inf
) -> AffineMap:
    """Return AdaIN with the content-style trade-off as one affine map of the content features.

    AdaIN(x, y) = σ(y)·(x − μ(x))/σ(x) + μ(y) (Eq. 8), and t = (1−α)·x + α·AdaIN(x, y) (Eq. 14), so
    scale = α·σ(y)/σ(x) + 1−α and shift = α·(μ(y) − μ(x)·σ(y)/σ(x)). With α = 0 it is exactly the identity.

    Args:
        content: statistics of the content features, [N, C] (or [1, C]).
        style: statistics of the style features, [N, C] (or [1, C]).
        alpha: one number in 0..1, or one per sample, [N].
        max_gain: a greater σ(y)/σ(x) counts as this one. The paper has no bound; without one, a channel that all but
            a place or two of the content leave silent becomes a spike there, and a blot in the picture.
    """
    a = torch.as_tensor(alpha, dtype=torch.float32, device=style.mean.device).reshape(-1, 1)
    ratio = (style.std / content.std).clamp(max=max_gain)
    scale, shift = a * ratio + (1 - a), a * (style.mean - content.mean * ratio)
    return AffineMap(scale[:, :, None, None], shift[:, :, None, None])


def over_regions(maps: Sequence[AffineMap], weights: Sequence[Tensor | None]) -> AffineMap:
    """Return Σ w_k·map_k + (1 − Σ w_k)·identity: each region gets its own map, and the rest stays (§7.3).

    Args:
        maps: one per region.
        weights: of each region, [N, 1, h, w], in 0..1, with a sum of at most 1; None is everywhere.
    """
    scale: Tensor | float = 1.0
    shift: Tensor | float = 0.0
    for each, weight in zip(maps, weights, strict=True):
        if weight is None:
            return each
        scale = scale + weight * (each.scale - 1)
        shift = shift + weight * each.shift
    assert isinstance(scale, Tensor)
    assert isinstance(shift, Tensor)
    return AffineMap(scale, shift)
