"""Networks rewritten for inference: the same functions with fewer multiplications, and on a GPU with fewer passes.

A picture costs little else than its 3×3 convolutions, and those run at the speed of matrix products. So what counts is
how many multiplications there are:

- After nearest ×2 up-sampling most of the nine products of a pixel share their factor: four 2×2 convolutions of the
  small map, one for each place of a pixel in its cell, give the same sums with four instead of nine (`SubPixelConv2d`).
- Winograd's F(4×4, r×r) takes 2.25 per place instead of 9 for a 3×3 kernel, and 1.6 instead of 4 for a 2×2 one
  (`winograd`).
- For the three channels of a picture the nine products of a place are made side by side (`to_rgb`).

Where arithmetic is fast, what stands between convolutions counts as much, so one pass over the map does all of it: on a
GPU (`fused`), and on a CPU that multiplies matrices of bfloat16 (`bfloat16`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stylize_batch.model.chain import Chain
from stylize_batch.model.convolution import EnlargingConv2d, ReflectedConv2d, SubPixelConv2d
from stylize_batch.model.kernels import tried

if TYPE_CHECKING:
    from stylize_batch.model.from_rgb import FromRgb
    from stylize_batch.model.fused import FusedConv2d

_Conv = ReflectedConv2d | SubPixelConv2d

WINOGRAD_CHANNELS = 32
"""Channels, of the input and of the output, from which on Winograd's way is the faster one on a CPU."""


def quicken(network: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Rewrite a network's convolutions for inference, in place; it computes the same, but for rounding.

    On a CPU Winograd's way is for float32: smaller types would lose digits.

    Args:
        network: in float32 at best, so that what is made of its kernels is rounded once.
        dtype: what it computes in from now on; None is what it does.
    """
    weight = next(network.parameters())
    dtype = dtype or weight.dtype
    compiles = not weight.is_cuda and dtype == torch.float32 and has_fast_groups()
    for name, conv in list(network.named_children()):
        if isinstance(conv, ReflectedConv2d):
            plain = SubPixelConv2d(conv) if isinstance(conv, EnlargingConv2d) else conv
            network.add_module(name, _compiled(conv, plain) if compiles else plain)
    if isinstance(network, Chain) and not weight.is_cuda and dtype == torch.bfloat16 and has_bfloat16():
        from stylize_batch.model.bfloat16 import Bfloat16Conv2d

        _chain(network, Bfloat16Conv2d)
    network.to(dtype)
    if isinstance(network, Chain):
        _fuse(network)


def _fuse(chain: Chain) -> None:
    """Have each convolution on a GPU write the next one's input."""
    weight = next(chain.parameters(), None)
    kind = fused(weight.device, weight.dtype) if weight is not None and weight.is_cuda else None
    if kind is None:
        return
    from stylize_batch.model.from_rgb import suits  # which can be imported where the kernel works

    def make(conv: _Conv, following: _Conv | None) -> FusedConv2d:
        narrow = from_rgb(conv.weight.device, conv.weight.dtype) if suits(conv) else None
        return (narrow or kind)(conv, following)

    _chain(chain, make)


def _chain(chain: Chain, make: Callable[[_Conv, _Conv | None], nn.Module]) -> None:
    """Have each convolution write the next one's input."""
    convs: dict[str, Any] = dict(chain.named_children())
    for (name, conv), following in zip(convs.items(), [*convs.values(), None][1:], strict=True):
        chain.add_module(name, make(conv, following))
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


def has_bfloat16() -> bool:
    """Whether oneDNN convolves numbers of this type on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_fast_groups() -> bool:
    """Whether oneDNN compiles convolutions in groups for this processor."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
