"""Make sample.parquet: every content of `sample/` with every style, a weaker pair and a blend of two styles.

python manifests/make_sample.py
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent

SCHEMA = pa.schema(
    [
        ("content", pa.string()),
        ("style", pa.list_(pa.string())),
        ("style_weights", pa.list_(pa.float32())),
        ("alpha", pa.float32()),
        ("output", pa.string()),
        ("subject", pa.string()),
    ]
)


def main() -> None:
    """Write the manifest beside this file."""
    contents = sorted(path.relative_to(HERE).as_posix() for path in (HERE / "sample/content").glob("*.jpg"))
    styles = sorted(path.relative_to(HERE).as_posix() for path in (HERE / "sample/style").glob("*.jpg"))
    rows: list[dict[str, object]] = []
    for content in contents:
        subject = Path(content).stem
        for style in styles:
            key = f"{subject}/{Path(style).stem}"
            rows.append({"content": content, "style": [style], "output": key, "subject": subject})
    first, second = styles[0], styles[2]
    content, subject = contents[-1], Path(contents[-1]).stem
    for alpha in (0.0, 0.5):
        key = f"{subject}/{Path(first).stem}-alpha-{alpha}.png"
        rows.append({"content": content, "style": [first], "alpha": alpha, "output": key, "subject": subject})
    rows.append(
        {
            "content": content,
            "style": [first, second],
            "style_weights": [0.5, 0.5],
            "output": f"{subject}/blend.png",
            "subject": subject,
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), HERE / "sample.parquet")


if __name__ == "__main__":
    main()
