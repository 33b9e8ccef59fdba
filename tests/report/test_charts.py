"""Charts: what they draw adds up, whatever the run was like."""

from __future__ import annotations

import numpy as np
import pytest

from stylize_batch.report.charts import digits, histogram, rate
from stylize_batch.report.numbers import Distribution


def distribution(values: list[float]) -> Distribution:
    found = Distribution()
    found.add(np.array(values, np.float64))
    return found


@pytest.mark.parametrize("values", [[2.0], [0.0, 0.0], [1.0, 2.0, 4.0], [0.001, 1.0, 1000.0], [0.0, 5.0]])
def test_every_pair_is_in_one_bar_and_the_median_inside_the_chart(values: list[float]) -> None:
    chart = histogram(distribution(values))
    assert chart is not None
    counts = [int(bar.title.split(": ")[1].split()[0]) for bar in chart.bars]
    assert sum(counts) == len(values)
    assert max(bar.height for bar in chart.bars) == 100
    assert 0 <= chart.median_x <= 100
    assert sum(bar.width for bar in chart.bars) == pytest.approx(100)


def test_nothing_measured_is_no_chart() -> None:
    assert histogram(Distribution()) is None


def test_the_rate_is_pictures_over_time() -> None:
    chart = rate([(1000.0 + 10 * place, 20) for place in range(41)])
    assert chart is not None
    assert chart.mean == pytest.approx(2.0)
    assert chart.top == pytest.approx(2.0)
    assert not chart.breaks
    assert chart.bars[-1].x + chart.bars[-1].width == pytest.approx(100)


def test_the_night_between_two_runs_is_a_break_and_slows_nothing() -> None:
    evening = [(1000.0 + 10 * place, 20) for place in range(20)]
    morning = [(40_000.0 + 10 * place, 10) for place in range(20)]
    chart = rate([*morning, *evening])
    assert chart is not None
    assert chart.mean == pytest.approx(1.5)
    (gap,) = chart.breaks
    assert gap.title.startswith("nothing finished for 10 h 46 min")
    assert [bar.height for bar in chart.bars if bar.x < gap.x] == pytest.approx([100] * 10)
    assert [bar.height for bar in chart.bars if bar.x > gap.x] == pytest.approx([50] * 10)


def test_bars_stay_visible_however_often_the_work_was_interrupted() -> None:
    nights = [(50_000.0 * night + 10 * part, 20) for night in range(40) for part in range(20)]
    chart = rate(nights)
    assert chart is not None
    assert len(chart.breaks) == 39
    assert min(bar.width for bar in chart.bars) > 0
    assert chart.bars[-1].x + chart.bars[-1].width == pytest.approx(100)


@pytest.mark.parametrize(
    ("finished", "bars"),
    [([], None), ([(1000.0, 5)], None), ([(1000.0, 5), (1000.0, 5)], None), ([(0.0, 5), (90_000.0, 5)], 1)],
)
def test_too_few_parts_to_tell_are_no_chart(finished: list[tuple[float, int]], bars: int | None) -> None:
    chart = rate(finished)
    assert (None if chart is None else len(chart.bars)) == bars


def test_numbers_are_written_with_three_digits() -> None:
    assert [digits(value) for value in (0.97431, 12.0, 1234.5, 0.0, float("nan"), None)] == [
        "0.974", "12.0", "1,234", "0.00", "–", "–",
    ]  # fmt: skip
