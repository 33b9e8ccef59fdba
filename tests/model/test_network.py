"""The whole network: sizes, batches, the losses it reports, and models whose encoder is not φ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stylize_batch.model import checkpoint
from stylize_batch.model.adain import adain, statistics
from stylize_batch.model.architecture import ARCHITECTURES, DESIGNS, Architecture, style_width
from stylize_batch.model.checkpoint import Checkpoint
from stylize_batch.model.losses import feature_distance
from stylize_batch.model.network import LOSS_WIDTH, Network, loss_network
from tests.model.models import model_of
from tests.model.test_vgg import picture


@pytest.fixture(scope="module")
def default() -> Checkpoint:
    return model_of("vgg16")


@pytest.fixture(scope="module")
def network(default: Checkpoint) -> Network:
    return Network(default)


@pytest.fixture(scope="module", params=["vgg19", "compact"])
def other(request: pytest.FixtureRequest) -> Checkpoint:
    """A model with random weights whose encoder is not φ."""
    torch.manual_seed(1)
    return checkpoint.loads(checkpoint.dumps(*checkpoint.build(request.param), {"name": "random"}))


def stylize(network: Network, images: Tensor, style: Tensor, alpha: float = 1.0, metrics: bool = True):
    count = len(images)
    content = network.encode_contents(images, metrics=metrics)
    return network.stylize(
        content, network.encode_styles(style).expand(count, -1), torch.full((count,), alpha)
    )


@pytest.mark.parametrize(("height", "width"), [(9, 9), (16, 24), (31, 50), (65, 33)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_has_exactly_the_contents_size(architecture: Architecture, height: int, width: int) -> None:
    model = checkpoint.loads(checkpoint.dumps(*checkpoint.build(architecture), {"name": "random"}))
    images, _ = stylize(Network(model), picture(height, width), picture(32, 32).flip(1))
    assert images.shape == (1, 3, height, width)


def test_a_style_is_as_wide_as_the_object_store_is_told(default: Checkpoint, other: Checkpoint) -> None:
    for model in (default, other):
        width = Network(model).encode_styles(picture(32, 32)).shape[1]
        assert width <= style_width(model.encoder.architecture)
        assert model is default or width == style_width(model.encoder.architecture)


def test_output_is_clamped_to_the_range_of_images(network: Network) -> None:
    images, _ = stylize(network, picture(), picture().flip(1))
    assert images.min() >= 0
    assert images.max() <= 1


def test_alpha_zero_decodes_the_contents_own_features(network: Network, default: Checkpoint) -> None:
    with torch.inference_mode():
        expected = default.decoder(default.encoder(picture())).clamp(0, 1)
    images, _ = stylize(network, picture(), picture().flip(1), alpha=0.0)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_reported_losses_follow_their_definitions(
    network: Network, default: Checkpoint, alpha: float
) -> None:
    style = picture(40, 56).flip(1)
    images, losses = stylize(network, picture(), style, alpha)
    assert losses is not None
    with torch.inference_mode():
        phi = loss_network(default)
        content, found, wanted = phi(picture()), phi.taps(images), phi.taps(style)
        target = adain(statistics(content), statistics(wanted[-1]), alpha).apply(content)
        style_loss = sum(
            ((statistics(a).mean - statistics(b).mean) ** 2).mean()
            + ((statistics(a).std - statistics(b).std) ** 2).mean()
            for a, b in zip(found, wanted, strict=True)
        )
    assert losses.content_loss.item() == pytest.approx(((found[-1] - target) ** 2).mean().item(), rel=1e-3)
    assert losses.content_distance.item() == pytest.approx(
        ((found[-1] - content) ** 2).mean().item(), rel=1e-3
    )
    assert losses.style_loss.item() == pytest.approx(float(style_loss), rel=1e-3)


def test_the_gain_of_a_channel_has_the_bound_that_the_model_names(default: Checkpoint) -> None:
    style = picture(40, 56).flip(1)
    bounded = default._replace(metadata={**default.metadata, "max_gain": "1.5"})
    images, losses = stylize(Network(bounded), picture(), style)
    assert losses is not None
    with torch.inference_mode():
        content, wanted = default.encoder.features(picture())[0], default.encoder.features(style)[0]
        own, other = statistics(content), statistics(wanted)
        gain = (other.std / own.std).minimum(torch.tensor(1.5))[:, :, None, None]
        assert (gain == 1.5).any()
        target = (content - own.mean[:, :, None, None]) * gain + other.mean[:, :, None, None]
        expected = default.decoder(target).clamp(0, 1)[:, :, : images.shape[2], : images.shape[3]]
        free = adain(own, other).apply(content)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)
    # Models are compared by their distance from the same target.
    assert losses.content_loss.item() == pytest.approx(
        feature_distance(default.encoder.features(images)[0], free).item(), rel=1e-3
    )


def test_another_encoder_is_measured_on_the_same_loss_network(other: Checkpoint, default: Checkpoint) -> None:
    network = Network(other)
    style = picture(32, 32).flip(1)
    vector = network.encode_styles(style)
    own = sum(DESIGNS[other.encoder.architecture].channels)
    assert vector.shape == (1, LOSS_WIDTH + 2 * own)
    torch.testing.assert_close(vector[:, :LOSS_WIDTH], Network(default).encode_styles(style))
    images, losses = stylize(network, picture(32, 32), style)
    assert losses is not None
    with torch.inference_mode():
        phi = loss_network(default)
        expected = ((phi(images) - phi(picture(32, 32))) ** 2).mean()
    assert losses.content_distance.item() == pytest.approx(expected.item(), rel=1e-3)


def test_another_encoders_own_statistics_drive_the_transfer(other: Checkpoint) -> None:
    style = picture(32, 32).flip(1)
    images, _ = stylize(Network(other), picture(32, 32), style)
    with torch.inference_mode():
        targets = [
            adain(statistics(content), statistics(wanted)).apply(content)
            for content, wanted in zip(
                other.encoder.features(picture(32, 32)), other.encoder.features(style), strict=True
            )
        ]
        expected = other.decoder(*targets).clamp(0, 1)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


def test_the_callers_autocast_changes_no_pixel(network: Network) -> None:
    exact, _ = stylize(network, picture(), picture().flip(1))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = stylize(network, picture(), picture().flip(1))
    assert torch.equal(found, exact)


def test_bfloat16_stays_near_full_precision(default: Checkpoint) -> None:
    exact, _ = stylize(Network(default), picture(), picture().flip(1))
    rough, _ = stylize(Network(default, precision="bf16"), picture().bfloat16(), picture().flip(1).bfloat16())
    assert (exact - rough.float()).abs().mean() < 0.02


def test_an_encoder_with_other_weights_is_no_loss_network_though_the_architecture_is_the_same(
    default: Checkpoint,
) -> None:
    torch.manual_seed(2)
    trained = checkpoint.loads(checkpoint.dumps(*checkpoint.build("vgg16"), {"name": "random"}))
    own = default.encoder.state_dict()
    for phi in (loss_network(trained), loss_network(default)):
        assert all(torch.equal(value, own[key]) for key, value in phi.state_dict().items())
