"""The Python call for single pictures."""

from __future__ import annotations

import copy
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from stylize_batch import Stylizer
from stylize_batch.errors import UsageError
from stylize_batch.model import device
from stylize_batch.model.network import ContentFeatures


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
    assert (found.shape, found.stride()) == (content.shape, content.stride())
    assert found.min() >= 0
    assert found.max() <= 1


def test_all_the_weight_on_one_style_is_that_style(stylizer: Stylizer) -> None:
    content, one, other = torch.rand(3, 24, 24), torch.rand(3, 24, 24), torch.rand(3, 24, 24) / 2
    blended = stylizer(content, [one, other], weights=[1.0, 0.0])
    torch.testing.assert_close(blended, stylizer(content, one), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [0.0, 0.0],
        [-1.0, 2.0],
        [float("nan"), 1.0],
        [1e308, 1e308],
        ["a", "b"],
        [[1.0], [1.0, 2.0]],
        1.0,
    ],
)
def test_impossible_weights_are_refused(stylizer: Stylizer, weights: Any) -> None:
    picture = torch.rand(3, 16, 16)
    with pytest.raises(UsageError, match="weights"):
        stylizer(picture, [picture, picture], weights=weights)


def test_copies_of_one_in_use_and_in_other_processes_make_the_same(pictures: Path) -> None:
    stylizer, photo = Stylizer("adain-compact"), opened(pictures / "content" / "cat.jpg")
    expected = stylizer(photo, photo)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        for found in (copy.deepcopy(stylizer)(photo, photo), process.submit(stylizer, photo, photo).result()):
            assert np.array_equal(np.asarray(found), np.asarray(expected))


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


@pytest.mark.parametrize("given", [None, 3, "cat.jpg", ["cat.jpg"], np.zeros((16, 16, 3), np.uint8)])
def test_what_is_neither_image_nor_tensor_is_refused_wherever_a_picture_belongs(
    stylizer: Stylizer, given: Any
) -> None:
    photo = torch.rand(3, 16, 16)
    with pytest.raises(UsageError, match="pictures are PIL images or tensors, not"):
        stylizer(given, photo)
    with pytest.raises(UsageError, match="pictures are PIL images or tensors, not"):
        stylizer(photo, given)
    if given is not None:
        with pytest.raises(UsageError, match="pictures are PIL images or tensors, not"):
            stylizer(photo, [photo, photo], mask=given)


@pytest.mark.parametrize(("scale", "shift"), [(255, 0), (4, -2), (float("nan"), 0)])
def test_values_far_outside_of_0_to_1_are_refused(stylizer: Stylizer, scale: float, shift: float) -> None:
    photo = torch.linspace(0, 1, 3 * 16 * 16).reshape(3, 16, 16)
    for given in ((photo * scale + shift, photo), (photo, photo * scale + shift)):
        with pytest.raises(UsageError, match=r"must be in 0\.\.1: divide"):
            stylizer(*given)
    with pytest.raises(UsageError, match=r"must be in 0\.\.1: divide"):
        stylizer(photo, photo, mask=photo[0] * scale + shift)


def test_what_resizing_leaves_a_little_outside_of_0_to_1_is_clamped(stylizer: Stylizer) -> None:
    photo = torch.rand(3, 16, 16) * 1.4 - 0.2
    assert torch.equal(stylizer(photo, photo), stylizer(photo.clamp(0, 1), photo.clamp(0, 1)))


