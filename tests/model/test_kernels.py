"""Kernels on a GPU: which errors say that there is none, and which say nothing of it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from stylize_batch.model.kernels import launching, tried

CPU, HALF = torch.device("cpu"), torch.float16


def kernel(*made: Callable[[], str | None]) -> tuple[list[int], Callable[[], str | None]]:
    """Return a kernel whose trials go one way after the other, and how many there were."""
    trials: list[int] = []

    @tried
    def fast(device: torch.device, dtype: torch.dtype) -> str | None:
        trials.append(len(trials))
        return made[trials[-1]]()

    return trials, lambda: fast(CPU, HALF)


def failing(error: Exception) -> Callable[[], str | None]:
    def fail() -> str | None:
        raise error

    return fail


def test_a_kernel_that_is_right_is_tried_once() -> None:
    trials, fast = kernel(lambda: "kernel")
    assert [fast(), fast()] == ["kernel", "kernel"]
    assert len(trials) == 1


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (failing(ModuleNotFoundError("No module named 'triton'")), "ModuleNotFoundError: No module named 'triton'"),
        (failing(OSError("no C\ncompiler")), "OSError: no C compiler"),
        (lambda: None, "its numbers are not those of torch's operators"),
    ],
    ids=["absent", "broken", "wrong"],
)  # fmt: skip
def test_a_kernel_that_cannot_be_used_is_told_of_once(
    trial: Callable[[], str | None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    trials, fast = kernel(trial)
    with caplog.at_level(logging.WARNING):
        assert [fast(), fast()] == [None, None]
    assert len(trials) == 1
    assert caplog.messages == [f"the kernel fast is not used on cpu, which is then slower: {reason}"]


def test_a_trial_without_memory_says_nothing_of_the_kernel() -> None:
    _, fast = kernel(failing(torch.OutOfMemoryError("no memory")), lambda: "kernel")
    with pytest.raises(torch.OutOfMemoryError):
        fast()
    assert fast() == "kernel"


def test_a_kernel_that_fails_raises_what_torchs_operators_raise() -> None:
    class CompilationError(Exception):
        """As Triton's."""

    with (
        pytest.raises(RuntimeError, match="cannot be launched: CompilationError: no room"),
        launching(torch.ones(1)),
    ):
        raise CompilationError("no room")
    with pytest.raises(torch.OutOfMemoryError), launching(torch.ones(1)):
        raise torch.OutOfMemoryError("no memory")
