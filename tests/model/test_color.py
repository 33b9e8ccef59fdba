"""Colour control (§7.3): the style image gets the content's colours, and degenerate colours stay finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stylize_batch.model.color import CHUNK, FLOOR, colors, recoloring

seeds = st.integers(0, 2**31 - 1)


def image(seed: int, height: int = 20, width: int = 30) -> Tensor:
    """A picture with correlated colours of full rank."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.rand(3, 3, generator=generator) * 0.3 + torch.eye(3) * 0.4
    return torch.einsum("ij,jhw->ihw", mix, torch.rand(3, height, width, generator=generator))


@given(seeds, seeds, st.floats(0.1, 1))
def test_a_recoloured_style_has_the_contents_mean_and_covariance(
    content: int, style: int, contrast: float
) -> None:
    """However pale the photograph is."""
    photograph = image(content, 8, 50) * contrast
    found = recoloring(colors(image(style)), colors(photograph)).apply(image(style)[None])[0]
    expected = photograph.flatten(1).double()
    pixels = found.flatten(1).double()
    torch.testing.assert_close(pixels.mean(1), expected.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.cov(pixels, correction=0), torch.cov(expected, correction=0), rtol=1e-3, atol=1e-6
    )


@given(seeds)
def test_a_style_with_the_contents_colours_keeps_its_own(seed: int) -> None:
    found = recoloring(colors(image(seed)), colors(image(seed))).apply(image(seed)[None])
    torch.testing.assert_close(found[0], image(seed), rtol=1e-4, atol=1e-5)


class Watched(TorchDispatchMode):
    """Notes the most numbers that a tensor of float64 has."""

    most = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dtype == torch.float64:
            self.most = max(self.most, made.numel())
        return made


def test_colours_of_large_pictures_are_summed_in_chunks() -> None:
    large = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3000, 700), np.uint8))
    assert large[0].numel() > CHUNK
    with Watched() as watched:
        found = colors(large)
    assert watched.most <= 3 * CHUNK
    pixels = large.flatten(1).double() / 255
    torch.testing.assert_close(found.mean, pixels.mean(1))
    torch.testing.assert_close(found.covariance, torch.cov(pixels, correction=0))


@pytest.mark.parametrize("style", [image(1), image(1).mean(0).expand(3, -1, -1), torch.full((3, 9, 9), 0.3)])
@pytest.mark.parametrize(
    "content", [image(2), image(2).mean(0).expand(3, -1, -1), torch.full((3, 9, 9), 0.6)]
)
def test_gray_and_one_coloured_pictures_give_finite_colours_near_the_contents(
    style: Tensor, content: Tensor
) -> None:
    wanted = colors(content)
    found = recoloring(colors(style), wanted).apply(style[None])
    assert found.isfinite().all()
    own = colors(found[0])
    torch.testing.assert_close(own.mean, wanted.mean, rtol=1e-3, atol=1e-4)
    # No direction varies more than in the content, but for the floor that keeps the roots finite.
    excess = torch.linalg.eigvalsh(own.covariance - wanted.covariance).max()
    assert excess <= 1.01 * FLOOR
