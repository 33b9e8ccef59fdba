"""Draw curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

MAX_MARKERS = 20
"""Series of up to so many points show each of them."""

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""x and y of each curve, by its name in the legend; one point alone is a dot."""


def line_plot(
    series: Series,
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_y: bool = False,
    notes: Mapping[str, Sequence[object]] | None = None,
) -> bytes:
    """Draw series over x as a PNG.

    Args:
        series: the curves.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        title: above the plot.
        log_y: a logarithmic vertical axis; values ≤ 0 are left out.
        notes: by series, a note beside each of its points.
    """
    from matplotlib.figure import Figure  # slow to import; without pyplot there is no global state

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, (xs, ys) in series.items():
        (line,) = axes.plot(
            xs,
            ys,
            marker="o" if len(xs) <= MAX_MARKERS else "",
            linestyle="-" if len(xs) > 1 else "",
            label=name,
        )
        for x, y, note in zip(xs, ys, (notes or {}).get(name, ()), strict=False):
            axes.annotate(
                str(note), (x, y), xytext=(5, 5), textcoords="offset points", color=line.get_color()
            )
    if log_y:
        axes.set_yscale("log", nonpositive="mask")
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
