"""Lay pictures out side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from stylize_batch.images.decode import Array


def contact_sheet(rows: Sequence[Sequence[Array | None]], cell: int = 256, gap: int = 4) -> Array:
    """Arrange uint8 RGB images of any size in a grid of `cell`-pixel squares on white; None leaves a gap."""
    columns = max(len(row) for row in rows)
    step = cell + gap
    sheet = Image.new("RGB", (columns * step + gap, len(rows) * step + gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            if picture is None:
                continue
            image = Image.fromarray(picture)
            image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
            offset = (cell - image.width) // 2, (cell - image.height) // 2
            sheet.paste(image, (gap + x * step + offset[0], gap + y * step + offset[1]))
    return np.asarray(sheet)
