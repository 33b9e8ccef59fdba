"""Mean and variance of each channel over space, on a CPU: reads the map once from memory, where torch does five times."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from stylize_batch.model.compiled import compiled, inlined, widened
from stylize_batch.model.cores import on_all_cores

PLACES = 32
"""Summed at once in float32: few enough to be in cache when their deviations from their mean are summed."""

BLOCK = 128 * PLACES
"""Places that a core takes at a time."""


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over space of a map [N, C, h, w], each float32 [N, C]; summed in float64.

    The map is float32 or bfloat16.
    """
    places = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1, 2)
    halves = x.dtype == torch.bfloat16
    given = (places.view(torch.uint16) if halves else places).numpy()
    add = _add_halves() if halves else _add_floats()
    samples, count, channels = given.shape
    firsts = range(0, count, BLOCK)
    parts = np.zeros((len(firsts), samples, 2, channels))

    def take(which: tuple[int, int]) -> None:
        part, sample = which
        add(given[sample, firsts[part] : firsts[part] + BLOCK], parts[part, sample])

    on_all_cores(take, [(part, sample) for part in range(len(firsts)) for sample in range(samples)])
    mean, squares = parts[0, :, 0], parts[0, :, 1]
    for first, part in zip(firsts[1:], parts[1:], strict=True):
        more = min(BLOCK, count - first)
        step = part[:, 0] - mean
        mean += step * (more / (first + more))
        squares += part[:, 1] + step**2 * (first * more / (first + more))
    return torch.from_numpy(mean).float(), torch.from_numpy(squares / count).float()


@functools.cache
def _add_floats() -> Callable[..., None]:
    return compiled(_floats, numba.float32[:, ::1], numba.float64[:, ::1])


@functools.cache
def _add_halves() -> Callable[..., None]:
    return compiled(_halves, numba.uint16[:, ::1], numba.float64[:, ::1])


def _floats(places: Any, moments: Any) -> None:
    """Find the means of places [P, C] and the sums of their squared deviations, [2, C]."""
    sums = np.empty((2, places.shape[1]), np.float32)
    for first in range(0, len(places), PLACES):
        _add(places[first : first + PLACES], first, sums, moments)


def _halves(places: Any, moments: Any) -> None:
    """Find the same of places in bfloat16."""
    channels = places.shape[1]
    sums, group = np.empty((2, channels), np.float32), np.empty((PLACES, channels), np.float32)
    for first in range(0, len(places), PLACES):
        here = places[first : first + PLACES]
        for place in range(len(here)):
            for channel in range(channels):
                group[place, channel] = widened(here[place, channel])
        _add(group[: len(here)], first, sums, moments)


@inlined
def _add(places: Any, before: Any, sums: Any, moments: Any) -> None:
    """Add some places to the moments of those `before` (Chan et al. 1979)."""
    count, channels = places.shape
    mean, squares = sums
    sums[:] = 0
    for place in range(count):
        for channel in range(channels):
            mean[channel] += places[place, channel]
    for channel in range(channels):
        mean[channel] /= count
    for place in range(count):
        for channel in range(channels):
            deviation = places[place, channel] - mean[channel]
            squares[channel] += deviation * deviation
    share = count / (before + count)
    for channel in range(channels):
        step = mean[channel] - moments[0, channel]
        moments[0, channel] += share * step
        moments[1, channel] += squares[channel] + share * before * step * step
