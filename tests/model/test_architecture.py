"""What is known of each architecture."""

from __future__ import annotations

from stylize_batch.model.architecture import ARCHITECTURES, DESIGNS


def test_every_architecture_is_described() -> None:
    assert tuple(DESIGNS) == ARCHITECTURES
