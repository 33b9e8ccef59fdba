"""The optimisation baseline: Gatys et al. with the paper's statistics losses, on the pixels of one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stylize_batch.model.adain import Statistics
from stylize_batch.model.losses import feature_distance, style_loss
from stylize_batch.model.vgg import Encoder

STYLE_WEIGHT = 10.0
"""λ of Eq. 11."""

HISTORY = 50
"""Steps L-BFGS remembers."""

RECIPE = f"L-BFGS history {HISTORY}, rate 1, no line search, λ {STYLE_WEIGHT:g}, projected gradient"
"""What decides the baseline's pictures beside φ and the images."""


def optimise(
    phi: Encoder, content: Tensor, features: Tensor, targets: Sequence[Statistics]
) -> Iterator[Tensor]:
    """Optimise a picture without end, starting from the content; yields it after each iteration.

    The objective is the content distance to φ₄(content) plus λ times the style loss. Every iteration is one
    evaluation of it and one step of L-BFGS with rate 1, without a line search.

    The optimisation is projected: pixels are clamped to 0..1 after each step, and at a limit the part of the gradient
    that points out of the range is dropped. A free picture leaves the range where the style is stark, and clamping it
    only at the end undoes much of what was gained, which would flatter whatever the baseline is compared with;
    clamping alone, with the whole gradient, misleads L-BFGS until it stands still.

    One picture at a time: L-BFGS takes all it is given for one vector, so pictures of a batch would change each other.

    Args:
        phi: the loss network φ, frozen.
        content: [1, 3, H, W] in 0..1.
        features: φ₄(content).
        targets: the style's statistics at φ's taps.
    """
    # L-BFGS wants contiguous gradients, φ is fastest on channels last.
    image = content.contiguous().clone().requires_grad_()
    # One iteration a step; its own stopping rules are for other scales of losses.
    optimizer = torch.optim.LBFGS(
        [image], lr=1, max_iter=1, history_size=HISTORY, tolerance_grad=0, tolerance_change=0
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        taps = phi.taps(image.contiguous(memory_format=torch.channels_last))
        loss = (feature_distance(taps[-1], features) + STYLE_WEIGHT * style_loss(taps, targets)).sum()
        loss.backward()
        gradient = image.grad
        assert gradient is not None
        gradient[(image <= 0) & (gradient > 0) | (image >= 1) & (gradient < 0)] = 0
        return loss

    while True:
        optimizer.step(objective)  # pyright: ignore[reportArgumentType] (its stub asks for a float)
        with torch.no_grad():
            image.clamp_(0, 1)
        yield image.detach().clone()
