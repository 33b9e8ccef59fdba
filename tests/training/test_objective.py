"""What training minimises."""

from __future__ import annotations

import copy

import pytest
import torch

from stylize_batch.model import checkpoint, container
from stylize_batch.model.checkpoint import Checkpoint
from stylize_batch.model.vgg import Encoder
from stylize_batch.training.objective import Objective, StyleTransfer, Transfer
from tests.model.models import picture


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return checkpoint.loads(container.builtin_bytes(container.DEFAULT))


def losses(model: Checkpoint, quick_targets: torch.dtype | None) -> StyleTransfer:
    model = copy.deepcopy(model)
    assert isinstance(model.encoder, Encoder)
    objective = Objective(model.encoder, Transfer(model.encoder, model.decoder), quick_targets)
    return objective.style_transfer(picture(64, 80), picture(80, 64).flip(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_targets_computed_as_in_inference_give_the_same_losses(
    model: Checkpoint, dtype: torch.dtype, tolerance: float
) -> None:
    expected, found = losses(model, None), losses(model, dtype)
    torch.testing.assert_close(found[1:], expected[1:], rtol=tolerance, atol=0)
