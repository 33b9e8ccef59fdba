"""The VGG encoders f and φ: ImageNet-trained, fixed, up to relu4_1 (paper §5, §6.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stylize_batch.model.architecture import Architecture, conv_plan


class Encoder(nn.Module):
    """VGG up to relu4_1 with reflection padding and ceil-mode pooling.

    Input: float [N, 3, H, W], RGB in 0..1, H and W ≥ `architecture.MIN_SIDE`; the scaling and mean the original
    network expects are folded into conv1_1. Output: relu4_1, [N, 512, ⌈H/8⌉, ⌈W/8⌉].
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture: Architecture = architecture
        for name, channels_in, channels_out in conv_plan(architecture):
            self.add_module(name, nn.Conv2d(channels_in, channels_out, 3))

    def taps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the activations at `architecture.TAPS`, each [N, C, H', W'] at 1, 1/2, 1/4 and 1/8 of the size."""
        x = images
        found: list[Tensor] = []
        for name, conv in self.named_children():
            if name.endswith("_1") and found:
                x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            x = F.relu(conv(F.pad(x, (1, 1, 1, 1), mode="reflect")))
            if name.endswith("_1"):
                found.append(x)
        relu1_1, relu2_1, relu3_1, relu4_1 = found
        return relu1_1, relu2_1, relu3_1, relu4_1

    def forward(self, images: Tensor) -> Tensor:
        """Return relu4_1, the representation AdaIN works on."""
        return self.taps(images)[-1]


def load_torchvision_features(architecture: Architecture, state: dict[str, Tensor]) -> Encoder:
    """Build an encoder from weights keyed as torchvision's `vgg*().features` (`features.0.weight`, …).

    The weights must already take RGB in 0..1 (the "normalised" encoders do).

    Raises:
        KeyError: a convolution up to conv4_1 is missing.
    """
    encoder = Encoder(architecture)
    position = 0  # of the convolution in torchvision's list, where ReLUs and pools count too
    renamed: dict[str, Tensor] = {}
    for index, (name, _, _) in enumerate(conv_plan(architecture)):
        if name.endswith("_1") and index:
            position += 1  # the max-pool between blocks
        for kind in ("weight", "bias"):
            renamed[f"{name}.{kind}"] = state[f"features.{position}.{kind}"].float()
        position += 2
    encoder.load_state_dict(renamed)
    return encoder
