"""The convolutions of inference against those that were trained."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from stylize_batch.model import checkpoint, container
from stylize_batch.model.convolution import (
    EnlargingConv2d,
    ReflectedConv2d,
    SubPixelConv2d,
)
from stylize_batch.model.quick import has_fast_groups, quicken
from stylize_batch.model.to_rgb import ToRgb
from stylize_batch.model.winograd import Winograd
from tests.model.models import picture

sides = st.integers(2, 37)

needs_groups = pytest.mark.skipif(
    not has_fast_groups(), reason="Winograd's way is not taken on this processor"
)


def convolution(
    kind: type[ReflectedConv2d], channels: int = 3, dtype: torch.dtype = torch.float64, *, relu: bool = False
) -> ReflectedConv2d:
    torch.manual_seed(channels)
    return kind(channels, 5, relu=relu).to(dtype).requires_grad_(False)  # pyright: ignore


@given(sides, sides, st.integers(1, 2), st.booleans(), st.booleans())
def test_sub_pixel_convolution_is_up_sampling_and_convolution(
    height: int, width: int, samples: int, bias: bool, relu: bool
) -> None:
    conv = convolution(EnlargingConv2d, relu=relu)
    if not bias:
        conv.bias = None
    features = torch.randn(samples, 3, height, width, dtype=torch.float64)
    assert isinstance(conv, EnlargingConv2d)
    torch.testing.assert_close(SubPixelConv2d(conv)(features), conv(features), rtol=1e-12, atol=1e-12)


def test_under_autocast_a_map_of_sixteen_bits_is_padded_as_it_is() -> None:
    conv = convolution(ReflectedConv2d, dtype=torch.float32)
    features = torch.randn(1, 3, 9, 9).bfloat16()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen, torch.autocast("cpu"):
        made = conv(features)
    assert torch.equal(made, copy.deepcopy(conv).bfloat16()(features))
    copied = [each for each in seen.events() or () if each.name == "aten::_to_copy"]
    assert all([1, 3, 9, 9] not in each.input_shapes for each in copied)


def test_rounding_of_the_quickened_network_stays_far_below_a_step_of_a_pixel() -> None:
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    images = picture(160, 160)
    with torch.inference_mode():
        features = model.encoder(images)
        decoded = model.decoder(features)
        for network in (model.encoder, model.decoder):
            quicken(network)
        found = model.encoder(images)
        assert (found - features).abs().max() < 1e-5 * features.abs().max()
        assert (model.decoder(found) - decoded).abs().max() < 0.02 / 255


@needs_groups
@pytest.mark.parametrize(("dtype", "winograd"), [(torch.float32, True), (torch.float64, False)])
def test_what_is_compiled_is_for_float32(dtype: torch.dtype, winograd: bool) -> None:
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    encoder, decoder = copy.deepcopy(model.encoder).to(dtype), copy.deepcopy(model.decoder).to(dtype)
    quicken(encoder)
    quicken(decoder)
    assert [type(each) for each in encoder.children()].count(Winograd) == (7 if winograd else 0)
    assert [type(each) for each in decoder.children()].count(Winograd) == (7 if winograd else 0)
    assert [type(each) for each in decoder.children()].count(SubPixelConv2d) == (0 if winograd else 3)
    assert isinstance(encoder.conv1_1, ReflectedConv2d)
    assert isinstance(decoder.conv1_1, ToRgb if winograd else ReflectedConv2d)
