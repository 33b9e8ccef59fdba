"""What keeps a network's channels at work: Adam on centred inputs, and new weights for channels that are silent.

The features a decoder starts from are never negative, and a place has hundreds of them. So when Adam moves all weights of
a channel by its rate, which it does whatever the gradient's size, these moves add up: one step can carry a channel below
zero on every picture. ReLU then gives it no gradient, and it never comes back. Half of a decoder can be lost so.

Centring (Montavon & Müller 2012, "Deep Boltzmann Machines and the Centering Trick", §2) is the cure: a convolution is
trained as W·(x − m) + b with the mean m of its inputs, where a step of W alone cannot move the channel's mean. The network
stays what it is, W·x + (b − W·m): only the gradients, and what a step does to the bias, are those of the other form.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stylize_batch.model.convolution import ReflectedConv2d

QUIET = 0.1
"""Size of a woken channel's weights, to those of the others: what the network makes shall hardly change."""

FOLLOWED = 0.2
"""Share of the way that the means of inputs go to those of another batch."""


class Centering:
    """Has an optimizer train a network's convolutions on centred inputs."""

    def __init__(self, network: nn.Module) -> None:
        self._convs = {
            name: conv
            for name, conv in network.named_modules()
            if isinstance(conv, nn.Conv2d) and conv.weight.requires_grad and conv.bias is not None
        }
        self.means: dict[str, Tensor] = {}
        """Mean over batch and space of what each convolution gets, float32 [C]; none before the first look."""
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def look(self, run: Callable[[], object]) -> None:
        """Follow the means of inputs, as a run of the network has them."""

        def seeing(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
            def see(_: nn.Module, given: tuple[Tensor]) -> None:
                mean = given[0].float().mean((0, 2, 3))
                before = self.means.get(name)
                mean = mean if before is None else before.lerp(mean, FOLLOWED)
                # A batch that is not finite costs its own step alone.
                self.means[name] = mean.where(mean.isfinite(), 0 if before is None else before)

            return see

        with _removed([conv.register_forward_pre_hook(seeing(name)) for name, conv in self._convs.items()]):
            run()

    @torch.no_grad()
    def begin(self) -> None:
        """Turn the gradients into those of the centred form; call it before the optimizer's step."""
        self._sums = []
        for name, conv in self._convs.items():
            weight, bias, mean = conv.weight, conv.bias, self.means[name]
            assert weight.grad is not None
            assert bias is not None
            assert bias.grad is not None
            weight.grad.sub_((bias.grad[:, None] * mean)[:, :, None, None])
            self._sums.append(weight.sum((2, 3)) @ mean)

    @torch.no_grad()
    def end(self, sound: Tensor) -> None:
        """Bring back the bias; call it after the step, and say whether it changed the weights."""
        for (name, conv), before in zip(self._convs.items(), self._sums, strict=True):
            assert conv.bias is not None
            moved = before - conv.weight.sum((2, 3)) @ self.means[name]
            conv.bias.add_(moved.where(sound > 0, 0))


@torch.no_grad()
def wake(network: nn.Module, run: Callable[[], object]) -> int:
    """Give channels that are silent throughout a run of the network weights that make them heard; returns how many.

    New weights are random; the channel is above zero about half of the time, and quiet. Convolutions that follow see it.
    """
    woken = 0

    def look(conv: ReflectedConv2d, given: tuple[Tensor], made: Tensor) -> Tensor:
        nonlocal woken
        (x,) = given
        silent = made.amax((0, 2, 3)) <= 0
        count = int(silent.sum())
        if not count:
            return made
        woken += count
        assert conv.bias is not None
        # As large as those of the others, or where all are silent as they are before training.
        usual = (
            conv.weight[~silent]
            if count < len(silent)
            else conv.weight.new_tensor((3 * conv.weight[0].numel()) ** -0.5)
        )
        size = QUIET * usual.square().mean().sqrt()
        # Drawn on the CPU, so that a GPU begins with the same ones.
        conv.weight[silent] = size * torch.randn(count, *conv.weight.shape[1:]).to(size.device)
        conv.bias[silent] = 0
        conv.bias[silent] = -_before_relu(conv, x)[:, silent].float().mean((0, 2, 3))
        return conv.forward(x)

    convs = [
        conv
        for conv in network.modules()
        if isinstance(conv, ReflectedConv2d) and conv.relu and conv.weight.requires_grad
    ]
    with _removed([conv.register_forward_hook(look) for conv in convs]):  # pyright: ignore[reportArgumentType]
        run()
    return woken


@contextmanager
def _removed(hooks: list[RemovableHandle]) -> Generator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before_relu(conv: ReflectedConv2d, x: Tensor) -> Tensor:
    given = conv.relu, conv.pool
    conv.relu = conv.pool = False
    try:
        return conv.forward(x)
    finally:
        conv.relu, conv.pool = given
