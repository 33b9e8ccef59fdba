"""Spatial control (§7.3) on the whole network, alone and with the other controls; losses by their definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylize_batch.model.adain import AffineMap, Statistics, adain, moments, over_regions, statistics
from stylize_batch.model.architecture import ARCHITECTURES, DESIGNS, TAP_STRIDES
from stylize_batch.model.checkpoint import Checkpoint
from stylize_batch.model.color import colors, recoloring
from stylize_batch.model.losses import Losses
from stylize_batch.model.network import Network, loss_network
from stylize_batch.model.regions import Regions
from stylize_batch.model.tiling import Box
from tests.conftest import SAMPLE, cores
from tests.model.models import model_of
from tests.model.test_vgg import picture

HEIGHT, WIDTH = 37, 52
STYLES = torch.cat([picture(40, 40).flip(1), picture(40, 40).flip(2) ** 2, 1 - picture(40, 40)])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Checkpoint:
    return model_of(request.param)


@pytest.fixture(scope="module")
def network(model: Checkpoint) -> Network:
    return Network(model)


def soft_masks(regions: int = 2) -> Tensor:
    """Overlapping soft blobs that leave some of the picture uncovered, uint8 [1, K, H, W]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij")
    centres = torch.linspace(-0.6, 0.6, regions)
    blobs = [1.4 - 1.6 * ((x - centre) ** 2 + y**2 / 2).sqrt() for centre in centres]
    return (torch.stack(blobs).clamp(0, 1) * 255).round().byte()[None]


def stylize(
    network: Network, styles: Tensor, masks: Tensor | None = None, alpha: float = 1.0
) -> tuple[Tensor, Losses]:
    content = network.encode_contents(picture(HEIGHT, WIDTH))
    vectors = network.encode_styles(styles)
    vectors = vectors if masks is None else vectors[None]
    images, losses = network.stylize(content, vectors, torch.tensor([alpha]), masks)
    assert losses is not None
    return images, losses


