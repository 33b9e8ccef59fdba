"""What an evaluation says: means per method, ratios to the baseline, and the curves of Fig. 3."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from stylize_batch.errors import counted
from stylize_batch.evaluation.baseline import STYLE_WEIGHT
from stylize_batch.evaluation.methods import GATYS, UNSTYLIZED
from stylize_batch.images.plot import Series, line_plot

Row = dict[str, Any]
Rows = dict[tuple[str, str], Row]
"""By content and style."""

Groups = dict[tuple[str, int | None], Rows]
"""By method and iterations."""


def grouped(table: pa.Table) -> Groups:
    """Group an evaluation's table, in its order."""
    groups: defaultdict[tuple[str, int | None], Rows] = defaultdict(dict)
    for row in table.to_pylist():
        groups[row["method"], row["iterations"]][row["content"], row["style"]] = row
    return dict(groups)


def objective(row: Row) -> float:
    """Return what the baseline minimises: content distance + λ · style loss."""
    return row["content_distance"] + STYLE_WEIGHT * row["style_loss"]


def geometric_mean_ratio(rows: Rows, others: Rows, value: Callable[[Row], float]) -> float:
    """Return the geometric mean over pairs of the ratios of two methods.

    Pairs on which either is zero or not finite have no ratio; NaN if none has.
    """
    logarithms = [math.log(ratio) for ratio in _ratios(rows, others, value)]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def _ratios(rows: Rows, others: Rows, value: Callable[[Row], float]) -> list[float]:
    both = [(value(row), value(others[pair])) for pair, row in rows.items()]
    return [one / other for one, other in both if 0 < one < math.inf and 0 < other < math.inf]


def tables(table: pa.Table) -> str:
    """Return the means per method, and the models' ratios to the baseline, as Markdown."""
    groups = grouped(table)
    lines = [
        "| method | iterations | content distance | style loss | ÷ unstylized (worst) | SSIM | grid | PSNR at α = 0 | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(_means(method, iterations, groups)) for method, iterations in groups),
    ]
    marks = [iterations for method, iterations in groups if method == GATYS and iterations is not None]
    if marks:
        lines += [
            "",
            "Models ÷ baseline, geometric means of the pairs' ratios; the objective is what the baseline minimises, "
            f"content distance + {STYLE_WEIGHT:g} · style loss:",
            "",
            "| model | ÷ baseline after | content distance | style loss | objective |",
            "|---|---|---|---|---|",
        ]
    for model in (method for method, _ in groups if method not in (UNSTYLIZED, GATYS)):
        for mark in marks:
            ratios = (
                geometric_mean_ratio(groups[model, None], groups[GATYS, mark], value)
                for value in (_content_distance, _style_loss, objective)
            )
            lines.append(_line([model, counted(mark, "iteration"), *(f"{ratio:.3f}" for ratio in ratios)]))
    for (method, iterations), rows in groups.items():
        broken = sum(not math.isfinite(objective(row)) for row in rows.values())
        if broken:
            after = f" after {counted(iterations, 'iteration')}" if iterations else ""
            lines += [
                "",
                f"{method}{after}: {broken} of {counted(len(rows), 'pair')} left out, whose loss is not finite.",
            ]
    return "\n".join(lines) + "\n"


def _means(method: str, iterations: int | None, groups: Groups) -> list[str]:
    rows, unstylized = groups[method, iterations], groups[UNSTYLIZED, None]
    cells = [
        method,
        "" if iterations is None else str(iterations),
        f"{_mean(rows, _content_distance):.2f}",
        f"{_mean(rows, _style_loss):.2f}",
    ]
    look = [f"{_mean(rows, lambda row: row['ssim']):.3f}", f"{_mean(rows, lambda row: row['grid']):.1f}"]
    if method == UNSTYLIZED:
        return [*cells, "", *look, "", ""]
    ratio = geometric_mean_ratio(rows, unstylized, _style_loss)
    worst = max(_ratios(rows, unstylized, _style_loss), default=math.nan)
    psnr = {content: row["reconstruction_psnr"] for (content, _), row in rows.items()}
    known = [value for value in psnr.values() if value is not None]
    return [
        *cells,
        f"{ratio:.3f} ({worst:.3f})",
        *look,
        f"{np.mean(known):.1f} dB" if known else "",
        f"{np.median([row['seconds'] for row in rows.values()]):.2f}",
    ]


def plots(table: pa.Table) -> dict[str, bytes]:
    """Draw Fig. 3: content distance against style loss, and each over iterations. Returns PNGs by name."""
    groups = grouped(table)
    marks = [iterations for method, iterations in groups if method == GATYS and iterations is not None]
    pairs = f"mean of {counted(len(groups[UNSTYLIZED, None]), 'pair')}"
    style = {group: _mean(rows, _style_loss) for group, rows in groups.items()}
    content = {group: _mean(rows, _content_distance) for group, rows in groups.items()}
    trade_off: dict[str, tuple[list[float], list[float]]] = {}
    for group in groups:
        xs, ys = trade_off.setdefault(group[0], ([], []))
        xs.append(content[group])
        ys.append(style[group])
    return {
        "trade-off.png": line_plot(
            trade_off,
            x_label="content distance",
            y_label="style loss",
            title=f"Content distance against style loss, {pairs}",
            log_y=True,
            notes={GATYS: marks},
        ),
        "style-loss.png": line_plot(
            _over_iterations(style),
            x_label="iterations",
            y_label="style loss",
            title=f"Style loss, {pairs}",
            log_y=True,
        ),
        "content-distance.png": line_plot(
            _over_iterations(content),
            x_label="iterations",
            y_label="content distance",
            title=f"Content distance, {pairs}",
        ),
    }


def _over_iterations(values: dict[tuple[str, int | None], float]) -> Series:
    """Make the baseline a curve, which starts from the unstylized content, and everything else a level line."""
    curve = {iterations: value for (method, iterations), value in values.items() if method == GATYS}
    marks = [iterations for iterations in curve if iterations is not None]
    series: dict[str, tuple[list[float], list[float]]] = {
        method: ([0, marks[-1] if marks else 1], [value, value])
        for (method, iterations), value in values.items()
        if iterations is None
    }
    if marks:
        series[GATYS] = ([0, *marks], [values[UNSTYLIZED, None], *curve.values()])
    return series


def _style_loss(row: Row) -> float:
    return row["style_loss"]


def _content_distance(row: Row) -> float:
    return row["content_distance"]


def _mean(rows: Rows, value: Callable[[Row], float]) -> float:
    values = [value(row) for row in rows.values() if math.isfinite(objective(row))]
    return float(np.mean(values)) if values else math.nan


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
