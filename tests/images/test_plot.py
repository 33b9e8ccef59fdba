"""Plots."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from stylize_batch.images.plot import Series, line_plot


def draw(series: Series, log_y: bool = False) -> np.ndarray:
    png = line_plot(series, x_label="x", y_label="y", title="title", log_y=log_y)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_a_curve_is_where_its_values_are() -> None:
    plot = draw({"rising": ([0, 1, 2], [0, 1, 2])})
    height, width, _ = plot.shape
    inner = plot[height // 8 : -height // 8, width // 8 : -width // 8].astype(int)
    rows, columns = np.nonzero(inner[:, :, 2] - inner[:, :, 0] > 100)  # blue
    assert np.corrcoef(rows, columns)[0, 1] < -0.9


def test_logarithmic_axes_bend_curves_and_survive_zeros() -> None:
    series = {"zero first": ([0, 1, 2], [0.0, 1.0, 100.0])}
    assert not np.array_equal(draw(series, log_y=True), draw(series))


def test_plots_leave_no_state_behind() -> None:
    first = draw({"a": ([0, 1], [1, 2])})
    draw({"b": ([0], [5])}, log_y=True)
    assert np.array_equal(draw({"a": ([0, 1], [1, 2])}), first)
