"""Convolutions with reflection padding, as trained, and the same functions with fewer multiplications for inference.

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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylize_batch.model.chain import Chain

WINOGRAD_CHANNELS = 32
"""Channels, of the input and of the output, from which on Winograd's way is the faster one on a CPU."""


class ReflectedConv2d(nn.Conv2d):
    """A convolution with the border reflected, [N, C, h, w] → [N, K, ⌈h / stride⌉, ⌈w / stride⌉]; then ReLU and pooling to
    half the size, or not.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        relu: bool = False,
        pool: bool = False,
    ) -> None:
        super().__init__(
            channels_in, channels_out, kernel, stride, padding=kernel // 2, padding_mode="reflect"
        )
        self.relu, self.pool = relu, pool

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        found = super().forward(input)
        found = found.relu_() if self.relu else found
        return F.max_pool2d(found, 2, 2, ceil_mode=True) if self.pool else found


class EnlargingConv2d(ReflectedConv2d):
    """Nearest ×2 up-sampling and a 3×3 convolution: [N, C, h, w] → [N, K, 2h, 2w], the border reflected."""

    def __init__(self, channels_in: int, channels_out: int, *, relu: bool = False) -> None:
        super().__init__(channels_in, channels_out, relu=relu)

    def forward(self, input: Tensor) -> Tensor:
        """Enlarge and convolve."""
        return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))


class SubPixelConv2d(nn.Module):
    """`EnlargingConv2d` as four 2×2 convolutions of the small map.

    Rows 2i and 2i + 1 of the large map are row i of the small one, so a row of the output sees two rows of the small
    map: i − 1 and i where it is even, with the kernel's rows 1 and 2 + 3, i and i + 1 where it is odd, with rows 1 + 2
    and 3; columns likewise. What reflection adds to the large map is a copy of the small one's border.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: EnlargingConv2d) -> None:
        super().__init__()
        rows = conv.weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        kernels = torch.einsum("aij,bkl,ocjl->abocik", rows, rows, conv.weight).flatten(0, 2)
        self.register_buffer("weight", kernels.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.repeat(4))
        self.relu = conv.relu

    def forward(self, input: Tensor) -> Tensor:
        """Enlarge and convolve."""
        height, width = input.shape[2:]
        # Each of the four needs its own h × w of these (h + 1) × (w + 1) places.
        found = F.conv2d(F.pad(input, (1, 1, 1, 1), mode="replicate"), self.weight, self.bias)
        places = found.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))
        output = input.new_empty(len(input), height, 2, width, 2, places.shape[-1])
        for row in (0, 1):
            for column in (0, 1):
                output[:, :, row, :, column] = places[
                    :, row : row + height, column : column + width, row, column
                ]
        large = output.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
        return large.relu_() if self.relu else large


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
    try:
        from stylize_batch.model.from_rgb import FromRgb, suits
        from stylize_batch.model.fused import FusedConv2d, works
    except ImportError:  # only torch's CUDA builds come with Triton
        return
    weight = next(iter(convs.values())).weight
    if works(weight.device, weight.dtype):
        for (name, conv), following in zip(convs.items(), [*convs.values(), None][1:], strict=True):
            kind = FromRgb if suits(conv) and works(weight.device, weight.dtype, FromRgb) else FusedConv2d
            chain.add_module(name, kind(conv, following))
        chain.fused = True


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
