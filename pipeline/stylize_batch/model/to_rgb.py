"""The last convolution of a decoder on a CPU, from many channels to the three of a picture.

For each of its kernel's nine places oneDNN computes as many channels as a register holds, 8 or 16 instead of 3. Here the
nine are side by side: one 1×1 convolution makes their 27 products of every place, and a sum takes each from where it
belongs. The map is not copied for its border either.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from stylize_batch.model.borders import padded
from stylize_batch.model.compiled import compiled
from stylize_batch.model.cores import on_all_cores

ROWS = 32
"""Of the picture that a core makes at once; of the rows above and below the products are made twice."""


class ToRgb(nn.Module):
    """A 3×3 convolution with the border reflected, in float32: [N, C, h, w] → [N, 3, h, w], h and w ≥ 2."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Rearrange the kernels, [3, C, 3, 3], of biases [3]."""
        super().__init__()
        # By row, column and output.
        self._kernels = weight.detach().permute(2, 3, 0, 1).reshape(27, -1, 1, 1).contiguous()
        self._bias = np.zeros(3, np.float32) if bias is None else bias.detach().numpy()
        number, whole = numba.float32, numba.int64
        map, places = number[:, :, ::1], whole[::1]
        self._sum = compiled(_sum, map, places, places, number[::1], map)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        samples, _, height, width = input.shape
        given = input.float().contiguous(memory_format=torch.channels_last)
        made = given.new_empty(samples, height, width, 3)
        pictures = made.numpy()
        rows, columns = padded(height, height + 2, reflect=True), padded(width, width + 2, reflect=True)

        def convolve(block: tuple[int, int]) -> None:
            sample, top = block
            bottom = min(top + ROWS, height)
            first, last = max(0, top - 1), min(bottom + 1, height)
            products: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
                given[sample : sample + 1, :, first:last],
                self._kernels, None, [0, 0], [1, 1], [1, 1], 1, "none", [], "",
            )  # fmt: skip
            self._sum(
                products[0].permute(1, 2, 0).numpy(), rows[top : bottom + 2] - first, columns, self._bias,
                pictures[sample, top:bottom],
            )  # fmt: skip

        on_all_cores(convolve, [(sample, top) for sample in range(samples) for top in range(0, height, ROWS)])
        return made.permute(0, 3, 1, 2)


def _sum(products: Any, rows: Any, columns: Any, bias: Any, picture: Any) -> None:
    for y in range(picture.shape[0]):
        above, here, below = products[rows[y]], products[rows[y + 1]], products[rows[y + 2]]
        for x in range(picture.shape[1]):
            left, middle, right = columns[x], columns[x + 1], columns[x + 2]
            for k in range(3):
                picture[y, x, k] = (
                    bias[k]
                    + above[left, k] + above[middle, 3 + k] + above[right, 6 + k]
                    + here[left, 9 + k] + here[middle, 12 + k] + here[right, 15 + k]
                    + below[left, 18 + k] + below[middle, 21 + k] + below[right, 24 + k]
                )  # fmt: skip
