"""The optimisation baseline minimises what it says, inside the range of pixels."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from stylize_batch.evaluation.baseline import STYLE_WEIGHT, optimise
from stylize_batch.evaluation.methods import Content, Style, encode_content, encode_style, measure
from stylize_batch.model import checkpoint, container
from stylize_batch.model.network import Network, loss_network
from stylize_batch.model.vgg import Encoder


@pytest.fixture(scope="module")
def phi() -> Encoder:
    return loss_network(checkpoint.loads(container.builtin_bytes(container.DEFAULT)))


@pytest.fixture(scope="module")
def content(phi: Encoder) -> Content:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    return encode_content(phi, "ramp", "", ramp * torch.tensor([1.0, 0.5, 0.2]).reshape(1, 3, 1, 1))


@pytest.fixture(scope="module")
def style(phi: Encoder) -> Style:
    """Black and white stripes, which pull pixels out of 0..1."""
    stripes = (torch.arange(32) // 4 % 2).float().expand(1, 3, 32, 32)
    return encode_style(phi, "stripes", "", stripes)


def run(phi: Encoder, content: Content, style: Style, iterations: int) -> list[Tensor]:
    return list(islice(optimise(phi, content.image, content.features, style.targets), iterations))


def test_it_lowers_its_objective_and_keeps_the_pixels_in_range(
    phi: Encoder, content: Content, style: Style
) -> None:
    def objective(picture: Tensor) -> float:
        scores = measure(phi, picture, content, style)
        return scores.content_distance + STYLE_WEIGHT * scores.style_loss

    pictures = run(phi, content, style, 40)
    values = [objective(each) for each in (content.image, *pictures[9::10])]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1 * values[0]
    assert all(each.min() >= 0 and each.max() <= 1 for each in pictures)
    assert pictures[-1].max() == 1, "the stripes' white is at the limit, so the projection was needed"


def test_the_same_pair_gives_the_same_picture(phi: Encoder, content: Content, style: Style) -> None:
    one, other = run(phi, content, style, 5), run(phi, content, style, 5)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_the_content_in_its_own_style_stays_as_it_is(phi: Encoder, content: Content) -> None:
    own = encode_style(phi, "ramp", "", content.image)
    assert torch.allclose(run(phi, content, own, 3)[-1], content.image, atol=1e-4)


def test_losses_are_those_a_run_reports(phi: Encoder, content: Content, style: Style) -> None:
    network = Network(checkpoint.loads(container.builtin_bytes(container.DEFAULT)))
    features = network.encode_contents(content.image)
    picture, losses = network.stylize(features, network.encode_styles(style.image), torch.ones(1))
    assert losses is not None
    found = measure(phi, picture, content, style)
    assert found.style_loss == pytest.approx(losses.style_loss.item(), rel=1e-4)
    assert found.content_distance == pytest.approx(losses.content_distance.item(), rel=1e-4)


def test_a_picture_is_wholly_similar_to_itself_only(phi: Encoder, content: Content, style: Style) -> None:
    assert measure(phi, content.image, content, style).ssim == pytest.approx(1)
    assert measure(phi, style.image, content, style).ssim < 0.5
