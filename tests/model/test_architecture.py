"""What is known of each architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stylize_batch.model import architecture as module
from stylize_batch.model.architecture import ARCHITECTURES, DESIGNS


def test_every_architecture_is_described() -> None:
    assert tuple(DESIGNS) == ARCHITECTURES


@pytest.mark.parametrize(
    "look_up",
    [
        module.encoder_convolutions,
        module.decoder_convolutions,
        module.transfer_channels,
        module.transfer_strides,
        module.style_width,
        module.decoder_halo,
    ],
)
def test_an_architecture_that_is_not_described_is_not_taken_for_a_vgg(
    look_up: Callable[[Any], object],
) -> None:
    with pytest.raises(KeyError):
        look_up("new")
