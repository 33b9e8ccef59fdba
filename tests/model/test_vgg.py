"""The encoder against torchvision's VGG, and against stored values of the shipped weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision.models as tv
from torch import Tensor, nn

from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import CHANNELS, TAPS, VggArchitecture
from stylize_batch.model.importing import File, load_encoder
from stylize_batch.model.network import loss_network
from stylize_batch.model.vgg import Encoder

GOLDEN = Path(__file__).parent / "golden.safetensors"

TORCHVISION_TAPS: dict[str, tuple[int, ...]] = {"vgg16": (1, 6, 11, 18), "vgg19": (1, 6, 11, 20)}
"""Positions of relu1_1 … relu4_1 in torchvision's `features`."""


def picture(height: int = 64, width: int = 80) -> Tensor:
    """A smooth colourful test picture [1, 3, H, W] in 0..1, the same everywhere."""
    y = torch.arange(height, dtype=torch.float64)[:, None] / height
    x = torch.arange(width, dtype=torch.float64)[None] / width
    channels = [torch.sin(9 * x + 4 * y), torch.cos(7 * y - 3 * x), torch.sin(20 * x * y)]
    return (torch.stack(channels)[None] / 2 + 0.5).float()


@pytest.mark.parametrize("architecture", ["vgg16", "vgg19"])
def test_taps_equal_torchvisions_vgg_away_from_the_border(architecture: VggArchitecture) -> None:
    torch.manual_seed(0)
    reference = getattr(tv, architecture)(weights=None).features.eval()
    data = safetensors.torch.save(reference.state_dict())
    encoder = load_encoder(File("vgg", data), "unit")
    images = torch.rand(1, 3, 160, 160)
    expected: list[Tensor] = []
    x = images
    with torch.inference_mode():
        for position, layer in enumerate(reference):
            x = layer(x)
            if position in TORCHVISION_TAPS[architecture]:
                expected.append(x.clone())
            if position == TORCHVISION_TAPS[architecture][-1]:
                break
        found = encoder.taps(images)
    for tap, want, scale in zip(found, expected, (1, 2, 4, 8), strict=True):
        assert tap.shape == want.shape
        border = 48 // scale  # torchvision pads with zeros, which reaches so far
        inner = slice(border, 160 // scale - border)
        torch.testing.assert_close(tap[..., inner, inner], want[..., inner, inner], rtol=1e-4, atol=1e-5)


def test_padding_is_reflection() -> None:
    encoder = Encoder("vgg16").requires_grad_(False)
    image = torch.rand(1, 3, 16, 16)
    padded = nn.ReflectionPad2d(1)(image)
    expected = torch.relu(nn.functional.conv2d(padded, encoder.conv1_1.weight, encoder.conv1_1.bias))  # type: ignore[arg-type]
    torch.testing.assert_close(encoder.taps(image)[0], expected)


@pytest.mark.parametrize(("side", "cells"), [(9, 2), (16, 2), (17, 3), (64, 8), (65, 9)])
def test_pooling_rounds_up_so_that_no_pixel_is_dropped(side: int, cells: int) -> None:
    encoder = Encoder("vgg16").requires_grad_(False)
    assert encoder(torch.zeros(1, 3, side, 16)).shape == (1, 512, cells, 2)


@pytest.mark.parametrize("architecture", ["vgg16", "vgg19"])
def test_taps_have_the_papers_channels(architecture: VggArchitecture) -> None:
    taps = Encoder(architecture).requires_grad_(False).taps(torch.zeros(1, 3, 16, 16))
    assert len(taps) == len(TAPS)
    assert tuple(tap.shape[1] for tap in taps) == CHANNELS


def test_shipped_encoder_still_computes_the_stored_taps() -> None:
    golden = safetensors.torch.load_file(GOLDEN)
    encoder = loss_network(checkpoint.loads(container.builtin_bytes(container.DEFAULT)))
    with torch.inference_mode():
        for name, tap in zip(TAPS, encoder.taps(picture()), strict=True):
            torch.testing.assert_close(tap[:, ::16, ::4, ::4], golden[name], rtol=1e-3, atol=1e-3)


def test_filters_of_the_normalised_encoder_average_one() -> None:
    """The losses are on the published scale only if mean activations are about 1 (weights' README)."""
    encoder = loss_network(checkpoint.loads(container.builtin_bytes(container.DEFAULT)))
    with torch.inference_mode():
        for tap in encoder.taps(picture(256, 256)):
            assert 0.2 < tap.mean() < 5
