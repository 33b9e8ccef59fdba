"""Convolutions with reflection padding, as trained, and the same functions with fewer multiplications for inference.

A picture costs little else than its 3×3 convolutions, and those run at the speed of matrix products. So what counts is
how many multiplications there are:

- After nearest ×2 up-sampling most of the nine products of a pixel share their factor: four 2×2 convolutions of the
  small map, one for each place of a pixel in its cell, give the same sums with four instead of nine (`SubPixelConv2d`).
- Winograd's F(4×4, r×r) takes 2.25 per place instead of 9 for a 3×3 kernel, and 1.6 instead of 4 for a 2×2 one
  (`winograd`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINOGRAD_CHANNELS = 32
"""Channels, of the input and of the output, from which on Winograd's way is the faster one on a CPU."""


class ReflectedConv2d(nn.Conv2d):
    """A 3×3 convolution that keeps the size: [N, C, h, w] → [N, K, h, w], the border reflected; then ReLU, or not."""

    def __init__(self, channels_in: int, channels_out: int, *, relu: bool = False) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, padding_mode="reflect")
        self.relu = relu

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        found = super().forward(input)
        return found.relu_() if self.relu else found


class EnlargingConv2d(ReflectedConv2d):
    """Nearest ×2 up-sampling and a 3×3 convolution: [N, C, h, w] → [N, K, 2h, 2w], the border reflected."""

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
        rows = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).to(conv.weight)
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

    Winograd's way is for float32 on a CPU: GPU libraries have their own, and smaller types would lose digits.
    """
    for name, conv in list(network.named_children()):
        if isinstance(conv, EnlargingConv2d):
            quick = SubPixelConv2d(conv)
            network.add_module(
                name, _winograd(quick, 2, conv.relu) if _suits_winograd(quick.weight) else quick
            )
        elif (
            isinstance(conv, nn.Conv2d)
            and (conv.kernel_size, conv.stride, conv.padding_mode) == ((3, 3), (1, 1), "reflect")
            and _suits_winograd(conv.weight)
        ):
            relu = isinstance(conv, ReflectedConv2d) and conv.relu
            network.add_module(name, _winograd(conv, 1, relu))


def _winograd(plain: nn.Conv2d | SubPixelConv2d, scale: int, relu: bool) -> nn.Module:
    # Not above: where a GPU trains, Numba need not be installed.
    from stylize_batch.model.winograd import Winograd

    return Winograd(plain, plain.weight, plain.bias, scale=scale, relu=relu)


def _suits_winograd(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and min(weight.shape[:2]) >= WINOGRAD_CHANNELS
        and has_fast_groups()
    )


def has_fast_groups() -> bool:
    """Whether oneDNN compiles convolutions in groups for this processor."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
