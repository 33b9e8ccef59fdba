"""Convolutions in bfloat16 on a CPU, and what stands between them, against those that were trained."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stylize_batch.model import checkpoint, container
from stylize_batch.model.adain import AffineMap
from stylize_batch.model.bfloat16 import ROWS, Bfloat16Conv2d
from stylize_batch.model.chain import Framed, Mapped
from stylize_batch.model.convolution import EnlargingConv2d, ReflectedConv2d, SubPixelConv2d
from stylize_batch.model.decoder import Decoder
from stylize_batch.model.network import Network
from stylize_batch.model.pixels import to_bytes
from stylize_batch.model.quick import has_bfloat16, quicken
from tests.conftest import cores
from tests.model.models import picture

pytestmark = pytest.mark.skipif(not has_bfloat16(), reason="oneDNN has no bfloat16 on this processor")

sides = st.integers(2, ROWS + 3)


def rounded(conv: ReflectedConv2d) -> ReflectedConv2d:
    """Return a convolution with kernels of numbers in bfloat16."""
    conv = conv.requires_grad_(False)
    conv.weight.copy_(conv.weight.bfloat16())
    return conv


def check(found: Tensor, expected: Tensor) -> None:
    """Refuse what was rounded more often than once."""
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=2**-12)


@given(sides, sides, st.integers(1, 2), st.booleans(), st.booleans(), st.booleans())
def test_the_next_convolution_sees_what_it_would_of_the_plain_ones(
    height: int, width: int, samples: int, pool: bool, enlarged: bool, bias: bool
) -> None:
    torch.manual_seed(height)
    first = rounded(ReflectedConv2d(5, 6, relu=True, pool=pool))
    if not bias:
        first.bias = None
    following = EnlargingConv2d(6, 4) if enlarged else ReflectedConv2d(6, 4)
    follows = SubPixelConv2d(following) if isinstance(following, EnlargingConv2d) else following
    features = torch.randn(samples, 5, height, width).bfloat16()
    seen = Bfloat16Conv2d(first, follows)(features)
    assert isinstance(seen, Framed)
    expected = first(features.float())
    check(seen.map, expected)
    border = "replicate" if enlarged else "reflect"
    if border == "replicate" or min(expected.shape[2:]) > 1:
        map = seen.map.contiguous()
        assert torch.equal(seen.whole, torch.nn.functional.pad(map, (1, 1, 1, 1), mode=border))


@given(sides, sides, st.booleans())
def test_the_places_of_a_cell_are_brought_together(height: int, width: int, last: bool) -> None:
    conv = EnlargingConv2d(5, 6, relu=True).requires_grad_(False)
    small = SubPixelConv2d(conv)
    small.weight.copy_(small.weight.bfloat16())
    features = torch.randn(1, 5, height, width).bfloat16()
    made = Bfloat16Conv2d(small, None if last else ReflectedConv2d(6, 3))(features)
    check(made if isinstance(made, Tensor) else made.map, small(features.float()))


def test_a_picture_and_its_kernels_are_not_rounded() -> None:
    conv = ReflectedConv2d(3, 64).requires_grad_(False)
    images = picture(40, 50)
    made = Bfloat16Conv2d(conv, None)(images)
    assert isinstance(made, Tensor)
    error = (made.float() - conv(images)).abs()
    assert (error <= conv(images).abs() * 2**-8 + 2**-14).all()


def test_bytes_and_maps_still_to_be_mapped_are_taken() -> None:
    conv = rounded(ReflectedConv2d(3, 8))
    images = torch.randint(256, (1, 3, 20, 30), dtype=torch.uint8)
    affine = AffineMap(torch.randn(1, 3, 1, 1), torch.randn(1, 3, 1, 1))
    quick = Bfloat16Conv2d(conv, None)
    assert torch.equal(torch.as_tensor(quick(images)), torch.as_tensor(quick(images / 255)))
    map = images / 255
    assert torch.equal(torch.as_tensor(quick(Mapped(map, affine))), torch.as_tensor(quick(affine.apply(map))))


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_what_is_no_number_stays_none(value: float, pool: bool, last: bool) -> None:
    conv = ReflectedConv2d(5, 4, relu=True, pool=pool).requires_grad_(False)
    features = torch.ones(1, 5, 8, 8).bfloat16()
    features[0, 2, 3, 3] = value
    made = Bfloat16Conv2d(conv, None if last else ReflectedConv2d(4, 3))(features)
    found = made if isinstance(made, Tensor) else made.map
    assert torch.equal(found.isfinite(), conv(features.float()).isfinite())
    assert not found.isfinite().all()


@pytest.mark.parametrize("value", [-0.0, -1e38])
def test_below_zero_there_is_nothing_to_pool(value: float) -> None:
    conv = rounded(ReflectedConv2d(1, 1, kernel=3, relu=True, pool=True))
    conv.weight.zero_()
    conv.weight[..., 1, 1] = 1
    assert conv.bias is not None
    conv.bias.fill_(-0.0)
    features = torch.full((1, 1, 4, 4), value).bfloat16()
    features[0, 0, 0, 0] = 0.5
    made = Bfloat16Conv2d(conv, None)(features)
    assert torch.as_tensor(made).flatten().tolist() == [0.5, 0, 0, 0]


def test_cores_and_batches_do_not_change_a_bit() -> None:
    decoder = Decoder("vgg16").requires_grad_(False)
    quicken(decoder, torch.bfloat16)
    assert all(isinstance(each, Bfloat16Conv2d) for each in decoder.children())
    features = torch.rand(2, 512, 9, 7)
    with cores(1):
        expected = decoder(features)
        assert torch.equal(torch.cat([decoder(each) for each in features.split(1)]), expected)
    with cores(3):
        assert torch.equal(decoder(features), expected)


def test_pictures_stay_within_a_step_of_those_in_full_precision() -> None:
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    found: list[Tensor] = []
    losses: list[Tensor] = []
    for precision in ("fp32", "bf16"):
        network = Network(copy.deepcopy(model), precision=precision)
        content = network.encode_contents(picture(160, 200))
        styles = network.encode_styles(picture(160, 200).flip(1))
        image, loss = network.stylize(content, styles, torch.ones(1))
        assert loss is not None
        found.append(to_bytes(image)[0].float())
        losses.append(torch.stack([loss.content_loss, loss.style_loss]))
    assert (found[1] - found[0]).abs().mean() < 0.7
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
