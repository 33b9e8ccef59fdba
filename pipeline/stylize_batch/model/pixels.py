"""Pictures as bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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


def to_array(image: Tensor) -> npt.NDArray[np.uint8]:
    """Turn float [3, H, W] around 0..1 into uint8 RGB [H, W, 3]."""
    return image.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
