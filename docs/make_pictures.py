"""Lay out the README's picture from what `make demo` made.

make demo && .venv/bin/python docs/make_pictures.py
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from stylize_batch.images.decode import Array, decode
from stylize_batch.images.encode import encode
from stylize_batch.images.sheet import contact_sheet

REPOSITORY = Path(__file__).parent.parent
CELL = 200


def load(path: str | Path) -> Array:
    """Decode the centre square of a picture."""
    return decode((REPOSITORY / "manifests" / path).read_bytes(), size=CELL, crop=CELL)


def main() -> None:
    """Write docs/sample.jpg: contents × styles."""
    rows = pq.read_table(REPOSITORY / "sample-stylized" / "results").to_pylist()
    plain = {
        (row["content"], row["style"][0]): row for row in rows if len(row["style"]) == 1 and row["alpha"] == 1
    }
    contents = sorted({content for content, _ in plain})
    styles = sorted({style for _, style in plain})
    grid: list[list[Array | None]] = [[None, *(load(style) for style in styles)]]
    for content in contents:
        grid.append([load(content), *(load(plain[content, style]["output"]) for style in styles)])
    (REPOSITORY / "docs" / "sample.jpg").write_bytes(encode(contact_sheet(grid, CELL), "jpeg", 85))


if __name__ == "__main__":
    main()
