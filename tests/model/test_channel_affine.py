"""An affine map of channels as a compiled loop makes it on a CPU, against torch's operators."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.model.adain import AffineMap
from stylize_batch.model.channel_affine import BLOCK, mapped_channels
from tests.conftest import cores


@given(
    shape=st.tuples(*[st.integers(1, top) for top in (3, 9, 12, 12)]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_maps_of_any_shape_and_memory_format_are_mapped_in_float32_and_rounded_once(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator).bfloat16().contiguous(memory_format=memory_format)
    scale, shift = (torch.randn(shape[:2], generator=generator) for _ in range(2))
    found = mapped_channels(x, scale, shift)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = x.double() * scale[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("number", "nearest"),
    [
        (1 + 2**-8, 1.0),  # as near to the next, which is odd
        (1 + 3 * 2**-8, 1 + 2**-6),
        (1 + 2**-8 + 2**-20, 1 + 2**-7),
        (-1 - 2**-8, -1.0),
        (3.4e38, float("inf")),
        (1e-40, 1e-40),
        (float("-inf"), float("-inf")),
        (float("nan"), float("nan")),
    ],
)
def test_numbers_are_rounded_as_torch_rounds_them(number: float, nearest: float) -> None:
    found = mapped_channels(
        torch.zeros(1, 1, 1, 1).bfloat16(), torch.ones(1, 1), torch.tensor([[number]])
    ).flatten()
    torch.testing.assert_close(found, torch.tensor([nearest]).bfloat16(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found, torch.tensor([number]).bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_not_a_number_stays_so_whatever_its_bits() -> None:
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    shift = bits.view(torch.float32)[None]
    assert mapped_channels(torch.zeros(1, 4, 1, 1).bfloat16(), torch.ones(1, 4), shift).isnan().all()


def test_a_sample_is_the_same_beside_others_and_on_any_number_of_cores() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 2 * BLOCK + 5, 1, generator=generator).bfloat16()
    scale, shift = (torch.randn(3, 4, generator=generator) for _ in range(2))
    with cores(1):
        alone = [mapped_channels(*(each[n : n + 1] for each in (x, scale, shift))) for n in range(3)]
    with cores(2):
        together = mapped_channels(x, scale, shift)
    assert torch.equal(together, torch.cat(alone))


def test_adain_maps_bfloat16_in_one_pass_and_keeps_the_gradient_where_one_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2)).bfloat16()
    affine = AffineMap(torch.full((2, 3, 1, 1), 2.0), torch.full((2, 3, 1, 1), 0.5))
    learned = x.clone().requires_grad_()
    expected = affine.apply(learned)
    expected.sum().backward()
    assert learned.grad is not None
    assert (learned.grad == 2).all()
    monkeypatch.setattr(torch, "addcmul", None)
    assert torch.equal(affine.apply(x), expected)
