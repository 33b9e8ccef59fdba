"""The compact network: a small trained encoder, AdaIN at three scales, and a decoder. No VGG at inference.

Statistics are those of encoder features only, so a picture of any size needs one look at the whole content, as the
paper's network does; skip connections carry the finer scales past the narrow middle (§8 proposes skips).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from stylize_batch.model.architecture import (
    COMPACT_DECODER_BLOCKS,
    Architecture,
    Convolution,
    compact_decoder,
    compact_encoder,
)


class _Network(nn.Module):
    architecture: Architecture = "compact"

    def __init__(self, plan: Sequence[Convolution], strided: Sequence[str] = ()) -> None:
        super().__init__()
        for conv in plan:
            stride, margin = 2 if conv.name in strided else 1, conv.kernel // 2
            layer = nn.Conv2d(
                conv.channels_in, conv.channels_out, conv.kernel, stride, margin, padding_mode="reflect"
            )
            self.add_module(conv.name, layer)

    def convolve(self, name: str, x: Tensor) -> Tensor:
        """Convolve with reflection padding: the output has ⌈size / stride⌉."""
        return self.get_submodule(name)(x)

    def residual(self, name: str, x: Tensor) -> Tensor:
        """Add what two convolutions make of the input."""
        return x + self.convolve(f"{name}_2", self.convolve(f"{name}_1", x).relu_())


class CompactEncoder(_Network):
    """Three strided convolutions and a residual block.

    Input: float [N, 3, H, W], RGB in 0..1, H and W ≥ `architecture.MIN_SIDE`.
    """

    def __init__(self) -> None:
        super().__init__(compact_encoder(), strided=("to_half", "to_quarter", "to_eighth"))

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what AdaIN works on: [N, 32, ⌈H/2⌉, ⌈W/2⌉], [N, 64, ⌈H/4⌉, ⌈W/4⌉] and [N, 96, ⌈H/8⌉, ⌈W/8⌉]."""
        half = self.convolve("to_half", images - 0.5).relu_()
        quarter = self.convolve("to_quarter", half).relu_()
        eighth = self.convolve("to_eighth", quarter).relu_()
        return half, quarter, self.residual("block", eighth)


class CompactDecoder(_Network):
    """Residual blocks at 1/8, then up by nearest ×2, each step adding the finer features; no normalization.

    The last step is a sub-pixel convolution. Output: [N, 3, 2h, 2w] for finest features of h × w, RGB around 0..1.
    """

    def __init__(self) -> None:
        super().__init__(compact_decoder())

    def forward(self, half: Tensor, quarter: Tensor, eighth: Tensor) -> Tensor:
        """Decode features of the three scales, as `CompactEncoder.features` returns them, to images."""
        x = eighth
        for index in range(1, COMPACT_DECODER_BLOCKS + 1):
            x = self.residual(f"block{index}", x)
        x = _enlarge(self.convolve("to_quarter", x), quarter)
        x = x + self.convolve("smooth_quarter", F.relu(x)).relu_()
        x = _enlarge(self.convolve("to_half", x), half)
        x = x + self.convolve("smooth_half", F.relu(x)).relu_()
        return F.pixel_shuffle(self.convolve("pixels", x), 2) + 0.5


def _enlarge(coarse: Tensor, fine: Tensor) -> Tensor:
    """Enlarge to the finer features' size, and add them."""
    large = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
    return large[:, :, : fine.shape[2], : fine.shape[3]] + fine
