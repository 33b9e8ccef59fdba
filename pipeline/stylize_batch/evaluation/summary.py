"""What an evaluation says: means per method, ratios to the baseline, and the curves of Fig. 3."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from stylize_batch.evaluation.baseline import STYLE_WEIGHT
from stylize_batch.evaluation.methods import GATYS, UNSTYLIZED
from stylize_batch.images.plot import Series, line_plot

Row = dict[str, Any]
Groups = dict[tuple[str, int | None], dict[tuple[str, str], Row]]
"""Rows by method and iterations, then by content and style."""

PLOTS = ("trade-off.png", "style-loss.png", "content-distance.png")


def grouped(table: pa.Table) -> Groups:
    """Group an evaluation's table, in its order."""
    groups: defaultdict[tuple[str, int | None], dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in table.to_pylist():
        groups[row["method"], row["iterations"]][row["content"], row["style"]] = row
    return dict(groups)


def objective(row: Row) -> float:
    """Return what the baseline minimises: content distance + λ · style loss."""
    return row["content_distance"] + STYLE_WEIGHT * row["style_loss"]


def geometric_mean_ratio(
    rows: dict[tuple[str, str], Row], others: dict[tuple[str, str], Row], value: Callable[[Row], float]
) -> float:
    """Return the geometric mean over pairs of the ratios of two methods.

    Pairs on which either is zero or not finite have no ratio; NaN if none has.
    """
    logarithms = [math.log(ratio) for ratio in _ratios(rows, others, value)]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def _ratios(
    rows: dict[tuple[str, str], Row], others: dict[tuple[str, str], Row], value: Callable[[Row], float]
) -> list[float]:
    both = [(value(row), value(others[pair])) for pair, row in rows.items()]
    return [one / other for one, other in both if 0 < one < math.inf and 0 < other < math.inf]


def tables(table: pa.Table) -> str:
    """Return the means per method, and the models' ratios to the baseline, as Markdown."""
    groups = grouped(table)
    unstylized = groups[UNSTYLIZED, None]
    lines = [
        "| method | iterations | content distance | style loss | ÷ unstylized (worst) | SSIM | PSNR at α = 0 | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (method, iterations), rows in groups.items():
        ratios = _ratios(rows, unstylized, _style_loss)
        mean = geometric_mean_ratio(rows, unstylized, _style_loss)
        cells = [
            method,
            "" if iterations is None else str(iterations),
            f"{_mean(rows, 'content_distance'):.2f}",
            f"{_mean(rows, 'style_loss'):.2f}",
            "" if method == UNSTYLIZED else f"{mean:.3f} ({max(ratios, default=math.nan):.3f})",
            f"{_mean(rows, 'ssim'):.3f}",
            _db(rows),
            "" if method == UNSTYLIZED else f"{np.median([row['seconds'] for row in rows.values()]):.2f}",
        ]
        lines.append(_line(cells))
    marks = [iterations for method, iterations in groups if method == GATYS]
    models = [method for method, _ in groups if method not in (UNSTYLIZED, GATYS)]
    if marks:
        lines += [
            "",
            "Models ÷ baseline, geometric means of the pairs' ratios; the objective is what the baseline minimises, "
            f"content distance + {STYLE_WEIGHT:g} · style loss:",
            "",
            "| model | ÷ baseline after | content distance | style loss | objective |",
            "|---|---|---|---|---|",
        ]
    for model in models:
        for mark in marks:
            values = (
                geometric_mean_ratio(groups[model, None], groups[GATYS, mark], value)
                for value in (_content_distance, _style_loss, objective)
            )
            lines.append(_line([model, f"{mark} iterations", *(f"{value:.3f}" for value in values)]))
    for (method, iterations), rows in groups.items():
        broken = sum(not math.isfinite(objective(row)) for row in rows.values())
        if broken:
            lines += ["", f"{method} after {iterations} iterations left {broken} of {len(rows)} pairs without a "
                      "finite loss; they are in no mean."]  # fmt: skip
    return "\n".join(lines) + "\n"


def plots(table: pa.Table) -> dict[str, bytes]:
    """Draw Fig. 3: losses over iterations, and content distance against style loss. Returns PNGs by name."""
    groups = grouped(table)
    marks = [iterations for method, iterations in groups if method == GATYS and iterations is not None]
    last = max(marks, default=1)
    pairs = len(groups[UNSTYLIZED, None])
    points = {
        group: (_mean(rows, "content_distance"), _mean(rows, "style_loss")) for group, rows in groups.items()
    }
    trade_off: dict[str, tuple[list[float], list[float]]] = {}
    for (method, _), (distance, loss) in points.items():
        xs, ys = trade_off.setdefault(method, ([], []))
        xs.append(distance)
        ys.append(loss)
    over: list[Series] = []
    for index in (0, 1):  # the content is where the optimisation starts
        start = points[UNSTYLIZED, None][index]
        series = {
            method: ([0, last], [values[index]] * 2)
            for (method, iterations), values in points.items()
            if iterations is None and (method != UNSTYLIZED or index == 1)
        }
        if marks:
            series[GATYS] = ([0, *marks], [start, *(points[GATYS, mark][index] for mark in marks)])
        over.append(series)
    return {
        "trade-off.png": line_plot(
            trade_off,
            x_label="content distance",
            y_label="style loss",
            title=f"Content distance against style loss, means of {pairs} pairs",
            log_y=True,
            notes={GATYS: marks},
        ),
        "content-distance.png": line_plot(
            over[0],
            x_label="iterations",
            y_label="content distance",
            title=f"Content distance, mean of {pairs} pairs",
        ),
        "style-loss.png": line_plot(
            over[1],
            x_label="iterations",
            y_label="style loss",
            title=f"Style loss, mean of {pairs} pairs",
            log_y=True,
        ),
    }


def _style_loss(row: Row) -> float:
    return row["style_loss"]


def _content_distance(row: Row) -> float:
    return row["content_distance"]


def _mean(rows: dict[tuple[str, str], Row], key: str) -> float:
    values = [row[key] for row in rows.values() if math.isfinite(objective(row))]
    return float(np.mean(values)) if values else math.nan


def _db(rows: dict[tuple[str, str], Row]) -> str:
    values = {content: row["reconstruction_psnr"] for (content, _), row in rows.items()}
    known = [value for value in values.values() if value is not None]
    return f"{np.mean(known):.1f} dB" if known else ""


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
