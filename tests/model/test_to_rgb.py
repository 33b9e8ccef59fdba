"""The last convolution of a decoder against the plain one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.model.convolution import ReflectedConv2d
from stylize_batch.model.quick import has_fast_groups
from stylize_batch.model.to_rgb import ROWS, ToRgb
from tests.conftest import cores

pytestmark = pytest.mark.skipif(not has_fast_groups(), reason="this way is not taken on this processor")


def pair(channels: int = 5, *, bias: bool = True) -> tuple[ReflectedConv2d, ToRgb]:
    """Return a convolution as trained, and the same as one 1×1 convolution and a sum."""
    torch.manual_seed(channels)
    conv = ReflectedConv2d(channels, 3).requires_grad_(False)
    if not bias:
        conv.bias = None
    return conv, ToRgb(conv.weight, conv.bias)


@given(st.integers(2, 2 * ROWS + 3), st.integers(2, 37), st.integers(1, 2), st.booleans())
def test_nine_products_side_by_side_make_the_convolution(
    height: int, width: int, samples: int, bias: bool
) -> None:
    conv, quick = pair(bias=bias)
    features = torch.randn(samples, 5, height, width)
    torch.testing.assert_close(quick(features), conv(features), rtol=1e-5, atol=1e-5)


def test_threads_and_memory_formats_do_not_change_a_bit() -> None:
    _, quick = pair(64)
    features = torch.randn(2, 64, 3 * ROWS + 1, 50)
    with cores(1):
        expected = quick(features)
    with cores(3):
        assert torch.equal(quick(features.contiguous(memory_format=torch.channels_last)), expected)


def test_autocast_leaves_the_picture_in_float32() -> None:
    conv, quick = pair()
    features = torch.randn(1, 5, 40, 40).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        made = quick(features)
    torch.testing.assert_close(made, conv(features.float()), rtol=1e-5, atol=1e-5)
