"""Rows with every control: masks, weights, α and kept colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stylize_batch.images.decode import decode
from tests.conftest import Row


def save_mask(path: Path, *columns: int, size: int = 96) -> str:
    """A mask that is white in some eighths of its width."""
    mask = np.zeros((size, size), np.uint8)
    for column in columns:
        mask[:, column * size // 8 : (column + 1) * size // 8] = 255
    Image.fromarray(mask).save(path)
    return str(path)


def controlled_rows(content: str, styles: list[str], folder: Path) -> list[Row]:
    """One row for each control and for each combination of them."""
    left, right = save_mask(folder / "left.png", 0, 1, 2, 3), save_mask(folder / "right.png", 4, 5, 6, 7)
    white = save_mask(folder / "white.png", *range(8))
    variants: dict[str, Row] = {
        "plain": {"style": styles[:1]},
        "full-mask": {"style": styles[:1], "mask": [white]},
        "three-equal": {"style": [styles[0]] * 3},
        "two-white-masks": {"style": [styles[0]] * 2, "mask": [white, white]},
        "masks": {"style": styles[:2], "mask": [left, right]},
        "complement": {"style": styles[:2], "mask": [left]},
        "masks-alpha": {"style": styles[:2], "mask": [left, right], "alpha": 0.5},
        "colour": {"style": styles[:1], "preserve_color": True},
        "colour-weight-one": {"style": styles[:2], "style_weights": [1.0, 0.0], "preserve_color": True},
        "colour-full-mask": {"style": styles[:1], "mask": [white], "preserve_color": True},
        "colour-masks-alpha": {"style": styles[:2], "mask": [left], "preserve_color": True, "alpha": 0.7},
        "colour-blend": {"style": styles[:3], "preserve_color": True},
    }
    empty = {"style_weights": None, "alpha": None, "preserve_color": None, "mask": None}
    return [{"content": content, "output": name, **empty, **row} for name, row in variants.items()]


def by_name(results: list[Row]) -> tuple[dict[str, Row], dict[str, Any]]:
    rows = {Path(row["output"]).stem: row for row in results if row["output"]}
    return rows, {name: decode(Path(row["output"]).read_bytes()).astype(int) for name, row in rows.items()}
