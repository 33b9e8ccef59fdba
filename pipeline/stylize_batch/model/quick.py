"""Networks rewritten for inference: the same functions with fewer multiplications, and on a GPU with fewer passes.

A picture costs little else than its 3×3 convolutions, and those run at the speed of matrix products. So what counts is
how many multiplications there are:

- After nearest ×2 up-sampling most of the nine products of a pixel share their factor: four 2×2 convolutions of the
  small map, one for each place of a pixel in its cell, give the same sums with four instead of nine (`SubPixelConv2d`).
- Winograd's F(4×4, r×r) takes 2.25 per place instead of 9 for a 3×3 kernel, and 1.6 instead of 4 for a 2×2 one
  (`winograd`).
- For the three channels of a picture the nine products of a place are made side by side (`to_rgb`).

On a GPU, whose arithmetic is fast, what stands between convolutions counts as much: one kernel does all of it (`fused`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from stylize_batch.model.chain import Chain
from stylize_batch.model.convolution import EnlargingConv2d, ReflectedConv2d, SubPixelConv2d
from stylize_batch.model.kernels import tried

if TYPE_CHECKING:
    from stylize_batch.model.from_rgb import FromRgb
    from stylize_batch.model.fused import FusedConv2d

WINOGRAD_CHANNELS = 32
"""Channels, of the input and of the output, from which on Winograd's way is the faster one on a CPU."""


def quicken(network: nn.Module) -> None:
    """Rewrite a network's convolutions for inference, in place; it computes the same, but for rounding.

    What is compiled for a CPU is for float32: smaller types would lose digits.
    """
    for name, conv in list(network.named_children()):
        if isinstance(conv, ReflectedConv2d):
            plain = SubPixelConv2d(conv) if isinstance(conv, EnlargingConv2d) else conv
            compiles = conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32
            network.add_module(name, _compiled(conv, plain) if compiles and has_fast_groups() else plain)
    if isinstance(network, Chain):
        _fuse(network)


def _fuse(chain: Chain) -> None:
    """Have each convolution on a GPU write the next one's input."""
    convs = {
        name: conv
        for name, conv in chain.named_children()
        if isinstance(conv, ReflectedConv2d | SubPixelConv2d) and conv.weight.is_cuda
    }
    if not convs:
        return
    weight = next(iter(convs.values())).weight
    kind = fused(weight.device, weight.dtype)
    if kind is None:
        return
    from stylize_batch.model.from_rgb import suits  # which can be imported where the kernel works

    for (name, conv), following in zip(convs.items(), [*convs.values(), None][1:], strict=True):
        narrow = from_rgb(weight.device, weight.dtype) if suits(conv) else None
        chain.add_module(name, (narrow or kind)(conv, following))
    chain.fused = True


@tried
def fused(device: torch.device, dtype: torch.dtype) -> type[FusedConv2d] | None:
    """Return a convolution whose kernel does what stands between it and the next one, where it works."""
    from stylize_batch.model.fused import FusedConv2d, right

    return FusedConv2d if right(FusedConv2d, device, dtype) else None


@tried
def from_rgb(device: torch.device, dtype: torch.dtype) -> type[FromRgb] | None:
    """Return the same for a convolution of a picture's three channels."""
    from stylize_batch.model.from_rgb import FromRgb
    from stylize_batch.model.fused import right

    return FromRgb if right(FromRgb, device, dtype) else None


def _compiled(conv: ReflectedConv2d, plain: ReflectedConv2d | SubPixelConv2d) -> nn.Module:
    # Not above: where a GPU trains, Numba need not be installed.
    from stylize_batch.model.to_rgb import ToRgb
    from stylize_batch.model.winograd import Winograd

    if (conv.kernel_size, conv.stride) != ((3, 3), (1, 1)):
        return plain
    if min(conv.weight.shape[:2]) >= WINOGRAD_CHANNELS:
        scale = 1 if plain is conv else 2
        return Winograd(plain, plain.weight, plain.bias, scale=scale, relu=conv.relu, pool=conv.pool)
    if conv.out_channels == 3 and not (conv.relu or conv.pool):
        return ToRgb(conv.weight, conv.bias)
    return plain


def has_fast_groups() -> bool:
    """Whether oneDNN compiles convolutions in groups for this processor."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
