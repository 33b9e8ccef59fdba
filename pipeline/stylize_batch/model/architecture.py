"""Which convolutions the networks have: encoders and their decoders (paper §6.1; compact). Without torch."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

VggArchitecture = Literal["vgg16", "vgg19"]
Architecture = Literal["vgg16", "vgg19", "compact"]

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

CONVS_PER_BLOCK: dict[VggArchitecture, tuple[int, int, int, int]] = {
    "vgg16": (2, 2, 3, 1),
    "vgg19": (2, 2, 4, 1),
}
"""Convolutions of each VGG block up to and including conv4_1; a 2×2 max-pool stands between blocks."""

CHANNELS = (64, 128, 256, 512)
"""Channels of the four VGG blocks, and so of the four taps."""

TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
"""The layers of the style loss (§6.2); the last is the one AdaIN works on in a VGG model."""

TAP_STRIDES = (1, 2, 4, 8)
"""Image pixels of a cell, a side, at each tap."""

COMPACT_CHANNELS = (32, 64, 96)
"""Channels of the compact encoder at 1/2, 1/4 and 1/8 of the size; AdaIN works on all three."""

COMPACT_DECODER_BLOCKS = 4
"""Residual blocks of the compact decoder at 1/8 of the size."""

MIN_SIDE = 9
"""Shortest image side: below it features at 1/8 are one cell wide, which reflection padding cannot extend."""


ENCODER_HALO = 32
"""Pixels around a tile beyond which no encoder's features of it depend; whole cells at 1/8."""


class Convolution(NamedTuple):
    """One convolution: its name in the file, channels and the side of its kernel."""

    name: str
    channels_in: int
    channels_out: int
    kernel: int = 3

    @property
    def weight_shape(self) -> list[int]:
        """Shape of its weight tensor."""
        return [self.channels_out, self.channels_in, self.kernel, self.kernel]


def vgg_encoder(architecture: VggArchitecture) -> list[Convolution]:
    """List the convolutions of a VGG encoder (`conv1_1` … `conv4_1`), in order."""
    plan: list[Convolution] = []
    channels_in = 3
    for block, (convs, channels) in enumerate(zip(CONVS_PER_BLOCK[architecture], CHANNELS, strict=True), 1):
        for index in range(1, convs + 1):
            plan.append(Convolution(f"conv{block}_{index}", channels_in, channels))
            channels_in = channels
    return plan


def vgg_decoder(architecture: VggArchitecture) -> list[Convolution]:
    """List the convolutions of its decoder, in order; each carries the name of the one it mirrors."""
    return [
        Convolution(conv.name, conv.channels_out, conv.channels_in)
        for conv in reversed(vgg_encoder(architecture))
    ]


def compact_encoder() -> list[Convolution]:
    """List the convolutions of the compact encoder, in order; `model.compact` says how they connect."""
    half, quarter, eighth = COMPACT_CHANNELS
    return [
        Convolution("to_half", 3, half, 5),
        Convolution("to_quarter", half, quarter),
        Convolution("to_eighth", quarter, eighth),
        *_residual_block("block", eighth),
    ]


def compact_decoder() -> list[Convolution]:
    """List the convolutions of the compact decoder, in order."""
    half, quarter, eighth = COMPACT_CHANNELS
    blocks = [_residual_block(f"block{index}", eighth) for index in range(1, COMPACT_DECODER_BLOCKS + 1)]
    return [
        *(conv for block in blocks for conv in block),
        Convolution("to_quarter", eighth, quarter, 1),
        Convolution("smooth_quarter", quarter, quarter),
        Convolution("to_half", quarter, half, 1),
        Convolution("smooth_half", half, half),
        Convolution("pixels", half, 4 * 3),
    ]


def _residual_block(name: str, channels: int) -> list[Convolution]:
    return [Convolution(f"{name}_{index}", channels, channels) for index in (1, 2)]


class Design(NamedTuple):
    """What is known of an architecture without making it.

    Attributes:
        encoder: convolutions of its encoder, in order.
        decoder: and of its decoder.
        channels: of each feature map AdaIN works on.
        strides: image pixels of a cell, a side, of each of them.
        decoder_halo: pixels around a tile beyond which its decoded picture depends on no features.
        own_encoder: whether its encoder is trained with the decoder; else it is the loss network φ.
    """

    encoder: list[Convolution]
    decoder: list[Convolution]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    decoder_halo: int
    own_encoder: bool


DESIGNS: dict[Architecture, Design] = {
    "vgg16": Design(vgg_encoder("vgg16"), vgg_decoder("vgg16"), CHANNELS[-1:], TAP_STRIDES[-1:], 32, False),
    "vgg19": Design(vgg_encoder("vgg19"), vgg_decoder("vgg19"), CHANNELS[-1:], TAP_STRIDES[-1:], 32, False),
    "compact": Design(compact_encoder(), compact_decoder(), COMPACT_CHANNELS, (2, 4, 8), 72, True),
}


def style_width(architecture: Architecture) -> int:
    """Return the floats of an encoded style, at most: μ and σ of φ's taps and of the feature maps AdaIN works on."""
    return 2 * (sum(CHANNELS) + sum(DESIGNS[architecture].channels))
