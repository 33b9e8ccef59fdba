"""Convolutions with reflection padding, as trained, and the same functions with fewer multiplications for inference.

A picture costs little else than its 3×3 convolutions, and those run at the speed of matrix products. So what counts is
how many multiplications there are:

- After nearest ×2 up-sampling most of the nine products of a pixel share their factor: four 2×2 convolutions of the
  small map, one for each place of a pixel in its cell, give the same sums with four instead of nine (`SubPixelConv2d`).
- Winograd's F(4×4, 3×3) takes 36 multiplications for a tile of 16 outputs instead of 144 (Lavin & Gray 2016), as 36
  products of matrices (`WinogradConv2d`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINOGRAD_CHANNELS = 64 * 128
"""Input × output channels from which Winograd's way is faster on a CPU: below, its transforms cost what it saves."""

BLOCK_TILES = 256
"""Tiles transformed at once: their matrices stay in the cache."""

MIN_TILES = 16
"""Tiles of a map below which reading the transformed weights, four times as many, takes longer than it saves."""


class ReflectedConv2d(nn.Conv2d):
    """A 3×3 convolution that keeps the size: [N, C, h, w] → [N, K, h, w], the border reflected."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, padding_mode="reflect")


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

    _kernel: Tensor
    _bias: Tensor | None

    def __init__(self, conv: EnlargingConv2d) -> None:
        super().__init__()
        rows = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).to(conv.weight)
        kernels = torch.einsum("aij,bkl,ocjl->abocik", rows, rows, conv.weight)
        self._channels = conv.out_channels
        self.register_buffer("_kernel", kernels.flatten(0, 2).contiguous(memory_format=torch.channels_last))
        self.register_buffer("_bias", None if conv.bias is None else conv.bias.repeat(4))

    def forward(self, input: Tensor) -> Tensor:
        """Enlarge and convolve."""
        height, width = input.shape[2:]
        # Each of the four needs its own h × w of these (h + 1) × (w + 1) places.
        found = F.conv2d(F.pad(input, (1, 1, 1, 1), mode="replicate"), self._kernel, self._bias)
        places = found.permute(0, 2, 3, 1).unflatten(3, (2, 2, self._channels))
        output = input.new_empty(len(input), height, 2, width, 2, self._channels)
        for row in (0, 1):
            for column in (0, 1):
                output[:, :, row, :, column] = places[
                    :, row : row + height, column : column + width, row, column
                ]
        return output.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


# The matrices of F(4, 3) with the points 0, ±1, ±2 and ∞ (Lavin & Gray 2016, §4.1): Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A.
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


class WinogradConv2d(nn.Module):
    """`ReflectedConv2d` by Winograd's F(4×4, 3×3).

    The 36 numbers of a tile lie in 36 matrices of tiles × channels, so that the transforms are products with small
    constant matrices, and the convolution is 36 products with the transformed kernel. Some rows of tiles at a time.
    """

    _input: Tensor
    _kernel: Tensor
    _output: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._plain = conv
        self._channels = conv.out_channels

        def on_tiles(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
            one_side = torch.tensor(matrix, dtype=torch.float64, device=conv.weight.device)
            return torch.kron(one_side, one_side)

        weight = conv.weight.double().flatten(2)
        kernel = torch.einsum("pq,kcq->pck", on_tiles(_KERNEL), weight)
        self.register_buffer("_input", on_tiles(_INPUT).to(conv.weight))
        self.register_buffer("_kernel", kernel.to(conv.weight.dtype).contiguous())
        self.register_buffer("_output", on_tiles(_OUTPUT).to(conv.weight))

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        height, width = input.shape[2:]
        rows, columns = -(-height // 4), -(-width // 4)
        if rows * columns < MIN_TILES:
            return self._plain(input)
        margins = F.pad(input, (1, 1, 1, 1), mode="reflect")
        if height % 4 or width % 4:
            margins = F.pad(margins, (0, 4 * columns - width, 0, 4 * rows - height))
        output = input.new_empty(len(input), 4 * rows, 4 * columns, self._channels)
        step = max(1, BLOCK_TILES // columns)
        for padded, made in zip(margins.permute(0, 2, 3, 1), output, strict=True):
            windows = (
                padded.unfold(0, 6, 4).unfold(1, 6, 4).permute(0, 1, 3, 4, 2)
            )  # [rows, columns, 6, 6, C]
            places = made.unflatten(1, (columns, 4)).unflatten(0, (rows, 4)).transpose(1, 2)  # […, 4, 4, K]
            for row in range(0, rows, step):
                self._convolve(windows[row : row + step], places[row : row + step])
        return output[:, :height, :width].permute(0, 3, 1, 2)

    def _convolve(self, windows: Tensor, places: Tensor) -> None:
        tiles = windows.shape[:2].numel()
        transformed = self._input.expand(tiles, 36, 36) @ windows.reshape(tiles, 36, -1)
        products = transformed.transpose(0, 1) @ self._kernel  # one of each number of a tile, over all tiles
        made = (self._output.expand(tiles, 16, 36) @ products.transpose(0, 1)).view(places.shape)
        if self._plain.bias is None:
            places.copy_(made)
        else:
            torch.add(made, self._plain.bias, out=places)


def quicken(network: nn.Module) -> None:
    """Rewrite a network's convolutions for inference, in place; it computes the same, but for rounding.

    Winograd's way is for float32 on a CPU: GPU libraries have their own, and smaller types would lose digits.
    """
    for name, conv in list(network.named_children()):
        if isinstance(conv, EnlargingConv2d):
            network.add_module(name, SubPixelConv2d(conv))
        elif isinstance(conv, nn.Conv2d) and _suits_winograd(conv):
            network.add_module(name, WinogradConv2d(conv))


def _suits_winograd(conv: nn.Conv2d) -> bool:
    return (
        conv.weight.device.type == "cpu"
        and conv.weight.dtype == torch.float32
        and (conv.kernel_size, conv.stride, conv.padding_mode) == ((3, 3), (1, 1), "reflect")
        and conv.in_channels * conv.out_channels >= WINOGRAD_CHANNELS
    )
