"""What the shipped weights promise, on the sample pairs, which they were not trained on."""

from __future__ import annotations

from typing import Any

import pytest

from stylize_batch.evaluation.methods import UNSTYLIZED
from stylize_batch.evaluation.protocol import Protocol
from stylize_batch.evaluation.run import Evaluation
from stylize_batch.model import container
from stylize_batch.progress import Silent
from tests.conftest import SAMPLE

Rows = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """The rows of every method, by content and style."""
    protocol = Protocol(str(SAMPLE / "content"), str(SAMPLE / "style"), iterations=0)
    found = Evaluation(protocol, str(tmp_path_factory.mktemp("evaluation"))).run(Silent())
    methods: dict[str, Rows] = {}
    for row in found.table.to_pylist():
        methods.setdefault(row["method"], {})[row["content"], row["style"]] = row
    return methods


def test_style_loss_is_at_most_half_of_the_unstylized_contents(quality: dict[str, Rows]) -> None:
    assert len(quality[container.DEFAULT]) == 30
    for pair, row in quality[container.DEFAULT].items():
        assert row["style_loss"] <= 0.5 * quality[UNSTYLIZED][pair]["style_loss"], pair


def test_alpha_zero_is_a_recognisable_photograph(quality: dict[str, Rows]) -> None:
    for pair, row in quality[container.DEFAULT].items():
        assert row["reconstruction_psnr"] > 14, pair
