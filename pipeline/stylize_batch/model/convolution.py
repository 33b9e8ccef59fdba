"""Convolutions with reflection padding, as trained, and the same functions with fewer multiplications for inference.

A picture costs little else than its 3×3 convolutions, and those run at the speed of matrix products. So what counts is
how many multiplications there are:

- After nearest ×2 up-sampling most of the nine products of a pixel share their factor: four 2×2 convolutions of the
  small map, one for each place of a pixel in its cell, give the same sums with four instead of nine (`SubPixelConv2d`).
- Winograd's F(4×4, r×r) takes (r + 3)² multiplications for a tile of 16 outputs instead of 16 r² (Lavin & Gray 2016):
  36 instead of 144 for a 3×3 kernel, 25 instead of 64 for a 2×2 one, as so many 1×1 convolutions (`Winograd`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINOGRAD_SAVING = 2.0
"""How many times fewer multiplications, those of the transforms included, make Winograd's way the faster one on a CPU."""

BLOCK_TILES = 64
"""Tiles that a core takes at once: their matrices stay in the cache."""

LEFT_TILES = 16
"""Tiles that a core takes at once where fewer than half a block are left."""

MIN_TILES = 16
"""Tiles of a map below which reading the transformed weights, which are more, takes longer than it saves."""

POINTS = (0, 1, -1, 2, -2)
"""Where the polynomials of F(4, 3) are evaluated, and at infinity; F(4, 2) takes the first four (§4 there)."""

ONE = POINTS.index(1)


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

    def __init__(self, conv: EnlargingConv2d) -> None:
        super().__init__()
        rows = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).to(conv.weight)
        kernels = torch.einsum("aij,bkl,ocjl->abocik", rows, rows, conv.weight).flatten(0, 2)
        self._channels = conv.out_channels
        self._convolve = _quickest(
            kernels, None if conv.bias is None else conv.bias.repeat(4), relu=conv.relu
        )

    def forward(self, input: Tensor) -> Tensor:
        """Enlarge and convolve."""
        height, width = input.shape[2:]
        # Each of the four needs its own h × w of these (h + 1) × (w + 1) places.
        found = self._convolve(F.pad(input, (1, 1, 1, 1), mode="replicate"))
        places = found.permute(0, 2, 3, 1).unflatten(3, (2, 2, self._channels))
        output = input.new_empty(len(input), height, 2, width, 2, self._channels)
        for row in (0, 1):
            for column in (0, 1):
                output[:, :, row, :, column] = places[
                    :, row : row + height, column : column + width, row, column
                ]
        return output.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class WinogradConv2d(nn.Module):
    """`ReflectedConv2d` by Winograd's F(4×4, 3×3)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        relu = isinstance(conv, ReflectedConv2d) and conv.relu
        self._convolve = Winograd(conv.weight, conv.bias, relu=relu)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        return self._convolve(F.pad(input, (1, 1, 1, 1), mode="reflect"))


class Plain(nn.Module):
    """A convolution without padding, and ReLU or not: [N, C, h + r − 1, w + r − 1] → [N, K, h, w]."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.relu = relu

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        found = F.conv2d(input, self.weight, self.bias)
        return found.relu_() if self.relu else found


