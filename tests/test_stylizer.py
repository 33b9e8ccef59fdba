"""The Python call for single pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylize_batch import Stylizer
from stylize_batch.errors import UsageError


@pytest.fixture(scope="module")
def stylizer() -> Stylizer:
    return Stylizer()


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_pil_images_go_in_and_come_out_with_the_contents_size(stylizer: Stylizer, pictures: Path) -> None:
    content, style = opened(pictures / "content" / "cat.jpg"), opened(pictures / "style" / "tapa-cloth.jpg")
    found = stylizer(content, style, alpha=0.8)
    assert isinstance(found, Image.Image)
    assert found.size == content.size
    assert np.asarray(found).std() > 10


@pytest.mark.parametrize("shape", [(3, 33, 20), (1, 3, 33, 20), (2, 3, 33, 20)])
def test_tensors_keep_their_shape(stylizer: Stylizer, shape: tuple[int, ...]) -> None:
    content = torch.rand(shape)
    found = stylizer(content, torch.rand(3, 24, 24))
    assert found.shape == content.shape
    assert found.min() >= 0
    assert found.max() <= 1


def test_all_the_weight_on_one_style_is_that_style(stylizer: Stylizer) -> None:
    content, one, other = torch.rand(3, 24, 24), torch.rand(3, 24, 24), torch.rand(3, 24, 24) / 2
    blended = stylizer(content, [one, other], weights=[1.0, 0.0])
    torch.testing.assert_close(blended, stylizer(content, one), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]])
def test_impossible_weights_are_refused(stylizer: Stylizer, weights: list[float]) -> None:
    picture = torch.rand(3, 16, 16)
    with pytest.raises(UsageError, match="weights"):
        stylizer(picture, [picture, picture], weights=weights)


def test_the_result_is_an_ordinary_tensor_that_training_may_use(stylizer: Stylizer) -> None:
    found = stylizer(torch.rand(3, 24, 24), torch.rand(3, 24, 24))
    weight = torch.ones(1, requires_grad=True)
    (found * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    "picture", [torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(16, 16, 3), torch.zeros(1, 1, 16, 16)]
)
def test_tensors_that_are_no_pictures_are_refused(stylizer: Stylizer, picture: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="floating-point tensors"):
        stylizer(picture, torch.rand(3, 16, 16))


def test_impossible_alpha_and_size_are_refused(stylizer: Stylizer) -> None:
    with pytest.raises(UsageError, match="alpha"):
        stylizer(torch.rand(3, 16, 16), torch.rand(3, 16, 16), alpha=1.5)
    with pytest.raises(UsageError, match="9 pixels"):
        stylizer(torch.rand(3, 8, 16), torch.rand(3, 16, 16))
