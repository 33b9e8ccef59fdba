"""Ratios and means of an evaluation."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.evaluation import summary
from stylize_batch.evaluation.summary import Row, Rows, geometric_mean_ratio, plots, tables
from stylize_batch.images.plot import Series

positive = st.floats(1e-3, 1e3)


def rows(values: list[float]) -> Rows:
    return {(str(index), "style"): {"style_loss": value} for index, value in enumerate(values)}


def style_loss(row: Row) -> float:
    return row["style_loss"]


@given(st.lists(st.tuples(positive, positive), min_size=1), positive)
def test_ratios_of_pairs_scale_and_invert(values: list[tuple[float, float]], factor: float) -> None:
    ours, theirs = rows([one for one, _ in values]), rows([other for _, other in values])
    scaled = rows([factor * one for one, _ in values])
    ratio = geometric_mean_ratio(ours, theirs, style_loss)
    assert geometric_mean_ratio(scaled, theirs, style_loss) == pytest.approx(factor * ratio)
    assert geometric_mean_ratio(theirs, ours, style_loss) == pytest.approx(1 / ratio)


def test_a_pair_without_a_ratio_does_not_spoil_the_others() -> None:
    ours, theirs = rows([2, 1, math.nan, 8, math.inf, 1]), rows([1, 0, 1, 1, 1, math.inf])
    assert geometric_mean_ratio(ours, theirs, style_loss) == pytest.approx(4)
    assert math.isnan(geometric_mean_ratio(rows([0]), rows([1]), style_loss))


def table(baseline: float = 1.0) -> pa.Table:
    def row(method: str, iterations: int | None, style: float, content: float, **more: Any) -> Row:
        return {
            "content": "a.jpg",
            "style": "b.jpg",
            "method": method,
            "iterations": iterations,
            "style_loss": style,
            "content_distance": content,
            "ssim": 0.5,
            "grid": 3.0,
            "reconstruction_psnr": more.get("psnr"),
            "seconds": 0.25,
        }

    return pa.Table.from_pylist(
        [
            row("unstylized content", None, 16.0, 0.0),
            row("mine|yours", None, 2.0, 6.0, psnr=20.0),
            row("Gatys et al.", 50, baseline, 4.0),
        ]
    )


def test_tables_say_means_and_ratios() -> None:
    lines = tables(table()).splitlines()
    assert "| mine\\|yours |  | 6.00 | 2.00 | 0.125 (0.125) | 0.500 | 3.0 | 20.0 dB | 0.25 |" in lines
    # content distance 6 ÷ 4, style loss 2 ÷ 1, objective (6 + 10·2) ÷ (4 + 10·1)
    assert "| mine\\|yours | 50 iterations | 1.500 | 2.000 | 1.857 |" in lines


def test_tables_tell_the_worst_pair_and_count_each_photograph_once() -> None:
    first = table().slice(0, 2).to_pylist()
    more: list[Row] = [
        # Another style of the same photograph, on which the model is worse, slower once, and the same at α = 0.
        *({**row, "style": "c.jpg", "style_loss": 4 * row["style_loss"] ** 0.5} for row in first),
        {**first[0], "content": "d.jpg"},
        {**first[1], "content": "d.jpg", "reconstruction_psnr": 40.0, "seconds": 100.0},
        {**first[0], "content": "e.jpg"},
        {**first[1], "content": "e.jpg", "reconstruction_psnr": None, "style_loss": math.nan},
    ]
    (line,) = (
        line for line in tables(pa.Table.from_pylist([*first, *more])).splitlines() if "yours |  |" in line
    )
    ratios = (0.125, 4 * 2**0.5 / 16, 0.125)
    ratio = math.prod(ratios) ** (1 / 3)
    style = (2 + 4 * 2**0.5 + 2) / 3
    expected = f"| 6.00 | {style:.2f} | {ratio:.3f} ({max(ratios):.3f}) | 0.500 | 3.0 | 30.0 dB | 0.25 |"
    assert line.endswith(expected)


def test_an_optimisation_that_diverged_is_said_and_not_averaged() -> None:
    text = tables(table(baseline=math.nan))
    assert "Gatys et al. after 50 iterations: 1 of 1 pair left out, whose loss is not finite" in text


def test_the_curve_of_an_optimisation_starts_from_the_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Series] = []
    monkeypatch.setattr(summary, "line_plot", lambda series, **_: drawn.append(series))
    plots(table())
    assert drawn[1] == {
        "unstylized content": ([0, 50], [16.0, 16.0]),
        "mine|yours": ([0, 50], [2.0, 2.0]),
        "Gatys et al.": ([0, 50], [16.0, 1.0]),
    }


def test_every_plot_is_drawn_with_and_without_the_baseline() -> None:
    for shown in (table(), table().slice(0, 2)):
        assert all(png.startswith(b"\x89PNG") for png in plots(shown).values())
