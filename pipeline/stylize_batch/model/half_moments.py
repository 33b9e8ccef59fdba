"""Mean and variance of each channel over space, of float16 and bfloat16 maps on a GPU, in float32.

torch makes a float32 copy first, which takes as long as what is then read of it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stylize_batch.model.kernels import launching

PLACES = 128
"""Summed at once."""

CHANNELS = 32
"""A program's."""


def mean_and_variance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over space of a map [N, C, h, w], each float32 [N, C]."""
    samples, channels, height, width = features.shape
    mean, variance = torch.empty((2, samples, channels), dtype=torch.float32, device=features.device)
    measure: Any = _measure[samples, triton.cdiv(channels, CHANNELS)]  # its types are those inside
    with launching(features):
        measure(
            features, mean, variance, *features.stride(), height * width, width,
            channels=channels, block_places=PLACES, block_channels=CHANNELS,
        )  # fmt: skip
    return mean, variance


@triton.jit(do_not_specialize=["places", "width"])
def _measure(
    features: tl.tensor,
    mean: tl.tensor,
    variance: tl.tensor,
    by_sample: tl.tensor,
    by_channel: tl.tensor,
    by_row: tl.tensor,
    by_column: tl.tensor,
    places: tl.tensor,
    width: tl.tensor,
    channels: tl.constexpr,
    block_places: tl.constexpr,
    block_channels: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    known = (channel < channels)[None, :]
    features += sample * by_sample + (channel * by_channel)[None, :]
    number = tl.arange(0, block_places)
    total = tl.zeros((block_places, block_channels), tl.float32)
    for first in range(0, places, block_places):  # pyright: ignore[reportArgumentType]
        place = first + number
        offset = (place // width).to(tl.int64) * by_row + place % width * by_column
        there = (place < places)[:, None] & known
        total += tl.load(features + offset[:, None], there, 0.0).to(tl.float32)
    average = tl.sum(total, 0) / places
    squares = tl.zeros((block_places, block_channels), tl.float32)
    for first in range(0, places, block_places):  # pyright: ignore[reportArgumentType]
        place = first + number
        offset = (place // width).to(tl.int64) * by_row + place % width * by_column
        there = (place < places)[:, None] & known
        value = tl.load(features + offset[:, None], there, 0.0).to(tl.float32)
        deviation = tl.where(there, value - average[None, :], 0.0)
        squares += deviation * deviation
    to = sample * channels + channel
    tl.store(mean + to, average, channel < channels)
    tl.store(variance + to, tl.sum(squares, 0) / places, channel < channels)
