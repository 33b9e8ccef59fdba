"""Models for tests: the shipped one, and random ones that answer every change of their input."""

from __future__ import annotations

import torch
from torch import nn

from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import Architecture
from stylize_batch.model.checkpoint import Checkpoint
from tests.model.test_vgg import picture


def model_of(architecture: Architecture) -> Checkpoint:
    """Return the shipped VGG-16 model, without the bound of its AdaIN, or one of another architecture with random weights.

    Default initialisation would fade to nothing over twenty layers; here every layer keeps the scale of its
    input, and decoded pictures have a mean near 0.5 and a deviation near 0.2, as photographs have.
    """
    if architecture == "vgg16":
        shipped = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
        # The paper's formulas hold exactly.
        return shipped._replace(metadata={k: v for k, v in shipped.metadata.items() if k != "max_gain"})
    torch.manual_seed(1)
    encoder, decoder = checkpoint.build(architecture)
    for module in (encoder, decoder):
        for conv in module.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight)
                nn.init.uniform_(conv.bias, -0.1, 0.1)  # pyright: ignore[reportArgumentType]
    last = list(decoder.modules())[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight *= 0.2 / decoder(*encoder.features(picture(64, 64))).std()
        last.bias += 0.5 - decoder(*encoder.features(picture(64, 64))).mean()
    return checkpoint.loads(checkpoint.dumps(encoder, decoder, {"name": "random"}))
