"""Convolutions with reflection padding, as trained, and up-sampling with one as four small ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        edge = self.kernel_size[0] // 2
        # Autocast would have halves padded as float32 on a CPU, which takes ten times as long.
        with torch.autocast("cpu", enabled=False):
            framed = F.pad(input, (edge,) * 4, mode="reflect") if edge else input
        found = F.conv2d(framed, self.weight, self.bias, self.stride)
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
