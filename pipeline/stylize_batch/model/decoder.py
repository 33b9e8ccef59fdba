"""The decoder g: the encoder mirrored, without any normalization (paper §6.1)."""

from __future__ import annotations

from stylize_batch.model.architecture import VggArchitecture, vgg_decoder
from stylize_batch.model.chain import Chain
from stylize_batch.model.convolution import EnlargingConv2d, ReflectedConv2d


class Decoder(Chain):
    """Mirror of `Encoder`: nearest ×2 up-sampling for pooling, reflection padding, ReLU after all but the last.

    Input: relu4_1 features, float [N, 512, h, w], h and w ≥ 2. Output: [N, 3, 8h, 8w], RGB around 0..1
    (no output activation: clamp when an image is written).
    Each convolution carries the name of the encoder convolution it mirrors.
    """

    def __init__(self, architecture: VggArchitecture) -> None:
        super().__init__()
        self.architecture: VggArchitecture = architecture
        enlarge = False
        *_, last = convolutions = vgg_decoder(architecture)
        for conv in convolutions:
            kind = EnlargingConv2d if enlarge else ReflectedConv2d
            self.add_module(conv.name, kind(conv.channels_in, conv.channels_out, relu=conv is not last))
            enlarge = conv.name.endswith("_1")  # the encoder pools before each block's first convolution
