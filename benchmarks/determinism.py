"""How far the same pairs differ when something else about the run does: batches, workers, cores, processor, precision.

    python benchmarks/determinism.py [--device cuda] [--size 128] [--quick]

Every case is a run of the command with lossless pictures, compared with the first. An older processor is this one, told
to do without its newer instructions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import SAMPLE, Page, options, stylize
from PIL import Image

OLDER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}

Case = tuple[dict[str, str], tuple[str, ...]]

CASES: dict[str, dict[str, Case]] = {
    "cpu": {
        "the same again": ({}, ("--in-process",)),
        "one core": ({"OMP_NUM_THREADS": "1"}, ("--in-process",)),
        "a shard for each pair": ({}, ("--in-process", "--shard-pairs", "1")),
        "two workers on local Ray": ({}, ("--actors", "2")),
        "without AVX2 and AVX-512": (OLDER, ("--in-process",)),
        "`--precision bf16`": ({}, ("--in-process", "--precision", "bf16")),
        "`--precision fp16`": ({}, ("--in-process", "--precision", "fp16")),
    },
    "cuda": {
        "the same again": ({}, ("--in-process",)),
        "`--batch-size 1`": ({}, ("--in-process", "--batch-size", "1")),
        "`--batch-size 3`": ({}, ("--in-process", "--batch-size", "3")),
        "a shard for each pair": ({}, ("--in-process", "--shard-pairs", "1")),
        "on the CPU": ({}, ("--in-process", "--device", "cpu")),
        "`--precision fp16`": ({}, ("--in-process", "--precision", "fp16")),
        "`--precision bf16`": ({}, ("--in-process", "--precision", "bf16")),
    },
}


def run(manifest: Path, output: Path, size: int, device: str, case: Case) -> list[dict[str, Any]]:
    """Run the command; return the results, with the pixels of each picture."""
    environment, flags = case
    given = {"--device": device, "--precision": "fp32", "--size": str(size), "--style-size": str(size)}
    given |= {"--format": "png", "-o": str(output)}
    own = [flag for name, value in given.items() if name not in flags for flag in (name, value)]
    with patch.dict("os.environ", environment):
        stylize(manifest, *own, *flags)
    rows = sorted(pq.read_table(output / "results").to_pylist(), key=lambda row: row["pair_id"])
    for row in rows:
        with Image.open(row["output"]) as image:
            row["pixels"] = np.asarray(image).astype(np.int16)
    return rows


def main() -> None:
    """Write the page."""
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu", choices=tuple(CASES))
    parser.add_argument("--size", type=int, default=128, help="shorter side of contents and styles")
    given = parser.parse_args()
    size = 48 if given.quick else given.size
    contents, styles = (sorted((SAMPLE / kind).glob("*.jpg")) for kind in ("content", "style"))
    pairs = [{"content": str(content), "style": str(style)} for content in contents for style in styles[:2]]
    with Page("Determinism", given, device=given.device) as page, tempfile.TemporaryDirectory() as name:
        manifest = Path(name) / "pairs.parquet"
        pq.write_table(pa.Table.from_pylist(pairs), manifest)
        page.say(
            f"{len(pairs)} pairs of mixed sizes, shorter side {size}, `--precision fp32` unless told, compared with a run "
            "in one process. Values are those of a pixel's channels, 0 to 255; losses are compared by their ratio."
        )
        page.table(
            "", "values that differ", "largest difference", "mean difference", "losses differ by at most"
        )
        first = run(manifest, Path(name) / "first", size, given.device, ({}, ("--in-process",)))
        for label, case in CASES[given.device].items():
            rows = run(manifest, Path(name) / label.strip("`"), size, given.device, case)
            apart = [
                np.abs(one["pixels"] - other["pixels"]).ravel()
                for one, other in zip(first, rows, strict=True)
            ]
            values = np.concatenate(apart)
            losses = max(
                abs(other[key] / one[key] - 1)
                for one, other in zip(first, rows, strict=True)
                for key in ("content_loss", "style_loss")
            )
            page.row(
                label, f"{(values > 0).mean():.4%}" if values.any() else "none", int(values.max()),
                f"{values.mean():.2g}", f"{losses:.1g}",
            )  # fmt: skip
        page.end_table()


if __name__ == "__main__":
    main()
