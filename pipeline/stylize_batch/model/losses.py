"""The losses of the paper (Eq. 11-13), per sample, on the taps of the loss network φ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stylize_batch.model.adain import Moments, Statistics, merged, moments, statistics


class Losses(NamedTuple):
    """Losses per image on φ, float32 [N], of the picture clamped to 0..1, before the codec."""

    content_loss: Tensor
    style_loss: Tensor
    content_distance: Tensor


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per sample between features, [N, C, h, w] each; returns float32 [N].

    With target t it is the content loss (Eq. 12); with target φ₄(content), the content distance of Fig. 3.
    """
    return (features.float() - target.float()).square().mean((1, 2, 3))


def style_loss(taps: Sequence[Tensor], targets: Sequence[Statistics]) -> Tensor:
    """Style loss per sample (Eq. 13): Σ over layers of MSE of μ plus MSE of σ; returns float32 [N].

    Args:
        taps: φ's activations of the output at relu1_1 … relu4_1, each [N, C, h, w].
        targets: the style's statistics at the same layers, each [N, C] (or [1, C]).
    """
    return statistics_distance([statistics(features) for features in taps], targets)


def statistics_distance(found: Sequence[Statistics], targets: Sequence[Statistics]) -> Tensor:
    """Style loss per sample (Eq. 13) of statistics found at the layers, each [N, C]; returns float32 [N]."""
    losses = [
        (layer.mean - target.mean).square().mean(1) + (layer.std - target.std).square().mean(1)
        for layer, target in zip(found, targets, strict=True)
    ]
    return sum(losses[1:], losses[0])


class LossMeter:
    """The losses of pictures seen tile by tile, and region by region where masks divide them (§7.3)."""

    def __init__(self, regions: int) -> None:
        self._moments: list[list[Moments]] = [[] for _ in range(regions)]
        self._errors: Tensor | float = 0.0
        self._cells = 0
        self._pixels = 0

    def add(
        self,
        taps: Sequence[Tensor],
        weights: Sequence[Sequence[Tensor | None]],
        target: Tensor,
        content: Tensor,
    ) -> None:
        """Count a tile.

        Args:
            taps: φ's activations of the output at relu1_1 … relu4_1.
            weights: at each tap, each region's share of every cell, [N, 1, h, w]; None is everywhere.
            target: t on φ₄.
            content: φ₄(c).
        """
        for region, before in enumerate(self._moments):
            here = [moments(tap, shares[region]) for tap, shares in zip(taps, weights, strict=True)]
            self._moments[region] = merged(before, here)
        cells = target.shape[2] * target.shape[3]
        distances = torch.stack([feature_distance(taps[-1], other) for other in (target, content)])
        self._errors = self._errors + distances.double() * cells
        self._cells += cells
        self._pixels += taps[0].shape[2] * taps[0].shape[3]

    def losses(self, wanted: Sequence[Sequence[Statistics]]) -> Losses:
        """Return the losses, given each region's style statistics at the taps.

        The style loss is each region's times its share of the area; what no mask covers has none.
        """
        style = 0.0
        for found, targets in zip(self._moments, wanted, strict=True):
            share = (found[0].weight[:, 0] / self._pixels).float()
            style = style + share * statistics_distance([layer.statistics() for layer in found], targets)
        assert isinstance(self._errors, Tensor)
        assert isinstance(style, Tensor)
        content_loss, content_distance = (self._errors / self._cells).float()
        return Losses(content_loss, style, content_distance)