def assert_same(one: tuple[Tensor, Losses], other: tuple[Tensor, Losses]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-3)
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_a_mask_that_covers_everything_is_no_mask(network: Network, alpha: float) -> None:
    full = torch.full((1, 1, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    assert_same(stylize(network, STYLES[:1], full, alpha), stylize(network, STYLES[:1], alpha=alpha))


@pytest.mark.parametrize("level", [128, 255])
def test_equal_masks_with_one_style_are_no_mask(network: Network, level: int) -> None:
    equal = torch.full((1, 2, HEIGHT, WIDTH), level, dtype=torch.uint8)
    assert_same(stylize(network, STYLES[[0, 0]], equal), stylize(network, STYLES[:1]))


def test_equal_masks_blend_their_styles_equally(network: Network) -> None:
    equal = torch.full((1, 2, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    content = network.encode_contents(picture(HEIGHT, WIDTH), metrics=False)
    blended = network.encode_styles(STYLES[:2]).mean(0, keepdim=True)
    expected, _ = network.stylize(content, blended, torch.ones(1))
    torch.testing.assert_close(stylize(network, STYLES[:2], equal)[0], expected, rtol=0, atol=1e-3)


def test_alpha_zero_ignores_masks(network: Network) -> None:
    plain, _ = stylize(network, STYLES[:1], alpha=0.0)
    masked, losses = stylize(network, STYLES[:2], soft_masks(), alpha=0.0)
    assert torch.equal(masked, plain)
    torch.testing.assert_close(losses.content_loss, losses.content_distance)


def test_far_from_its_mask_a_style_changes_nothing(network: Network) -> None:
    height, width = 16, 400
    corner = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    corner[..., :16] = 255
    content = network.encode_contents(picture(height, width), metrics=False)
    vector = network.encode_styles(STYLES[:1])
    masked, _ = network.stylize(content, vector[None], torch.ones(1), corner)
    plain, _ = network.stylize(content, vector, torch.zeros(1))
    torch.testing.assert_close(masked[..., 128:], plain[..., 128:], rtol=0, atol=1e-4)
    assert (masked[..., :16] - plain[..., :16]).abs().mean() > 1e-3


def test_one_pixel_is_a_region(network: Network) -> None:
    dot = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.uint8)
    dot[..., 20, 30] = 255
    images, losses = stylize(network, STYLES[:2], torch.cat([dot, 255 - dot], 1))
    assert images.isfinite().all()
    assert all(loss.isfinite().all() for loss in losses)


def test_regions_get_the_statistics_of_their_styles() -> None:
    x = torch.randn(1, 4, 12, 10, generator=torch.Generator().manual_seed(1)) * 2 + 1
    left = torch.zeros(1, 1, 12, 10)
    left[..., :4] = 1
    weights = [left, 1 - left]
    styles = [Statistics(torch.full((1, 4), float(k)), torch.full((1, 4), k + 0.5)) for k in (1, 5)]
    maps = [
        adain(moments(x, weight).statistics(), style) for weight, style in zip(weights, styles, strict=True)
    ]
    found = over_regions(maps, weights).apply(x)
    for part, style in zip((found[..., :4], found[..., 4:]), styles, strict=True):
        torch.testing.assert_close(statistics(part).mean, style.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(statistics(part).std, style.std, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("area", [1.0, 0.02])
def test_a_regions_statistics_do_not_depend_on_how_small_it_is(area: float) -> None:
    x = torch.randn(1, 4, 12, 10, generator=torch.Generator().manual_seed(1)) * 2 + 1
    shares = torch.rand(1, 1, 12, 10, generator=torch.Generator().manual_seed(2))
    found, expected = moments(x, shares / shares.sum() * area), moments(x, shares).statistics()
    for correction in (0, 1):  # one position has no unbiased variance
        torch.testing.assert_close(found.statistics(correction).mean, expected.mean)
        torch.testing.assert_close(found.statistics(correction).std, expected.std)


def test_a_regions_statistics_do_not_depend_on_the_number_of_cores() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, 256, 352, generator=generator)
    shares = torch.rand(8, 1, 1, 256, 352, generator=generator)
    found: list[list[Statistics]] = []
    for count in (1, 2):
        with cores(count):
            found.append([moments(x, share).statistics() for share in shares])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.std, other.std)


def test_two_masks_with_one_style_are_no_mask_where_the_content_is_the_same_in_both() -> None:
    half = torch.randn(1, 4, 12, 5, generator=torch.Generator().manual_seed(1))
    x = torch.cat([half, half.flip(3)], 3)
    style = Statistics(torch.full((1, 4), 3.0), torch.full((1, 4), 2.0))
    left = torch.zeros(1, 1, 12, 10)
    left[..., :5] = 1
    maps = [adain(moments(x, weight).statistics(), style) for weight in (left, 1 - left)]
    expected = adain(statistics(x), style).apply(x)
    torch.testing.assert_close(over_regions(maps, [left, 1 - left]).apply(x), expected, rtol=1e-4, atol=1e-4)


def test_a_soft_edge_fades_into_the_content_and_overlapping_masks_share() -> None:
    masks = torch.tensor([[[[255, 51, 0, 255]], [[255, 0, 0, 153]]]], dtype=torch.uint8)
    one, other = Regions(masks).weights(Box(0, 0, 1, 4), 1, torch.zeros(1))
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one.flatten(), torch.tensor([0.5, 0.2, 0.0, 0.625]))
    torch.testing.assert_close(other.flatten(), torch.tensor([0.5, 0.0, 0.0, 0.375]))
    x = torch.randn(1, 2, 1, 4, generator=torch.Generator().manual_seed(1))
    shift = AffineMap(torch.ones(1, 2, 1, 1), torch.full((1, 2, 1, 1), 10.0))
    moved = over_regions([shift, shift], [one, other]).apply(x) - x
    torch.testing.assert_close(moved[0, 0, 0], torch.tensor([10.0, 2.0, 0.0, 10.0]))


def sample(path: str, height: int, width: int) -> Tensor:
    with Image.open(Path(SAMPLE) / path) as image:
        pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize("feather", [1, 24])
def test_a_mask_and_its_complement_meet_without_a_bright_seam(feather: int) -> None:
    network = Network(model_of("vgg16"))
    height, width = 96, 192
    ramp = ((torch.arange(width) - width / 2) / feather + 0.5).clamp(0, 1)
    mask = (ramp * 255).round().byte().expand(1, 1, height, width)
    styles = ["style/van-gogh-cafe-terrace.jpg", "style/tapa-cloth.jpg"]
    vectors = torch.cat([network.encode_styles(sample(style, 96, 96)) for style in styles])[None]
    content = network.encode_contents(sample("content/colosseum.jpg", height, width), metrics=False)
    images, _ = network.stylize(content, vectors, torch.ones(1), torch.cat([mask, 255 - mask], 1))
    singles = [network.stylize(content, vectors[:, k], torch.ones(1))[0] for k in (0, 1)]
    # Where the regions meet, the picture is about as bright as either style alone makes it there.
    seam, one, other = (
        picture[..., 72:120].mean((0, 1, 2)).reshape(-1, 8).mean(1) for picture in (images, *singles)
    )
    assert (seam <= torch.maximum(one, other) + 0.05).all()
    assert (seam >= torch.minimum(one, other) - 0.05).all()


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_losses_with_masks_colours_and_alpha_follow_their_definitions(
    model: Checkpoint, alpha: float
) -> None:
    network = Network(model)
    image, masks = picture(HEIGHT, WIDTH), soft_masks(3)
    maps = [recoloring(colors(style), colors(image[0])) for style in STYLES]
    vectors = [network.encode_styles(style[None], to) for style, to in zip(STYLES, maps, strict=True)]
    content = network.encode_contents(image)
    images, losses = network.stylize(content, torch.cat(vectors)[None], torch.tensor([alpha]), masks)
    assert losses is not None

    phi = loss_network(model)

    def weights(stride: int) -> Tensor:
        cover = masks[0].double() / 255
        cells = F.avg_pool2d(cover[None], stride, ceil_mode=True)[0]
        return cells / cells.sum(0).clamp(min=1)

    def mean_and_deviation(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x * weight).sum((1, 2)) / weight.sum()
        variance = ((x - mean[:, None, None]) ** 2 * weight).sum((1, 2)) / weight.sum()
        return mean, (variance + 1e-5).sqrt()

    def target(x: Tensor, style_features: list[Tensor], weight: Tensor) -> Tensor:
        result = (1 - alpha * weight.sum(0)) * x
        for each, style in zip(weight, style_features, strict=True):
            mean, std = mean_and_deviation(x, each)
            style_mean, style_std = mean_and_deviation(style, torch.ones_like(style[0]))
            normalized = (x - mean[:, None, None]) / std[:, None, None]
            result = result + alpha * each * (
                normalized * style_std[:, None, None] + style_mean[:, None, None]
            )
        return result

    recolored = [to.apply(style[None]).clamp(0, 1) for style, to in zip(STYLES, maps, strict=True)]
    with torch.inference_mode():
        own = [[layer[0].double() for layer in model.encoder.features(style)] for style in recolored]
        targets = [
            target(layer[0].double(), [style[index] for style in own], weights(stride))
            for index, (layer, stride) in enumerate(
                zip(model.encoder.features(image), DESIGNS[model.encoder.architecture].strides, strict=True)
            )
        ]
        expected = model.decoder(*(each[None].float() for each in targets))[..., :HEIGHT, :WIDTH].clamp(0, 1)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-3)

        found = [tap[0].double() for tap in phi.taps(images)]
        wanted = [[tap[0].double() for tap in phi.taps(style)] for style in recolored]
        style_loss = 0.0
        for k in range(3):
            share = weights(1)[k].mean()
            for layer, stride in enumerate(TAP_STRIDES):
                mean, std = mean_and_deviation(found[layer], weights(stride)[k])
                style_mean, style_std = mean_and_deviation(
                    wanted[k][layer], torch.ones_like(wanted[k][layer][0])
                )
                distance = ((mean - style_mean) ** 2).mean() + ((std - style_std) ** 2).mean()
                style_loss += (share * distance).item()
        content_features = phi(image)[0].double()
        t = target(content_features, [style[-1] for style in wanted], weights(8))
    assert losses.style_loss.item() == pytest.approx(style_loss, rel=1e-3)
    assert losses.content_loss.item() == pytest.approx(((found[-1] - t) ** 2).mean().item(), rel=1e-3)
    distance = ((found[-1] - content_features) ** 2).mean().item()
    assert losses.content_distance.item() == pytest.approx(distance, rel=1e-3)
