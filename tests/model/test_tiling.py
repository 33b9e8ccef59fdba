"""Tiles equal the whole picture: features, pictures and losses, with and without controls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stylize_batch.model.adain import moments
from stylize_batch.model.architecture import (
    ARCHITECTURES,
    DESIGNS,
    ENCODER_HALO,
    Architecture,
)
from stylize_batch.model.color import colors, recoloring
from stylize_batch.model.losses import Losses
from stylize_batch.model.network import Network
from stylize_batch.model.tiling import STRIDE, Box, tiles
from tests.model.models import model_of
from tests.model.test_vgg import picture

SHORT = 48
PASS_PIXELS = SHORT * 336
"""Strips of this shorter side are cut into tiles of at least 64 columns, whatever the model's halo."""

STYLE = picture(48, 64).flip(1)


@pytest.fixture(scope="module", params=["vgg16", "compact"])
def networks(request: pytest.FixtureRequest) -> tuple[Network, Network]:
    """A network that takes any picture whole, and one that tiles."""
    model = model_of(request.param)
    return Network(model), Network(model, pass_pixels=PASS_PIXELS)


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([32, 96, 136]), st.integers(30_000, 200_000))
def test_tiles_cover_every_pixel_once_on_the_grid_and_fit_a_pass(
    height: int, width: int, halo: int, pass_pixels: int
) -> None:
    seen = torch.zeros(height, width)
    cut = tiles(height, width, halo, pass_pixels)
    for tile in cut:
        assert tile.top % STRIDE == tile.left % STRIDE == 0
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
        outer = tile.grown(halo, height, width)
        smallest = (2 * halo + STRIDE) ** 2  # a pass cannot hold less than one cell with its halo
        assert (outer.bottom - outer.top) * (outer.right - outer.left) <= max(pass_pixels, smallest)
    assert (seen == 1).all()
    assert (len(cut) == 1) == (height * width <= pass_pixels)


@given(st.integers(0, 1000), st.integers(1, 39), st.floats(-1e3, 1e3))
def test_merged_moments_are_those_of_the_whole(seed: int, cut: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 5, 40, generator=generator) + offset
    weights = torch.rand(2, 1, 5, 40, generator=generator).round()
    for weight in (None, weights):
        parts = [
            moments(x[..., a:b], None if weight is None else weight[..., a:b])
            for a, b in ((0, cut), (cut, 40))
        ]
        whole, merged = moments(x, weight), parts[0].merge(parts[1])
        for found, expected in zip(merged, whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def stylize(
    network: Network, image: Tensor, alpha: float = 1.0, masks: Tensor | None = None
) -> tuple[Tensor, Losses]:
    content = network.encode_contents(image)
    vectors = network.encode_styles(STYLE)
    if masks is not None:
        vectors = torch.cat([vectors, network.encode_styles(1 - STYLE)])[None]
    images, losses = network.stylize(content, vectors, torch.tensor([alpha]), masks)
    assert losses is not None
    return images, losses


def assert_same(one: tuple[Tensor, Losses], other: tuple[Tensor, Losses]) -> None:
    assert (one[0] - other[0]).abs().max() < 0.2 / 255
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


# Sides that end on the grid, one pixel after it (a last cell of one pixel, ceil-mode pooling) and before it.
@pytest.mark.parametrize(("height", "width"), [(SHORT, 392), (41, 449), (399, 47)])
def test_tiled_pictures_and_losses_equal_untiled_ones(
    networks: tuple[Network, Network], height: int, width: int
) -> None:
    whole, tiled = networks
    image = picture(height, width)
    assert len(tiled.encode_contents(image).tiles) > 2
    assert_same(stylize(whole, image), stylize(tiled, image))


@pytest.mark.parametrize(("architecture", "side"), [("vgg16", 392), ("compact", 552)])
def test_tiles_in_both_directions_meet_exactly(architecture: Architecture, side: int) -> None:
    model = model_of(architecture)
    image = picture(side + 1, side + 1)
    found: list[Tensor] = []
    for pass_pixels, expected in (((side + 1) ** 2, 1), (side**2, 4)):
        network = Network(model, pass_pixels=pass_pixels)
        content = network.encode_contents(image, metrics=False)
        assert len(content.tiles) == expected
        found.append(network.stylize(content, network.encode_styles(STYLE), torch.ones(1))[0])
    assert (found[0] - found[1]).abs().max() < 0.2 / 255


def test_tiles_are_exact_with_masks_and_alpha_too(networks: tuple[Network, Network]) -> None:
    whole, tiled = networks
    image = picture(43, 413)
    ramp = torch.linspace(0, 255, 413).round().byte().expand(1, 1, 43, 413)
    masks = torch.cat([ramp, 255 - ramp.flip(3) // 2], 1)
    assert_same(stylize(whole, image, 0.7, masks), stylize(tiled, image, 0.7, masks))


def test_style_statistics_of_large_images_are_exact(networks: tuple[Network, Network]) -> None:
    whole, tiled = networks
    style = picture(43, 421)
    to = recoloring(colors(style[0]), colors(STYLE[0]))
    for recolored in (None, to):
        expected = whole.encode_styles(style, recolored)
        torch.testing.assert_close(tiled.encode_styles(style, recolored), expected, rtol=1e-3, atol=1e-4)


def test_bytes_are_collected_as_bytes(networks: tuple[Network, Network]) -> None:
    _, tiled = networks
    data = (picture(41, 401) * 255).round().byte()
    images, _ = stylize(tiled, data)

    def to_bytes(images: Tensor) -> Tensor:
        return (images * 255).round().byte()

    content = tiled.encode_contents(data)
    finished, _ = tiled.stylize(content, tiled.encode_styles(STYLE), torch.ones(1), finish=to_bytes)
    assert finished.dtype == torch.uint8
    assert torch.equal(finished, to_bytes(images))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_beyond_the_halo_changes_a_tile(architecture: Architecture) -> None:
    model = model_of(architecture)
    whole, tile = Box(0, 0, SHORT, 336), Box(0, 160, SHORT, 168)

    def beyond(halo: int, stride: int, values: Tensor) -> Tensor:
        changed, outer = values.flip(3), tile.grown(halo, SHORT, 336)
        cells = slice(outer.left // stride, outer.right // stride)
        changed[..., cells] = values[..., cells]
        return changed

    with torch.inference_mode():
        image = picture(SHORT, 336)
        strides = DESIGNS[architecture].strides
        maps, changed = model.encoder.features(image), model.encoder.features(beyond(ENCODER_HALO, 1, image))
        for one, other, stride in zip(maps, changed, strides, strict=True):
            torch.testing.assert_close(tile.crop(one, whole, stride), tile.crop(other, whole, stride))
        halo = DESIGNS[architecture].decoder_halo
        decoded = model.decoder(*maps)
        again = model.decoder(
            *(beyond(halo, stride, each) for each, stride in zip(maps, strides, strict=True))
        )
        torch.testing.assert_close(tile.crop(decoded, whole), tile.crop(again, whole))
        less = model.decoder(
            *(beyond(halo - 8, stride, each) for each, stride in zip(maps, strides, strict=True))
        )
        assert not torch.allclose(tile.crop(decoded, whole), tile.crop(less, whole), rtol=0, atol=1e-5)
