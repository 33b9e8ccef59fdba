"""What the shipped weights promise, on the sample pairs, which they were not trained on."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from stylize_batch.evaluation.methods import UNSTYLIZED
from stylize_batch.evaluation.protocol import Protocol
from stylize_batch.evaluation.run import Evaluation
from stylize_batch.model import container
from stylize_batch.progress import Silent
from tests.conftest import SAMPLE

Rows = dict[tuple[str, str], dict[str, Any]]


class Promise(NamedTuple):
    """Of every pair: its style loss as a share of the unstylized content's, and the PSNR at α = 0 in dB."""

    style_loss: float
    psnr: float


PROMISES = {container.DEFAULT: Promise(0.45, 14), container.COMPACT: Promise(0.4, 18)}

MAX_GRID = 8
"""Steps of 1/255; the sample's photographs have up to 6, from their own details."""


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """The rows of every method, by content and style."""
    models = container.BUILTIN
    protocol = Protocol(str(SAMPLE / "content"), str(SAMPLE / "style"), iterations=0, models=models)
    found = Evaluation(protocol, str(tmp_path_factory.mktemp("evaluation"))).run(Silent())
    methods: dict[str, Rows] = {}
    for row in found.table.to_pylist():
        methods.setdefault(row["method"], {})[row["content"], row["style"]] = row
    return methods


@pytest.mark.parametrize("model", container.BUILTIN)
def test_style_loss_is_far_below_the_unstylized_contents(quality: dict[str, Rows], model: str) -> None:
    assert len(quality[model]) == 30
    for pair, row in quality[model].items():
        assert row["style_loss"] <= PROMISES[model].style_loss * quality[UNSTYLIZED][pair]["style_loss"], pair


@pytest.mark.parametrize("model", container.BUILTIN)
def test_pictures_have_no_checkerboard(quality: dict[str, Rows], model: str) -> None:
    for pair, row in quality[model].items():
        assert row["grid"] < MAX_GRID, pair


@pytest.mark.parametrize("model", container.BUILTIN)
def test_alpha_zero_is_a_recognisable_photograph(quality: dict[str, Rows], model: str) -> None:
    for pair, row in quality[model].items():
        assert row["reconstruction_psnr"] > PROMISES[model].psnr, pair
