"""The losses of the paper (Eq. 11-13), per sample, on the taps of the loss network φ."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stylize_batch.model.adain import Statistics, statistics


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per sample between features, [N, C, h, w] each; returns float32 [N].

    With target t it is the content loss (Eq. 12); with target φ₄(content), the content distance of Fig. 3.
    """
    return (features.float() - target.float()).square().flatten(1).mean(1)


def style_loss(taps: Sequence[Tensor], targets: Sequence[Statistics]) -> Tensor:
    """Style loss per sample (Eq. 13): Σ over layers of MSE of μ plus MSE of σ; returns float32 [N].

    Args:
        taps: φ's activations of the output at relu1_1 … relu4_1, each [N, C, h, w].
        targets: the style's statistics at the same layers, each [N, C] (or [1, C]).
    """
    losses: list[Tensor] = []
    for features, target in zip(taps, targets, strict=True):
        found = statistics(features)
        losses.append((found.mean - target.mean).square().mean(1) + (found.std - target.std).square().mean(1))
    return sum(losses[1:], losses[0])
