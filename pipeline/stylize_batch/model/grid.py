"""The pattern that a decoder's up-sampling leaves in pictures where nothing keeps it from that."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_energy(images: Tensor) -> Tensor:
    """Return the power of what repeats with cells of 2×2 pixels in pictures [N, 3, H, W], a mean square; H and W ≥ 16.

    Convolutions that make several pixels of a place leave such a pattern (Odena et al. 2016), and it lowers the style
    loss. Of each window of 8×8 cells this takes the mean of what its pixels differ by within a cell; a picture's own
    details cancel out there.
    """
    whole = images[:, :, : images.shape[2] // 2 * 2, : images.shape[3] // 2 * 2]
    a, b, c, d = (whole[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1))
    details = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 4
    return F.avg_pool2d(details.flatten(0, 1), 8).square().mean() * len(details)
