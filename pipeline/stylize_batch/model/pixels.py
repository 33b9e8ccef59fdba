"""Pictures as bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images [N, 3, h, w] in 0..1 as uint8, and whether all numbers of each are numbers, bool [N]."""
    if images.is_cuda and images.is_contiguous(memory_format=torch.channels_last):
        try:
            from stylize_batch.model import fused_pixels
        except ImportError:  # only torch's CUDA builds come with Triton
            pass
        else:
            if fused_pixels.works(images.device, images.dtype):
                return fused_pixels.to_bytes(images)
    return plain_bytes(images)


def plain_bytes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same, on any device."""
    return (images.float() * 255).round().byte(), ~images.isnan().flatten(1).any(1)
