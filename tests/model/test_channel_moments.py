"""Mean and variance of channels as compiled loops find them on a CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.model.channel_moments import BLOCK, PLACES, mean_and_variance
from tests.conftest import cores

COUNTS = [1, 2, PLACES - 1, PLACES, PLACES + 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + PLACES + 1]


def features(samples: int, channels: int, places: int, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(places)
    x = torch.randn(samples, channels, places, 1, generator=generator)
    return (x + offset).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("places", COUNTS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_they_are_those_of_all_places_to_the_last_digits(places: int, offset: float) -> None:
    x = features(2, 17, places, offset)
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0)
    found = mean_and_variance(x)
    torch.testing.assert_close(found[0], mean.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], variance.float(), rtol=5e-6, atol=1e-9)


@given(
    shape=st.tuples(*[st.integers(1, top) for top in (3, 9, 12, 12)]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_maps_of_any_shape_and_memory_format_are_taken(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0)
    found = mean_and_variance(x.contiguous(memory_format=memory_format))
    torch.testing.assert_close(found[0], mean.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], variance.float(), rtol=5e-6, atol=1e-9)


@pytest.mark.parametrize("places", COUNTS)
def test_those_of_bfloat16_are_those_of_its_numbers_to_the_last_bit(places: int) -> None:
    x = features(2, 17, places, 1.0).bfloat16()
    for halves, floats in zip(mean_and_variance(x), mean_and_variance(x.float()), strict=True):
        assert torch.equal(halves, floats)


def test_a_samples_are_the_same_beside_others_and_on_any_number_of_cores() -> None:
    x = features(3, 8, 3 * BLOCK + 5)
    with cores(1):
        alone = [mean_and_variance(sample[None]) for sample in x]
    with cores(2):
        together = mean_and_variance(x)
    for position, found in enumerate(together):
        assert torch.equal(found, torch.cat([each[position] for each in alone]))


def test_a_silent_channel_has_no_variance() -> None:
    assert not any(found.any() for found in mean_and_variance(torch.zeros(1, 4, 70, 70)))


def test_what_is_not_finite_stays_so() -> None:
    x = features(1, 3, 200)
    x[0, 1, 150, 0] = float("nan")
    for map in (x, x.bfloat16()):
        assert all(found.isnan().tolist() == [[False, True, False]] for found in mean_and_variance(map))
