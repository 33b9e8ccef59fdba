"""Channels stay at work: Adam on centred inputs, and silent channels woken."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from stylize_batch.model.convolution import ReflectedConv2d
from stylize_batch.training.channels import Centering, wake


@pytest.fixture(autouse=True)
def _drawn() -> None:
    torch.manual_seed(0)


class Centred(nn.Module):
    """W·(x − m) + b, written out."""

    def __init__(self, conv: nn.Conv2d, mean: Tensor) -> None:
        super().__init__()
        assert conv.bias is not None
        self.conv, self.mean = copy.deepcopy(conv), mean
        with torch.no_grad():
            self.conv.bias += conv.weight.sum((2, 3)) @ mean  # pyright: ignore[reportOperatorIssue]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x - self.mean[:, None, None])


def test_a_convolution_trained_on_centred_inputs_is_that_with_the_mean_taken_off() -> None:
    conv = ReflectedConv2d(6, 4)
    x, wanted = torch.rand(2, 6, 9, 8) * 3, torch.randn(2, 4, 9, 8)
    centering = Centering(conv)
    centering.look(lambda: conv(x))
    explicit = Centred(conv, centering.means[""])
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.01) for network in (conv, explicit)]
    for _ in range(4):
        for network, optimizer in zip((conv, explicit), optimizers, strict=True):
            optimizer.zero_grad()
            (network(x) - wanted).square().mean().backward()
            if network is conv:
                centering.begin()
            optimizer.step()
            if network is conv:
                centering.end(torch.tensor(1.0))
        torch.testing.assert_close(conv(x), explicit(x), rtol=1e-4, atol=1e-5)


def test_the_means_of_inputs_are_followed_from_batch_to_batch() -> None:
    conv = ReflectedConv2d(3, 2)
    centering = Centering(conv)
    found: list[float] = []
    for value in (1.0, 2.0, 2.0):
        centering.look(lambda value=value: conv(torch.full((1, 3, 8, 8), value)))
        found.append(centering.means[""][0].item())
    assert found[0] == 1
    assert all(before < after < 2 for before, after in pairwise(found))


def test_a_rate_that_silences_channels_silences_none_on_centred_inputs() -> None:
    x = torch.rand(4, 256, 8, 8) * 4  # never negative, as features are
    wanted = torch.rand(4, 32, 8, 8)

    def silent_after_training(centred: bool) -> int:
        torch.manual_seed(1)
        conv = ReflectedConv2d(256, 32, relu=True)
        wake(conv, lambda: conv(x))
        centering = Centering(conv)
        optimizer = torch.optim.Adam(conv.parameters(), lr=3e-3)
        for _ in range(30):
            centering.look(lambda: conv(x))
            optimizer.zero_grad()
            (conv(x) - wanted).square().mean().backward()
            if centred:
                centering.begin()
            optimizer.step()
            if centred:
                centering.end(torch.tensor(1.0))
        return int((conv(x).amax((0, 2, 3)) <= 0).sum())

    assert silent_after_training(centred=False) > 4
    assert silent_after_training(centred=True) == 0


def test_silent_channels_are_woken_and_the_network_hardly_changes() -> None:
    network = nn.Sequential(ReflectedConv2d(3, 8, relu=True), ReflectedConv2d(8, 3))
    first, x = network[0], torch.rand(4, 3, 16, 16)
    assert isinstance(first, ReflectedConv2d)
    assert first.bias is not None
    with torch.no_grad():
        first.bias[:5] = -10
        before, loud = network(x), first(x)
        assert wake(network, lambda: network(x)) == 5
        heard = (first(x) > 0).float().mean((0, 2, 3))
        assert (heard[:5] > 0.2).all()
        assert torch.equal(first(x)[:, 5:], loud[:, 5:])
        assert (network(x) - before).abs().mean() < 0.1 * before.std()
        assert wake(network, lambda: network(x)) == 0
