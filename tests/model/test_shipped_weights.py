"""What the shipped weights promise, on the sample pairs, which they were not trained on."""

from __future__ import annotations

import pytest

from benchmarks.quality import Quality, measure


@pytest.fixture(scope="module")
def quality() -> tuple[list[Quality], dict[str, float]]:
    return measure()


def test_style_loss_is_at_most_half_of_the_unstylized_contents(
    quality: tuple[list[Quality], dict[str, float]],
) -> None:
    for pair in quality[0]:
        assert pair.style_loss <= 0.5 * pair.unstylized_style_loss, pair


def test_alpha_zero_is_a_recognisable_photograph(quality: tuple[list[Quality], dict[str, float]]) -> None:
    for content, psnr in quality[1].items():
        assert psnr > 14, content
