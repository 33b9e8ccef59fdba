"""The convolutions of inference against those that were trained."""

from __future__ import annotations

import copy
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.model import checkpoint, container
from stylize_batch.model.convolution import (
    MIN_TILES,
    EnlargingConv2d,
    Plain,
    ReflectedConv2d,
    SubPixelConv2d,
    Winograd,
    WinogradConv2d,
    has_fast_groups,
    quicken,
)
from tests.model.models import picture

sides = st.integers(2, 37)

needs_groups = pytest.mark.skipif(
    not has_fast_groups(), reason="Winograd's way is not taken on this processor"
)


def check_rounding(made: torch.Tensor, expected: torch.Tensor) -> None:
    """Of float32: sums of 27 products keep four digits of seven."""
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


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


@needs_groups
@given(st.integers(2, 3), sides, sides, st.integers(1, 2), st.booleans())
def test_winograds_way_is_the_convolution_for_every_kernel_of_the_networks(
    taps: int, height: int, width: int, samples: int, relu: bool
) -> None:
    torch.manual_seed(taps)
    weight, bias = torch.randn(5, 3, taps, taps), torch.randn(5)
    features = torch.randn(samples, 3, height + taps - 1, width + taps - 1)
    expected = torch.nn.functional.conv2d(features, weight, bias)
    if relu:
        expected = expected.clamp(min=0)
    made = Winograd(weight, bias, relu=relu)(features)
    check_rounding(made, expected)


@needs_groups
@given(sides, sides, st.integers(1, 2), st.booleans(), st.booleans())
def test_winograd_convolution_is_the_convolution(
    height: int, width: int, samples: int, bias: bool, relu: bool
) -> None:
    conv = convolution(ReflectedConv2d, dtype=torch.float32, relu=relu)
    if not bias:
        conv.bias = None
    features = torch.randn(samples, 3, height, width)
    check_rounding(WinogradConv2d(conv)(features), conv(features))


def test_small_maps_are_convolved_as_trained() -> None:
    conv = convolution(ReflectedConv2d, dtype=torch.float32).to(memory_format=torch.channels_last)  # pyright: ignore
    features = torch.randn(1, 3, 4, 4 * (MIN_TILES - 1))
    assert torch.equal(WinogradConv2d(conv)(features), conv(features))


@needs_groups
def test_many_blocks_of_tiles_make_one_picture_without_seams() -> None:
    conv = convolution(ReflectedConv2d, dtype=torch.float32)
    features = torch.randn(1, 3, 150, 1030)
    check_rounding(WinogradConv2d(conv)(features), conv(features))


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


PASSES = """
import torch
from torch.backends import mkldnn
from stylize_batch.model import checkpoint, container
from stylize_batch.model.network import Network

network = Network(checkpoint.loads(container.builtin_bytes(container.DEFAULT)))
for level in (mkldnn.VERBOSE_OFF, mkldnn.VERBOSE_ON):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with mkldnn.verbose(level):
            network.encode_styles(torch.rand(1, 3, 200, 136))
"""


@needs_groups
def test_kernels_are_packed_once_and_not_for_every_block() -> None:
    done = subprocess.run([sys.executable, "-c", PASSES], capture_output=True, text=True, check=True)
    assert re.search(r"cpu,convolution,.*,g36mb", done.stdout)
    assert not re.findall(r"cpu,reorder,.*,36x.*", done.stdout)


@needs_groups
def test_threads_do_not_change_a_bit() -> None:
    conv = WinogradConv2d(convolution(ReflectedConv2d, 130, torch.float32))
    features = torch.randn(1, 130, 60, 60)
    threads = torch.get_num_threads()
    try:
        made: list[torch.Tensor] = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            made.append(conv(features))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


@needs_groups
@pytest.mark.parametrize(("dtype", "winograd"), [(torch.float32, 7), (torch.bfloat16, 0)])
def test_winograd_is_for_wide_layers_in_float32(dtype: torch.dtype, winograd: int) -> None:
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    encoder, decoder = copy.deepcopy(model.encoder).to(dtype), copy.deepcopy(model.decoder).to(dtype)
    quicken(encoder)
    quicken(decoder)
    assert [type(each) for each in encoder.children()].count(WinogradConv2d) == winograd
    enlarging = [each for each in decoder.children() if isinstance(each, SubPixelConv2d)]
    assert len(enlarging) == 3
    kinds = [type(each.get_submodule("_convolve")) for each in enlarging]
    assert kinds == [Winograd if winograd else Plain] * 3
    assert isinstance(encoder.conv1_1, ReflectedConv2d)
