"""Colour control (paper §7.3): re-colour a style image to the content's colours before it is encoded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-5
"""Least eigenvalue of a covariance, of colours in 0..1: gray pictures have some of 0."""

CHUNK = 1 << 20
"""Pixels looked at together: large pictures are never held in float64."""


class Colors(NamedTuple):
    """Mean [3] and covariance [3, 3] (divided by the number of pixels) of a picture's RGB in 0..1, float64."""

    mean: Tensor
    covariance: Tensor


class ColorMap(NamedTuple):
    """The map c' = matrix · c + offset of colours in 0..1, float32 [3, 3] and [3]."""

    matrix: Tensor
    offset: Tensor

    def apply(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W]; the result is float32 and may leave 0..1."""
        matrix, offset = self.matrix.to(images.device), self.offset.to(images.device)
        return torch.einsum("ij,njhw->nihw", matrix, images.float()) + offset[:, None, None]


def colors(image: Tensor) -> Colors:
    """Measure the colours of an image [3, H, W], uint8 or in 0..1, on the CPU."""
    rows = max(1, CHUNK // image.shape[2])
    total, products = (torch.zeros(size, dtype=torch.float64, device="cpu") for size in ((3,), (3, 3)))
    for chunk in image.split(rows, dim=1):
        pixels = chunk.reshape(3, -1).cpu().double()
        if image.dtype == torch.uint8:
            pixels /= 255
        total += pixels.sum(1)
        products += pixels @ pixels.T
    count = image.shape[1] * image.shape[2]
    mean = total / count
    return Colors(mean, products / count - torch.outer(mean, mean))


def recoloring(style: Colors, content: Colors) -> ColorMap:
    """Return c' = C_c^½ · C_s^−½ · (s − μ_s) + μ_c, which gives the style image the content's colours.

    The roots are the symmetric ones; eigenvalues under `FLOOR` are raised to it.
    """
    matrix = _power(content.covariance, 0.5) @ _power(style.covariance, -0.5)
    return ColorMap(matrix.float(), (content.mean - matrix @ style.mean).float())


def _power(covariance: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag(values.clamp(min=FLOOR) ** exponent) @ vectors.T
