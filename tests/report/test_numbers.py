"""The numbers of a report: the same from one part or many, bounded whatever the rows hold."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from stylize_batch.report import numbers
from stylize_batch.report.numbers import Distribution, Groups, RunNumbers
from stylize_batch.results import Outcome
from tests.conftest import Row
from tests.report.roots import part, row


def ok(content_loss: float | None, style_loss: float | None) -> Outcome:
    return Outcome(None, content_loss, style_loss, content_loss, 20, 30)


GONE = Outcome(error="NotFound: it is gone")


def rows() -> list[Row]:
    return [
        row("a", ["s"], ok(1.0, 10.0), label="cat", number=0),
        row("a", ["s", "t"], ok(3.0, 20.0), label="cat", number=1),
        row("b", ["t", "t"], GONE, label=None, number=2),
        row("b", [], ok(None, None), label="cat", number=3),
    ]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_numbers_do_not_depend_on_how_results_are_cut_into_parts(size: int) -> None:
    found = RunNumbers(part(rows()[start : start + size]) for start in range(0, 4, size))
    assert (found.totals.ok, found.totals.failed, found.totals.kinds) == (3, 1, {"NotFound": 1})
    assert (found.losses["content_loss"].count, found.losses["content_loss"].mean) == (2, 2.0)
    styles = {group.value: group for group in found.styles.most(10)}
    assert {name: (group.rows, group.failed) for name, group in styles.items()} == {
        "s": (2, 0), "t": (2, 1), None: (1, 0),
    }  # fmt: skip
    assert (styles["s"].content_loss, styles["s"].style_loss) == (2.0, 15.0)
    assert math.isnan(styles[None].style_loss)
    (labels,) = found.columns().values()
    assert [(group.value, group.rows) for group in labels.most(10)] == [(None, 1), ("cat", 3)]


def test_a_column_with_nearly_a_value_per_row_groups_nothing() -> None:
    assert list(RunNumbers([part(rows())]).columns()) == ["label"]


def test_a_column_with_too_many_values_is_given_up_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numbers, "MAX_VALUES", 3)
    many = [row(f"c{n}", ["s"], GONE, label=f"l{n % 8}", split=f"{n % 2}") for n in range(32)]
    assert list(RunNumbers([part(many[:16]), part(many[16:])]).columns()) == ["split"]


def test_styles_beyond_the_limit_are_counted_as_left_out() -> None:
    groups = Groups(limit=2)
    facts = np.ones((5, 5))
    groups.add(pa.array(["a", "b", "c", "a", "d"]), np.arange(5), facts)
    assert [(group.value, group.rows) for group in groups.most(9)] == [("a", 2), ("b", 1)]
    assert groups.overflow == 2


def test_groups_with_failures_come_first_when_a_table_is_cut() -> None:
    groups = Groups(limit=10)
    facts = np.array([[1.0, 0, 0, 0, 0]] * 3 + [[1.0, 1, 0, 0, 0]])
    groups.add(pa.array(["often", "often", "often", "bad"]), np.arange(4), facts)
    assert [group.value for group in groups.most(1)] == ["bad"]


def test_quantiles_and_bins_are_those_of_the_numbers_themselves() -> None:
    values = np.random.default_rng(0).lognormal(1, 1, 5000)
    distribution = Distribution()
    for piece in np.array_split(np.concatenate([values, [np.nan, np.inf]]), 7):
        distribution.add(piece)
    assert distribution.count == 5000
    assert distribution.mean == pytest.approx(values.mean())
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        assert distribution.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.01)
    edges = np.linspace(values.min(), values.max(), 5)
    assert distribution.counts(edges) == pytest.approx(np.histogram(values, edges)[0], abs=25)
    assert distribution.counts(edges).sum() == 5000


def test_a_distribution_of_nothing_or_of_zeros_breaks_nothing() -> None:
    distribution = Distribution()
    distribution.add(np.array([np.nan]))
    assert (distribution.count, math.isnan(distribution.mean)) == (0, True)
    distribution.add(np.zeros(3))
    assert distribution.quantile(0.5) == 0
