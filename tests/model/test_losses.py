"""The losses against numbers worked out by hand (Eq. 12, 13)."""

from __future__ import annotations

import math

import torch

from stylize_batch.model.adain import Statistics
from stylize_batch.model.losses import feature_distance, style_loss


def test_feature_distance_is_the_mean_of_squared_differences_per_sample() -> None:
    found = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    target = torch.tensor([[[[1.0, 0.0], [0.0, 4.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    # (0 + 4 + 9 + 0) / 4 and (4 + 4 + 4 + 4) / 4
    assert feature_distance(found, target).tolist() == [3.25, 4.0]


def test_style_loss_sums_layers_of_squared_mean_and_deviation_differences() -> None:
    # Two channels of 1×2: means 2 and 5, biased variances 1 and 4.
    first = torch.tensor([[[[1.0, 3.0]], [[3.0, 7.0]]]])
    # One channel of 2×2: mean 0, biased variance 1.
    second = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])
    targets = [
        Statistics(torch.tensor([[0.0, 5.0]]), torch.tensor([[1.0, 0.0]])),
        Statistics(torch.tensor([[3.0]]), torch.tensor([[0.0]])),
    ]
    # σ = √(variance + 1e-5).
    one, two = math.sqrt(1 + 1e-5), math.sqrt(4 + 1e-5)
    layer_1 = (2.0**2 + 0.0**2) / 2 + ((one - 1) ** 2 + two**2) / 2
    layer_2 = 3.0**2 + one**2
    torch.testing.assert_close(style_loss([first, second], targets), torch.tensor([layer_1 + layer_2]))


def test_style_loss_is_zero_for_the_style_itself() -> None:
    taps = [torch.randn(1, 4, 5, 5)]
    mean = taps[0].mean((2, 3))
    std = torch.sqrt(taps[0].var((2, 3), correction=0) + 1e-5)
    assert style_loss(taps, [Statistics(mean, std)]).item() < 1e-9
