"""What a training tells: the losses of every iteration as CSV, and their curves as a picture."""

from __future__ import annotations

import csv
import io
import math
from typing import NamedTuple

import numpy as np

from stylize_batch.images.plot import line_plot

POINTS = 400
"""Of a curve, at most: each is the mean of as many iterations."""


class Step(NamedTuple):
    """One iteration: where it stands and the losses of its batch (NaN where the stage has none)."""

    iteration: int
    iterations: int
    stage: str
    loss: float
    content_loss: float
    style_loss: float
    learning_rate: float
    seconds: float


def dump(steps: list[Step]) -> bytes:
    """Write steps as CSV, a header first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Step._fields)
    for step in steps:
        writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in step)
    return text.getvalue().encode()


def load(data: bytes) -> list[Step]:
    """Read what `dump` wrote."""
    return [
        Step(int(row["iteration"]), int(row["iterations"]), row["stage"], *map(float, list(row.values())[3:]))
        for row in csv.DictReader(io.StringIO(data.decode()))
    ]


def plot(steps: list[Step]) -> bytes:
    """Plot the losses over iterations, as a PNG."""
    size = math.ceil(len(steps) / POINTS)
    groups = [steps[start : start + size] for start in range(0, len(steps), size)]
    series: dict[str, tuple[list[float], list[float]]] = {}
    for name in ("loss", "content_loss", "style_loss"):
        means = [
            (group[-1].iteration, float(np.mean([getattr(step, name) for step in group]))) for group in groups
        ]
        finite = [(float(x), y) for x, y in means if math.isfinite(y)]
        if finite:
            series[name.replace("_", " ")] = ([x for x, _ in finite], [y for _, y in finite])
    return line_plot(series, x_label="iteration", y_label="loss", title="training", log_y=True)
