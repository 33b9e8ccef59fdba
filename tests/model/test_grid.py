"""What counts as a grid of cells of 2×2 pixels, and what does not."""

from __future__ import annotations

import pytest
import torch

from stylize_batch.model.grid import grid_energy
from tests.model.models import picture

CHECKERBOARD = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32)
COLUMNS = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).repeat(32, 32)


@pytest.mark.parametrize(
    "pattern", [CHECKERBOARD, COLUMNS, COLUMNS.T], ids=["checkerboard", "columns", "rows"]
)
def test_each_pattern_of_a_cell_counts_with_its_power(pattern: torch.Tensor) -> None:
    images = 0.5 + 0.1 * pattern.expand(2, 3, 64, 64)
    assert grid_energy(images).item() == pytest.approx(0.1**2, rel=1e-4)


def test_details_that_do_not_repeat_hardly_count() -> None:
    noise = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    # Three of a cell's four numbers, and of their power the 64th that the mean of 64 cells has.
    assert grid_energy(noise).item() == pytest.approx(3 / 4 / 64, rel=0.15)
    assert grid_energy(picture(64, 64)) < 0.05**2


def test_an_even_picture_of_any_size_has_none() -> None:
    assert grid_energy(torch.ones(1, 3, 33, 49)) == 0
