"""The VGG encoders f and φ: ImageNet-trained, fixed, up to relu4_1 (paper §5, §6.1)."""

from __future__ import annotations

import itertools

from torch import Tensor

from stylize_batch.model.architecture import VggArchitecture, vgg_encoder
from stylize_batch.model.chain import Chain
from stylize_batch.model.convolution import ReflectedConv2d


class Encoder(Chain):
    """VGG up to relu4_1 with reflection padding and ceil-mode pooling.

    Input: float [N, 3, H, W], RGB in 0..1, H and W ≥ `architecture.MIN_SIDE`; the scaling and mean the original
    network expects are folded into conv1_1. Output: relu4_1, [N, 512, ⌈H/8⌉, ⌈W/8⌉].
    """

    def __init__(self, architecture: VggArchitecture) -> None:
        super().__init__()
        self.architecture: VggArchitecture = architecture
        plan = vgg_encoder(architecture)
        for conv, following in itertools.zip_longest(plan, plan[1:]):
            pool = following is not None and following.name.endswith("_1")  # the last of its block
            self.add_module(
                conv.name, ReflectedConv2d(conv.channels_in, conv.channels_out, relu=True, pool=pool)
            )

    def taps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the activations at `architecture.TAPS`, each [N, C, H', W'] at 1, 1/2, 1/4 and 1/8 of the size."""
        maps = zip(self.named_children(), self.maps(images), strict=True)
        relu1_1, relu2_1, relu3_1, relu4_1 = (found for (name, _), found in maps if name.endswith("_1"))
        return relu1_1, relu2_1, relu3_1, relu4_1

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps AdaIN works on: relu4_1 alone."""
        return (self(images),)
