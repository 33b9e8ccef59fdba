"""What a training tells: the losses of every iteration as CSV, and their curves as a picture."""

from __future__ import annotations

import csv
import io
from typing import NamedTuple


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
