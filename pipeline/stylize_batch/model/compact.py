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
from stylize_batch.model.convolution import ReflectedConv2d


class _Network(nn.Module):
    architecture: Architecture = "compact"

    def __init__(self, plan: Sequence[Convolution]) -> None:
        super().__init__()
        for conv in plan:
            self.add_module(conv.name, _layer(conv))

    def convolve(self, name: str, x: Tensor) -> Tensor:
        """Convolve with reflection padding: the output has ⌈size / stride⌉."""
        return self.get_submodule(name)(x)

    def residual(self, name: str, x: Tensor) -> Tensor:
        """Add what two convolutions make of the input."""
        return x + self.convolve(f"{name}_2", self.convolve(f"{name}_1", x))


def _layer(conv: Convolution) -> nn.Module:
    # `to_…` halves the size, or with a 1×1 kernel leads to a finer scale's channels; `…_1` is the first of a block's two.
    down = conv.name.startswith("to_") and conv.kernel > 1
    return ReflectedConv2d(
        conv.channels_in,
        conv.channels_out,
        conv.kernel,
        stride=2 if down else 1,
        relu=down or conv.name.startswith("smooth_") or conv.name.endswith("_1"),
    )


class CompactEncoder(_Network):
    """Three strided convolutions and a residual block.

    Input: float [N, 3, H, W], RGB in 0..1, H and W ≥ `architecture.MIN_SIDE`.
    """

    def __init__(self) -> None:
        super().__init__(compact_encoder())

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what AdaIN works on: [N, 32, ⌈H/2⌉, ⌈W/2⌉], [N, 64, ⌈H/4⌉, ⌈W/4⌉] and [N, 96, ⌈H/8⌉, ⌈W/8⌉]."""
        half = self.convolve("to_half", images - 0.5)
        quarter = self.convolve("to_quarter", half)
        eighth = self.convolve("to_eighth", quarter)
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
        x = x + self.convolve("smooth_quarter", F.relu(x))
        x = _enlarge(self.convolve("to_half", x), half)
        x = x + self.convolve("smooth_half", F.relu(x))
        # Of each place the four pixels by row, column and channel: with channels last, pairs of pixels are copied.
        places = self.convolve("pixels", x).permute(0, 2, 3, 1).unflatten(3, (2, 2, 3))
        pixels = places.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
        return pixels + 0.5


def _enlarge(coarse: Tensor, fine: Tensor) -> Tensor:
    """Enlarge to the finer features' size, and add them."""
    large = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
    return large[:, :, : fine.shape[2], : fine.shape[3]] + fine
