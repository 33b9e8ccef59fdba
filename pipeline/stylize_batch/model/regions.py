"""Spatial control (paper §7.3): each style's share of every place, on the grid of any layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stylize_batch.model.tiling import Box


class Regions:
    """Where each style goes (§7.3, spatial control): soft masks, or one region that is everywhere."""

    def __init__(self, masks: Tensor | None) -> None:
        """Take masks uint8 [N, K, H, W] of the contents' size (255 is this style here), or None."""
        self._masks = masks
        self.count = 1 if masks is None else masks.shape[1]

    def weights(self, box: Box, stride: int, like: Tensor) -> list[Tensor | None]:
        """Return each region's share of every cell in a box, float32 [N, 1, h, w]; None is everywhere.

        Masks are averaged over a cell's pixels, and divided by their sum where it is above 1; below, the rest
        is the content's own.

        Args:
            box: part of the picture.
            stride: pixels of a cell.
            like: a tensor on the device wanted.
        """
        if self._masks is None:
            return [None]
        whole = Box(0, 0, *self._masks.shape[2:])
        cover = box.crop(self._masks, whole).to(like.device).float() / 255
        cells = F.avg_pool2d(cover, stride, ceil_mode=True)
        shares = cells / cells.sum(1, keepdim=True).clamp(min=1)
        return list(shares.split(1, dim=1))
