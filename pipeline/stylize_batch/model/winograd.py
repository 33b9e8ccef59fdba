"""Convolutions on a CPU by Winograd's F(4×4, r×r), with fewer multiplications (Lavin & Gray 2016).

An output of 4×4 places takes (r + 3)² multiplications instead of 16 r²: 36 instead of 144 for a 3×3 kernel, 25 instead
of 64 for a 2×2 one. For that a map is read in tiles that overlap, which are transformed on the way there and back
(`tile_transforms`).
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor, nn

from stylize_batch.model.borders import padded
from stylize_batch.model.cores import on_all_cores
from stylize_batch.model.tile_transforms import ONE, for_kernel, transforms

BLOCK_TILES, BLOCK_CHANNELS = 64, 128
"""Tiles that a core takes at once, and more where there are fewer channels: their matrices stay in the cache."""

LEFT = 4
"""A core takes so many times fewer tiles at once where fewer than half a block are left."""

MIN_TILES = 16
"""Tiles of a map below which reading the transformed weights, which are more, takes longer than it saves."""


class Winograd(nn.Module):
    """A convolution that reads one place beyond each border, in float32: [N, C, h, w] → [N, K, s h, s w].

    ReLU and pooling happen where tiles are written, so that no map is read again for them.

    Between the transforms each of a tile's n = (r + 3)² numbers has its own kernel: a 1×1 convolution in n groups, where
    tiles are the places. oneDNN does that at the processor's peak; MKL's products of matrices do not everywhere. It
    wants the kernels in an order that depends on the number of tiles, and to bring them into it takes longer than the
    convolution. So blocks have one of two sizes, and kernels are packed once for each, by the operators of torch's
    compiled networks. Every core takes blocks of its own.
    """

    def __init__(
        self,
        plain: nn.Module,
        kernels: Tensor,
        bias: Tensor | None,
        *,
        scale: int = 1,
        relu: bool = False,
        pool: bool = False,
    ) -> None:
        """Transform the kernels.

        Args:
            plain: what does the same; it is called for small maps.
            kernels: [s² K, C, r, r]; those of 3×3 see the border reflected, those of 2×2 replicated.
            bias: [s² K].
            scale: s: places of the output on the side of a place of the input, each with kernels of its own (a
                sub-pixel convolution).
            relu: whether to rectify the result.
            pool: whether to keep the highest of 2×2 places, of one or two at an odd border; where s is 1.
        """
        super().__init__()
        self.plain = plain
        self._scale = scale
        self._pool = pool
        self._floor = np.float32(0 if relu else -np.inf)
        self._side = kernels.shape[-1] + 3
        self._block = BLOCK_TILES * -(-BLOCK_CHANNELS // max(kernels.shape[:2]))
        self._kernels = kernels.detach()
        self._bias = None if bias is None else bias.detach()
        self._transforms = transforms(self._side)
        self._packed: dict[int, _Packed] = {}
        """By tiles."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        side, scale = self._side, self._scale
        samples, channels, height, width = input.shape
        # Each of a cell's places sees the map from elsewhere, so of theirs there is one more on each side.
        rows, columns = (-(-(length + scale - 1) // 4) for length in (height, width))
        if rows * columns < MIN_TILES:
            return self.plain(input)
        input = input.float()  # autocast may have made it smaller
        given = input.permute(0, 2, 3, 1).contiguous().numpy()
        from_row = padded(height, 4 * rows + 2, reflect=side == 6)
        from_column = padded(width, 4 * columns + 2, reflect=side == 6)
        height, width = scale * height, scale * width
        shape = [-(-length // 2) for length in (height, width)] if self._pool else [height, width]
        made = input.new_empty(samples, *shape, len(self._kernels) // scale**2)
        maps = made.numpy()
        gather, scatter = self._transforms

        def convolve(block: tuple[int, int, int]) -> None:
            sample, first, size = block
            tiles = input.new_empty(size, side, side, channels)  # the last ones may stay empty
            count = min(size, rows * columns - first)
            gather(given[sample], from_row, from_column, first, columns, tiles.numpy()[:count])
            products = self._pack(size).convolve(tiles)
            scatter(products.numpy()[:count], first, columns, scale, self._floor, height, width, maps[sample])

        on_all_cores(convolve, [
            (sample, first, size) for sample in range(samples) for first, size in _blocks(rows * columns, self._block)
        ])  # fmt: skip
        return made.permute(0, 3, 1, 2)

    def _pack(self, tiles: int) -> _Packed:
        with _PACKING:
            if tiles not in self._packed:
                self._packed[tiles] = _Packed(self._kernels, self._bias, tiles)
            return self._packed[tiles]


_PACKING = threading.Lock()


class _Packed:
    """Kernels [K, C, r, r] and biases [K], transformed, and packed for so many tiles on one core."""

    def __init__(self, kernels: Tensor, bias: Tensor | None, tiles: int) -> None:
        made, channels, taps, _ = kernels.shape
        self._side = side = taps + 3
        self._how = [0, 0], [1, 1], [1, 1], side**2  # padding, strides, dilation, groups
        transform = for_kernel(taps)
        both = torch.from_numpy(np.kron(transform, transform))
        # As `Transforms` has them: columns first.
        numbers = torch.einsum("pq,kcq->pkc", both, kernels.double().transpose(2, 3).flatten(2))
        self._biases = None
        if bias is not None:
            biases = kernels.new_zeros(side**2, made)
            # The value at the points 1 and 1 counts once in each of a tile's outputs.
            biases[side * ONE + ONE] = bias
            self._biases = biases.flatten()
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(
            numbers.float().flatten(0, 1)[..., None, None], *self._how, [1, side**2 * channels, tiles, 1]
        )

    def convolve(self, tiles: Tensor) -> Tensor:
        """Return [T, side, side, K] for transformed tiles [T, side, side, C]."""
        numbers = tiles.view(1, len(tiles), 1, -1).permute(0, 3, 1, 2)
        products: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
            numbers, self._packed, self._biases, *self._how, "none", [], ""
        )
        return products.permute(0, 2, 3, 1).view(len(tiles), self._side, self._side, -1)


def _blocks(tiles: int, block: int) -> list[tuple[int, int]]:
    """Return the first tile and the size of each block."""
    found: list[tuple[int, int]] = []
    first = 0
    while first < tiles:
        size = block if tiles - first > block / 2 else block // LEFT
        found.append((first, size))
        first += size
    return found