class Winograd(Plain):
    """The same by Winograd's F(4×4, r×r), in float32 on a CPU with AVX2 or better.

    The transforms are products with small constant matrices on both sides of a tile. Between them each of a tile's
    n = (r + 3)² numbers has its own kernel: a 1×1 convolution in n groups, where tiles are the places. oneDNN does that at
    the processor's peak; MKL's products of matrices do not everywhere. It wants the kernels in an order that depends on
    the number of tiles and of threads, and to bring them into it takes longer than the convolution. So blocks have one
    of two sizes, across rows, and kernels are packed once for each, by the operators of torch's compiled networks.
    """

    _input: Tensor
    _output: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> None:
        super().__init__(weight, bias, relu=relu)
        self._side = weight.shape[-1] + 3
        for_input, self._for_kernel, for_output = _transforms(weight.shape[-1])
        self.register_buffer("_input", torch.from_numpy(for_input).to(weight))
        self.register_buffer("_output", torch.from_numpy(for_output).to(weight))
        self._packed: dict[tuple[int, int], Kernels] = {}
        """By tiles and threads."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        side, channels = self._side, input.shape[1]
        height, width = (length - side + 4 for length in input.shape[2:])
        rows, columns = -(-height // 4), -(-width // 4)
        if rows * columns < MIN_TILES:
            return super().forward(input)
        if height % 4 or width % 4:
            input = F.pad(input, (0, 4 * columns - width, 0, 4 * rows - height))
        output = input.new_empty(len(input), 4 * rows, 4 * columns, len(self.weight))
        threads = torch.get_num_threads()
        for padded, made in zip(input.permute(0, 2, 3, 1), output, strict=True):
            windows = padded.unfold(0, side, 4).unfold(1, side, 4)  # [rows, columns, C, side, side]
            windows = windows.permute(0, 1, 3, 4, 2)
            places = made.unflatten(1, (columns, 4)).unflatten(0, (rows, 4)).transpose(1, 2)  # […, 4, 4, K]
            start = 0
            while (left := rows * columns - start) > 0:
                size = threads * (BLOCK_TILES if left > threads * BLOCK_TILES / 2 else LEFT_TILES)
                tiles = input.new_empty(size, side, side, channels)  # the last ones may stay empty
                spans = list(_spans(start, start + min(size, left), columns))
                for block, where in spans:
                    window = windows[where]
                    tiles[block].view(window.shape).copy_(window)
                found = self._convolve(tiles, self._kernels(size, threads))
                for block, where in spans:
                    place = places[where]
                    if self.relu:  # while the cache has them
                        torch.clamp_min(found[block].view(place.shape), 0, out=place)
                    else:
                        place.copy_(found[block].view(place.shape))
                start += size
        return output[:, :height, :width].permute(0, 3, 1, 2)

    def _convolve(self, tiles: Tensor, kernels: Kernels) -> Tensor:
        """Return [T, 4, 4, K] for tiles [T, side, side, C]."""
        count, side, _, channels = tiles.shape
        rows = torch.bmm(self._input.expand(count, -1, -1), tiles.flatten(2))
        both = torch.bmm(self._input.expand(count * side, -1, -1), rows.view(-1, side, channels))
        numbers = both.view(1, count, 1, -1).permute(0, 3, 1, 2)
        products = kernels.convolve(numbers).permute(0, 2, 3, 1)
        rows = torch.bmm(self._output.expand(count, -1, -1), products.reshape(count, side, -1))
        both = torch.bmm(self._output.expand(count * 4, -1, -1), rows.view(count * 4, side, -1))
        return both.view(count, 4, 4, -1)

    def _kernels(self, tiles: int, threads: int) -> Kernels:
        with _PACKING:
            if (tiles, threads) not in self._packed:
                transform = torch.from_numpy(np.kron(self._for_kernel, self._for_kernel))
                numbers = torch.einsum("pq,kcq->pkc", transform, self.weight.double().flatten(2))
                biases = None
                if self.bias is not None:
                    biases = torch.zeros(numbers.shape[:2])
                    # The value at the points 1 and 1 counts once in each of a tile's outputs.
                    biases[self._side * ONE + ONE] = self.bias
                self._packed[tiles, threads] = Kernels(numbers.float(), biases, tiles)
            return self._packed[tiles, threads]


_PACKING = threading.Lock()


class Kernels:
    """Transformed kernels [n, K, C] and biases [n, K], packed for so many tiles and the threads of the caller."""

    def __init__(self, numbers: Tensor, biases: Tensor | None, tiles: int) -> None:
        groups, _, channels = numbers.shape
        self._how = [0, 0], [1, 1], [1, 1], groups  # padding, strides, dilation
        self._biases = None if biases is None else biases.flatten()
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(
            numbers.flatten(0, 1)[..., None, None], *self._how, [1, groups * channels, tiles, 1]
        )

    def convolve(self, numbers: Tensor) -> Tensor:
        """Return [1, n K, tiles, 1] for [1, n C, tiles, 1], both channels last."""
        return torch.ops.mkldnn._convolution_pointwise(
            numbers, self._packed, self._biases, *self._how, "none", [], ""
        )


def _spans(start: int, stop: int, columns: int) -> Iterator[tuple[slice, tuple[slice, slice]]]:
    """Yield the rectangles of a map that its tiles from one number to another make up, and where in these each is."""
    first = start
    while start < stop:
        row, column = divmod(start, columns)
        rows = (stop - start) // columns if column == 0 else 0
        if rows:
            where, count = (slice(row, row + rows), slice(0, columns)), rows * columns
        else:
            count = min(columns - column, stop - start)
            where = slice(row, row + 1), slice(column, column + count)
        yield slice(start - first, start - first + count), where
        start += count


def _transforms(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return Bᵀ, G and Aᵀ of F(4, taps): y = Aᵀ[(G g) ⊙ (Bᵀ d)] for a kernel g and 3 + taps inputs d.

    They are Toom's and Cook's: outputs and kernel are polynomials, known by their values at `POINTS` and infinity.
    """
    points = POINTS[: taps + 2]
    for_input = np.zeros((taps + 3, taps + 3))
    for_kernel = np.zeros((taps + 3, taps))
    for_output = np.zeros((4, taps + 3))
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        for_input[row, : taps + 2] = np.poly(others)[::-1]
        for_kernel[row] = np.power(float(point), range(taps)) / np.prod([point - other for other in others])
        for_output[:, row] = np.power(float(point), range(4))
    for_input[-1] = np.poly(points)[::-1]
    for_kernel[-1, -1] = for_output[-1, -1] = 1
    return for_input, for_kernel, for_output


def quicken(network: nn.Module) -> None:
    """Rewrite a network's convolutions for inference, in place; it computes the same, but for rounding.

    Winograd's way is for float32 on a CPU: GPU libraries have their own, and smaller types would lose digits.
    """
    for name, conv in list(network.named_children()):
        if isinstance(conv, EnlargingConv2d):
            network.add_module(name, SubPixelConv2d(conv))
        elif (
            isinstance(conv, nn.Conv2d)
            and (conv.kernel_size, conv.stride, conv.padding_mode) == ((3, 3), (1, 1), "reflect")
            and _suits_winograd(conv.weight)
        ):
            network.add_module(name, WinogradConv2d(conv))


def _quickest(weight: Tensor, bias: Tensor | None, *, relu: bool) -> Plain:
    return (Winograd if _suits_winograd(weight) else Plain)(weight, bias, relu=relu)


def _suits_winograd(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not has_fast_groups():
        return False
    made, taken, taps = len(weight), weight.shape[1], weight.shape[2]
    side = taps + 3
    plain = 16 * taps**2 * taken * made
    transforms = 2 * side**3 * taken + (4 * side**2 + 16 * side) * made
    return plain >= WINOGRAD_SAVING * (side**2 * taken * made + transforms)


def has_fast_groups() -> bool:
    """Whether oneDNN compiles convolutions in groups for this processor."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
