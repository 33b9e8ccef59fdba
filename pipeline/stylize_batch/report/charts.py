"""The report's charts: what to draw, in per cent of a chart's width and height. The page's template draws it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np

from stylize_batch.progress import duration
from stylize_batch.report.numbers import Distribution

BARS = 32
"""Bars of a histogram."""

TIME_BARS = 72
"""Bars of the rate, at most."""

PARTS_PER_BAR = 2
"""Parts that a bar of the rate averages over, at least: fewer would show when parts end, not how fast work goes."""

BREAK = 4.0
"""Width of a break in the rate's time axis, per cent, where there are few."""

MAX_BREAKS = 40.0
"""Width of all breaks together, at most."""

BREAK_SECONDS = 300.0
"""Time without a finished part that is drawn as a break, at least."""

BREAK_FACTOR = 20.0
"""The same, as a multiple of the usual time between two parts."""


class Bar(NamedTuple):
    """A bar from the bottom up, and what it stands for in words."""

    x: float
    width: float
    height: float
    title: str


class Histogram(NamedTuple):
    """A distribution.

    Attributes:
        bars: left to right.
        low: what the left end stands for.
        high: what the right end stands for.
        logarithmic: whether the axis is.
        median: of the numbers.
        median_x: where it lies.
        middle: 5 % and 95 % of the numbers lie below these.
    """

    bars: list[Bar]
    low: float
    high: float
    logarithmic: bool
    median: float
    median_x: float
    middle: tuple[float, float]


class Break(NamedTuple):
    """A stretch of time left out."""

    x: float
    width: float
    title: str


class Rate(NamedTuple):
    """Pictures per second over time, in UTC.

    Attributes:
        bars: left to right.
        breaks: between them.
        top: pictures per second at the upper end.
        mean: pictures per second, breaks left out.
        start: of the first bar.
        end: of the last one.
    """

    bars: list[Bar]
    breaks: list[Break]
    top: float
    mean: float
    start: str
    end: str


def histogram(distribution: Distribution) -> Histogram | None:
    """Draw a distribution; None of nothing. The outermost bars hold what lies beyond 99 % of the numbers."""
    if not distribution.count:
        return None
    low, high = distribution.quantile(0.005), distribution.quantile(0.995)
    if distribution.count <= 1000:
        low, high = distribution.low, distribution.high
    if high <= low * 1.001:
        low, high = low * 0.9, high * 1.1 or 1.0
    logarithmic = low > 0 and high / low > 50
    edges = np.geomspace(low, high, BARS + 1) if logarithmic else np.linspace(low, high, BARS + 1)
    counts = distribution.counts(edges)
    top = counts.max()
    bounds = [distribution.low, *edges[1:-1], distribution.high]
    bars = [
        Bar(
            100 * place / BARS,
            100 / BARS,
            100 * count / top,
            f"{digits(bounds[place])} to {digits(bounds[place + 1])}: {count:,} {'pair' if count == 1 else 'pairs'}",
        )
        for place, count in enumerate(counts.tolist())
    ]
    median = distribution.quantile(0.5)
    axis = np.log(edges) if logarithmic else edges
    at = np.log(median) if logarithmic else median
    median_x = float(np.clip((at - axis[0]) / (axis[-1] - axis[0]), 0, 1)) * 100
    middle = distribution.quantile(0.05), distribution.quantile(0.95)
    return Histogram(bars, low, high, logarithmic, median, median_x, middle)


def rate(finished: Sequence[tuple[float, int]]) -> Rate | None:
    """Draw the pictures per second between the first and the last part; None of too few parts.

    A part's pictures are spread evenly over the time since the part before it was finished, so the first part of each
    stretch only says when it begins. A part whose failed rows were retried counts when it was last written.
    """
    parts = np.array(sorted(finished))
    if len(parts) < 2:
        return None
    times, pictures = parts[:, 0], parts[:, 1]
    gaps = np.diff(times)
    limit = max(BREAK_SECONDS, BREAK_FACTOR * float(np.median(gaps)))
    cuts = np.flatnonzero(gaps > limit)
    stretches = [
        (times[start], times[end], start, end)
        for start, end in zip([0, *(cuts + 1)], [*cuts, len(times) - 1], strict=True)
    ]
    busy = sum(end - start for start, end, _, _ in stretches)
    if busy <= 0:
        return None
    made = np.cumsum(pictures)
    bars_wanted = min(TIME_BARS, max(1, len(times) // PARTS_PER_BAR))
    gap = min(BREAK, MAX_BREAKS / max(1, len(cuts)))
    scale = (100 - gap * len(cuts)) / busy
    x, drawn, breaks, total = 0.0, list[tuple[float, float, float, str]](), list[Break](), 0.0
    for place, (start, end, first, last) in enumerate(stretches):
        if place:
            before = stretches[place - 1][1]
            title = f"nothing finished for {duration(start - before)}, {moment(before)} to {moment(start)}"
            breaks.append(Break(x, gap, title))
            x += gap
        if end > start:
            total += made[last] - made[first]
            edges = np.linspace(start, end, max(1, round(bars_wanted * (end - start) / busy)) + 1)
            done = np.interp(edges, times[first : last + 1], made[first : last + 1])
            for left, right, count in zip(edges, edges[1:], np.diff(done), strict=False):
                width = (right - left) * scale
                speed = count / (right - left)
                title = f"{moment(left)} to {moment(right)}: {digits(speed)} pictures/s"
                drawn.append((x, width, speed, title))
                x += width
    top = max(speed for _, _, speed, _ in drawn) or 1.0
    bars = [Bar(left, width, 100 * speed / top, title) for left, width, speed, title in drawn]
    return Rate(bars, breaks, top, total / busy, moment(times[0]), moment(times[-1]))


def digits(value: float | None) -> str:
    """Write a number with three digits that count, or all of a whole number's; a dash if there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:#.3g}"
    return f"{value:.2g}" if "e" in text else text.rstrip(".")


def moment(seconds: float) -> str:
    """Write a time (seconds since 1970) in UTC."""
    return datetime.fromtimestamp(float(seconds), timezone.utc).strftime("%d %b %Y, %H:%M:%S")
