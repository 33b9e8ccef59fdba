"""The decoder against the layer list of the published PyTorch port, and against stored values."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import nn

from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import VggArchitecture
from stylize_batch.model.decoder import Decoder
from tests.model.test_vgg import GOLDEN, picture

UP = "up"
# Channels out of each convolution, written from §6.1's description, not from the code.
LAYOUT: dict[str, list[int | str]] = {
    "vgg19": [256, UP, 256, 256, 256, 128, UP, 128, 64, UP, 64, 3],
    "vgg16": [256, UP, 256, 256, 128, UP, 128, 64, UP, 64, 3],
}


def written_out(layout: list[int | str]) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 512
    for item in layout:
        if isinstance(item, str):
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            continue
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, item, 3), nn.ReLU()]
        channels = item
    return nn.Sequential(*layers[:-1])  # no activation after the last


@pytest.mark.parametrize("architecture", ["vgg16", "vgg19"])
def test_decoder_equals_the_papers_layers_written_out(architecture: VggArchitecture) -> None:
    torch.manual_seed(0)
    decoder = Decoder(architecture).requires_grad_(False)
    reference = written_out(LAYOUT[architecture]).requires_grad_(False)
    convolutions = [layer for layer in reference if isinstance(layer, nn.Conv2d)]
    own = [layer for layer in decoder.children() if isinstance(layer, nn.Conv2d)]
    for ours, theirs in zip(own, convolutions, strict=True):
        theirs.load_state_dict(ours.state_dict())
    features = torch.randn(2, 512, 5, 4)
    torch.testing.assert_close(decoder(features), reference(features))


def test_decoder_multiplies_each_side_by_eight() -> None:
    assert Decoder("vgg16").requires_grad_(False)(torch.zeros(1, 512, 2, 3)).shape == (1, 3, 16, 24)


def test_shipped_decoder_still_computes_the_stored_picture() -> None:
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    with torch.inference_mode():
        found = model.decoder(model.encoder(picture()))
    golden = safetensors.torch.load_file(GOLDEN)["decoder"]
    torch.testing.assert_close(found[:, :, ::4, ::4], golden, rtol=1e-3, atol=1e-3)