def test_the_words_of_the_command_line_are_understood_or_refused_in_one_line() -> None:
    photo = torch.rand(3, 16, 16)
    assert Stylizer("adain-compact", device="auto")(photo, photo).shape == photo.shape
    assert Stylizer("adain-compact", device=torch.device("cpu"))(photo, photo).shape == photo.shape
    with pytest.raises(UsageError, match=r"^device gpu is unknown; use auto, cpu, cuda"):
        Stylizer(device="gpu")
    with pytest.raises(UsageError, match="precision is 'int8'; use one of fp32"):
        Stylizer(precision=cast("Any", "int8"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_images_without_a_range_and_batches_of_nothing_are_refused(stylizer: Stylizer) -> None:
    photo = torch.rand(3, 16, 16)
    with pytest.raises(UsageError, match="no defined range"):
        stylizer(Image.new("F", (16, 16)), photo)
    with pytest.raises(UsageError, match="images are floating-point tensors"):
        stylizer(photo[None][:0], photo)


@pytest.mark.parametrize(
    "options", [{"weights": [1, 3]}, {"mask": torch.rand(9, 9)}, {"preserve_color": True}]
)
def test_autocast_of_the_caller_changes_no_pixel(stylizer: Stylizer, options: dict[str, Any]) -> None:
    photo, styles = torch.rand(3, 40, 40), [torch.rand(3, 24, 24), torch.rand(3, 24, 24) / 2]
    expected = stylizer(photo, styles, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stylizer(photo, styles, **options), expected)


def test_a_stylizer_on_the_cpu_leaves_the_callers_gpu_its_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    Stylizer(device="cpu", precision="fp32")
    assert torch.backends.cudnn.allow_tf32


def test_torchs_defaults_of_the_caller_change_no_pixel() -> None:
    def pictures() -> list[torch.Tensor]:
        stylizer = Stylizer("adain-compact")
        stylizer._network.pass_pixels = 64**2  # pyright: ignore[reportPrivateUsage]
        return [
            stylizer(photo, [one, other], mask=mask),
            stylizer(photo, one, preserve_color=True),
            stylizer(large, one),
        ]

    photo, one, other, large = (torch.rand(3, 40, width) for width in (56, 24, 32, 160))
    mask = torch.rand(10, 10)
    expected = pictures()
    with torch.device("meta"):
        assert all(map(torch.equal, pictures(), expected))
    torch.set_default_dtype(torch.float64)
    try:
        assert all(map(torch.equal, pictures(), expected))
    finally:
        torch.set_default_dtype(torch.float32)


def test_impossible_alpha_and_size_are_refused(stylizer: Stylizer) -> None:
    photo = torch.rand(3, 16, 16)
    for alpha in (1.5, float("nan"), "1", None, [0.5, 0.3], torch.tensor([0.5, 0.3])):
        with pytest.raises(UsageError, match=r"alpha is .*, it must be between 0 and 1"):
            stylizer(photo, photo, alpha=cast("Any", alpha))
    for sides in ((8, 16), (0, 16)):
        with pytest.raises(UsageError, match=f"9 pixels on each side, not {sides[0]}"):
            stylizer(torch.rand(3, *sides), photo)


def test_a_full_mask_changes_nothing_and_a_mask_its_own_side(stylizer: Stylizer) -> None:
    content, one, other = (torch.rand(3, 32, 160), torch.rand(3, 24, 24), torch.rand(3, 24, 24) / 2)
    plain = stylizer(content, one)
    full = stylizer(content, one, mask=torch.ones(5, 7))
    torch.testing.assert_close(full, plain, rtol=1e-4, atol=1e-4)
    left = torch.zeros(10, 10)
    left[:, :5] = 1
    split = stylizer(content, [one, other], mask=left)
    pair = stylizer(content, [one, other], mask=[left, 1 - left])
    torch.testing.assert_close(split, pair)
    swapped = stylizer(content, [other, one], mask=1 - left)
    torch.testing.assert_close(split, swapped, rtol=1e-4, atol=1e-4)
    outside = stylizer(content, one, mask=left) - stylizer(content, one, alpha=0.0)
    assert outside[..., :40].abs().mean() > 10 * outside[..., 120:].abs().mean()


def test_masks_of_pil_images_mean_the_same_as_tensors(stylizer: Stylizer, pictures: Path) -> None:
    content, style = opened(pictures / "content" / "cat.jpg"), opened(pictures / "style" / "tapa-cloth.jpg")
    mask = torch.zeros(20, 30)
    mask[:, 10:] = 1
    drawn = Image.fromarray((mask.numpy() * 255).astype(np.uint8)).convert("RGB")
    one, other = stylizer(content, style, mask=mask), stylizer(content, style, mask=drawn)
    assert np.array_equal(np.asarray(one), np.asarray(other))


def test_preserved_colours_are_each_contents_own(stylizer: Stylizer, pictures: Path) -> None:
    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(opened(pictures / name))[:48, :48]).permute(2, 0, 1) / 255

    contents = torch.stack([tensor("content/scarlet-macaw.jpg"), tensor("content/colosseum.jpg")])
    style = tensor("style/van-gogh-cafe-terrace.jpg")
    preserved, plain = stylizer(contents, style, preserve_color=True), stylizer(contents, style)
    for found, without, content in zip(preserved, plain, contents, strict=True):
        torch.testing.assert_close(found, stylizer(content, style, preserve_color=True), rtol=0, atol=1e-3)
        own = content.mean((1, 2))
        assert (found.mean((1, 2)) - own).norm() < (without.mean((1, 2)) - own).norm()


@pytest.mark.parametrize(
    "options", [{}, {"weights": [1, 3]}, {"mask": torch.rand(9, 9)}, {"preserve_color": True}]
)
def test_a_batch_goes_through_the_network_in_parts_with_the_same_pixels(
    stylizer: Stylizer, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    contents, styles = torch.rand(5, 3, 24, 32), [torch.rand(3, 24, 24), torch.rand(3, 24, 24) / 2]
    whole = stylizer(contents, styles, **options)
    network, taken = stylizer._network, list[int]()  # pyright: ignore[reportPrivateUsage]
    encode = network.encode_contents

    def counting(images: torch.Tensor, *, metrics: bool) -> ContentFeatures:
        taken.append(len(images))
        return encode(images, metrics=metrics)

    monkeypatch.setattr(network, "encode_contents", counting)
    monkeypatch.setattr(device, "BATCH_PIXELS", 2 * 24 * 32 + 1)
    torch.testing.assert_close(stylizer(contents, styles, **options), whole, rtol=0, atol=1e-4)
    assert taken == [2, 2, 1]


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (torch.zeros(4, 4), {}, "black"),
        (torch.ones(4, 4), {"weights": [1.0]}, "combined"),
        ([torch.ones(4, 4)] * 2, {}, "2 masks for 1 style;"),
        (torch.ones(1, 4, 4), {}, r"\[H, W\]"),
        (torch.ones(0, 0), {}, r"\[H, W\]"),
        (Image.new("F", (4, 4)), {}, "a mask cannot be used: floating-point, .* no defined range"),
    ],
)
def test_impossible_masks_are_refused(
    stylizer: Stylizer, mask: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        stylizer(torch.rand(3, 16, 16), torch.rand(3, 16, 16), mask=mask, **options)
