"""Time and peak memory of one very large photograph, through the command that users run.

python benchmarks/large.py [MODEL] [WIDTHxHEIGHT] [--no-metrics]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from harness import COMMAND, SAMPLE
from PIL import Image

from stylize_batch.model import container


def main() -> None:
    """Enlarge a sample photograph, stylize it, and print what run.json says."""
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    options = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    model, size = (given + [container.DEFAULT, "12000x9000"][len(given) :])[:2]
    width, height = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.MAX_IMAGE_PIXELS = None
        with Image.open(SAMPLE / "content" / "colosseum.jpg") as image:
            image.resize((width, height), Image.Resampling.BILINEAR).save(folder / "large.jpg", quality=90)
        style = str(SAMPLE / "style" / "van-gogh-cafe-terrace.jpg")
        pq.write_table(
            pa.table({"content": [str(folder / "large.jpg")], "style": [style]}), folder / "one.parquet"
        )
        command = [*COMMAND, "run", str(folder / "one.parquet")]
        command += ["-o", str(folder / "out"), "--model", model, "--in-process", *options]
        subprocess.run(command, check=True)
        totals = json.loads((folder / "out" / "run.json").read_text())["totals"]
        results = pq.read_table(folder / "out" / "results").to_pylist()[0]
    print(
        f"{model}, {width}×{height}: {totals['seconds']:.0f} s, peak {max(totals['peak_memory'].values()) / 1e9:.2f} GB"
    )
    print(
        {
            name: results[name]
            for name in ("status", "error", "content_loss", "style_loss", "content_distance")
        }
    )


if __name__ == "__main__":
    main()
