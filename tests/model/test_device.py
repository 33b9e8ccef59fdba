"""The device: what a batch may take of its memory, and copies that on a CPU are none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.errors import UsageError
from stylize_batch.model.device import (
    BATCH_PIXELS,
    PIXEL_FLOATS,
    batch_pixels,
    to_device,
    to_host,
    usable_device,
    wait_for,
)

GIB = 2**30


@given(st.integers(64 * 64 * PIXEL_FLOATS * 4, 200 * GIB), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_batch_fits_into_the_memory_and_half_of_it_is_used(free: int, dtype: torch.dtype) -> None:
    taken = batch_pixels(free, dtype) * PIXEL_FLOATS * dtype.itemsize
    assert taken <= free
    assert 2 * taken > free or batch_pixels(free, dtype) == BATCH_PIXELS


def test_a_card_with_hardly_any_memory_gets_one_small_picture_at_a_time() -> None:
    assert batch_pixels(0, torch.float32) == 64 * 64


@pytest.mark.parametrize("noise", [-0.05, 0.05])
def test_what_little_else_runs_on_a_card_does_not_change_its_batches(noise: float) -> None:
    free = int(6 * GIB * (1 + noise))
    assert batch_pixels(free, torch.float32) == batch_pixels(6 * GIB, torch.float32)


def test_auto_is_a_device_that_can_be_used() -> None:
    assert usable_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    "name",
    ["gpu", "mps", "cpu:banana", "auto:3", "", *([] if torch.cuda.is_available() else ["cuda", "cuda:1"])],
)
def test_another_device_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"^device {name}"):
        usable_device(name)


def test_a_gpu_is_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device(torch.device("cuda", 1)) == usable_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="device cuda:7: torch finds 2 GPUs here; the last is cuda:1"):
        usable_device("cuda:7")


def test_on_a_cpu_nothing_is_copied() -> None:
    values = torch.rand(3), torch.rand(2, 2)
    assert all(found is value for found, value in zip(to_host(*values), values, strict=True))
    assert to_device(values[0], torch.device("cpu")) is values[0]
    wait_for(torch.device("cpu"))
