"""Pictures become bytes by rounding, and say whether all of theirs are numbers."""

from __future__ import annotations

import numpy as np
import torch

from stylize_batch.model.pixels import to_array, to_bytes


def test_numbers_are_rounded_to_the_nearest_byte() -> None:
    steps = torch.arange(256)[:, None] + torch.tensor([-0.4, 0.0, 0.4])
    pixels, sound = to_bytes((steps.clamp(0, 255) / 255).view(1, 3, 16, 16))
    expected = torch.arange(256)[:, None].expand(-1, 3).reshape(1, 3, 16, 16)
    assert torch.equal(pixels.int(), expected.int())
    assert sound.tolist() == [True]


def test_a_picture_with_one_number_that_is_none_is_told_of() -> None:
    images = torch.rand(3, 3, 5, 7)
    images[1, 2, 4, 6] = torch.nan
    assert to_bytes(images)[1].tolist() == [True, False, True]


def test_an_array_is_clamped_and_has_its_channels_last() -> None:
    image = torch.tensor([-0.5, 0.5, 1.5])[:, None, None].expand(3, 2, 4)
    array = to_array(image)
    assert (array.shape, array.dtype) == ((2, 4, 3), np.uint8)
    assert array[1, 3].tolist() == [0, 128, 255]
