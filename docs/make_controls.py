"""Make docs/controls-rows.jpg: one photograph under every control, from the sample images.

.venv/bin/python docs/make_controls.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import stylize_batch
from stylize_batch.images.decode import decode
from stylize_batch.images.encode import encode
from stylize_batch.images.sheet import contact_sheet

DOCS = Path(__file__).parent
SAMPLE = DOCS.parent / "manifests" / "sample"
CELL = 224

CONTENT = str(SAMPLE / "content" / "neuschwanstein-castle.jpg")
CAFE = str(SAMPLE / "style" / "van-gogh-cafe-terrace.jpg")
TAPA = str(SAMPLE / "style" / "tapa-cloth.jpg")

SCHEMA = pa.schema(
    [
        ("content", pa.string()),
        ("style", pa.list_(pa.string())),
        ("style_weights", pa.list_(pa.float32())),
        ("alpha", pa.float32()),
        ("preserve_color", pa.bool_()),
        ("mask", pa.list_(pa.string())),
        ("output", pa.string()),
    ]
)


def main() -> None:
    """Write a manifest with a row per control, run it, and lay the pictures out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ramp = np.clip((np.arange(256) - 128) / 48 + 0.5, 0, 1)
        mask = folder / "right.png"
        Image.fromarray(np.tile((ramp * 255).astype(np.uint8), (256, 1))).save(mask)
        controls: list[dict[str, Any]] = [
            {"style": [CAFE]},
            {"style": [CAFE], "alpha": 0.5},
            {"style": [CAFE, TAPA], "style_weights": [0.6, 0.4]},
            {"style": [CAFE], "preserve_color": True},
            {"style": [CAFE, TAPA], "mask": [str(mask)]},
            {"style": [CAFE], "mask": [str(mask)]},
            {"style": [CAFE, TAPA], "mask": [str(mask)], "preserve_color": True, "alpha": 0.8},
        ]
        rows = [{"content": CONTENT, "output": f"{index}.png", **row} for index, row in enumerate(controls)]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "controls.parquet")
        stylize_batch.run(
            str(folder / "controls.parquet"), output=str(folder / "out"), in_process=True, size=256, crop=256
        )
        given, made = (
            [CONTENT, CAFE, TAPA, str(mask)],
            [folder / "out/images" / row["output"] for row in rows],
        )
        cells = [decode(Path(path).read_bytes(), size=CELL, crop=CELL) for path in (*given, *made)]
        sheet = contact_sheet([[*cells[:4]], [*cells[4:8]], [*cells[8:], None]], CELL)
        (DOCS / "controls-rows.jpg").write_bytes(encode(sheet, "jpeg", 85))


if __name__ == "__main__":
    main()
