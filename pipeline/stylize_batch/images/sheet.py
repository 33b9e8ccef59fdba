"""Lay pictures out side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stylize_batch.images.decode import Array

TITLE = 24
"""Height of the titles' line, pixels."""


def contact_sheet(
    rows: Sequence[Sequence[Array | None]], cell: int = 256, gap: int = 4, titles: Sequence[str] = ()
) -> Array:
    """Arrange uint8 RGB images of any size in a grid of `cell`-pixel squares on white; None leaves a gap.

    Titles stand above the columns; of long ones the end is shown.
    """
    columns = max(len(row) for row in rows)
    step = cell + gap
    top = gap + (TITLE if titles else 0)
    sheet = Image.new("RGB", (columns * step + gap, top + len(rows) * step), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TITLE * 0.6)
    for x, title in enumerate(titles):
        while pen.textlength(title, font) > cell:
            title = "…" + title[2:]
        pen.text((gap + x * step + cell // 2, TITLE // 2), title, "black", font, anchor="mm")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            if picture is None:
                continue
            image = Image.fromarray(picture)
            image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
            offset = (cell - image.width) // 2, (cell - image.height) // 2
            sheet.paste(image, (gap + x * step + offset[0], top + y * step + offset[1]))
    return np.asarray(sheet)
