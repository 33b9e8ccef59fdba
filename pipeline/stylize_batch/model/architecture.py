"""Which convolutions the encoders have, and so their mirrored decoders (paper §6.1). Without torch."""

from __future__ import annotations

from typing import Literal

Architecture = Literal["vgg16", "vgg19"]

CONVS_PER_BLOCK: dict[Architecture, tuple[int, int, int, int]] = {
    "vgg16": (2, 2, 3, 1),
    "vgg19": (2, 2, 4, 1),
}
"""Convolutions of each block up to and including conv4_1; a 2×2 max-pool stands between blocks."""

CHANNELS = (64, 128, 256, 512)
"""Channels of the four blocks, and so of the four taps."""

TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
"""The layers of the style loss (§6.2); the last is the one AdaIN works on."""

MIN_SIDE = 9
"""Shortest image side: below it relu4_1 is one cell wide, which reflection padding cannot extend."""


def conv_plan(architecture: Architecture) -> list[tuple[str, int, int]]:
    """List the convolutions of an encoder as (`"conv3_1"`, channels in, channels out), in order."""
    plan: list[tuple[str, int, int]] = []
    channels_in = 3
    for block, (convs, channels) in enumerate(zip(CONVS_PER_BLOCK[architecture], CHANNELS, strict=True), 1):
        for index in range(1, convs + 1):
            plan.append((f"conv{block}_{index}", channels_in, channels))
            channels_in = channels
    return plan
