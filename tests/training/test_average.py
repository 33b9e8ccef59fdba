"""The running mean of the weights: what moves it, and that lending it changes nothing."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from stylize_batch.training.average import RunningMean


def test_the_mean_forgets_fast_early_on_and_then_by_its_decay() -> None:
    weight = torch.zeros(2)
    mean = RunningMean({"w": weight}, decay=0.5)
    weight.fill_(1)
    mean.follow(1, torch.tensor(1.0))
    assert mean.values["w"].tolist() == pytest.approx([0.9, 0.9])
    weight.fill_(2)
    mean.follow(100, torch.tensor(1.0))
    assert mean.values["w"].tolist() == pytest.approx([1.45, 1.45])


def test_a_step_that_is_not_sound_does_not_move_the_mean() -> None:
    weight = torch.zeros(2)
    mean = RunningMean({"w": weight}, decay=0.5)
    weight.fill_(torch.nan)
    mean.follow(1, torch.tensor(0.0))
    assert mean.values["w"].tolist() == [0, 0]


def test_weights_are_their_own_again_after_their_mean_was_lent_whatever_happened() -> None:
    weight = torch.zeros(2)
    mean = RunningMean({"w": weight}, decay=0.5)
    weight.fill_(1)
    with suppress(KeyboardInterrupt), mean.lent():
        assert weight.tolist() == [0, 0]
        raise KeyboardInterrupt
    assert weight.tolist() == [1, 1]
    assert mean.values["w"].tolist() == [0, 0]
