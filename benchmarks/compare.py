"""Images per second of this package and of the plain loop that dataset scripts use, in one run.

    python benchmarks/compare.py [SIZE]

The plain loop takes a pair at a time, encodes the style again for every pair, and saves with torchvision; same
weights, same pictures, no losses. Ratios of one run are what counts; machines differ and are noisy.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import save_image

from stylize_batch.model import checkpoint, container
from stylize_batch.model.adain import adain, statistics

SAMPLE = Path(__file__).parent.parent / "manifests" / "sample"
STYLE_SIZE = 512
REPEATS = 3


def load(path: Path, size: int) -> torch.Tensor:
    """Load an image as [1, 3, H, W] in 0..1 with its shorter side at `size`."""
    with Image.open(path) as image:
        scale = size / min(image.size)
        resized = image.convert("RGB").resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
        )
    return pil_to_tensor(resized)[None].float() / 255


@torch.no_grad()
def plain_loop(pairs: list[tuple[Path, Path]], size: int, folder: Path) -> float:
    """Stylize pairs one by one; return seconds."""
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    started = time.perf_counter()
    for index, (content, style) in enumerate(pairs):
        features = model.encoder(load(content, size))
        wanted = statistics(model.encoder(load(style, STYLE_SIZE)))
        output = model.decoder(adain(statistics(features), wanted).apply(features))
        save_image(output, folder / f"{index}.jpg")
    return time.perf_counter() - started


def package(manifest: Path, size: int, folder: Path, *options: str) -> float:
    """Run the command on the same pairs; return the seconds it reports."""
    command = [
        str(Path(sys.executable).parent / "stylize-batch"), "run", str(manifest), "-o", str(folder),
        "--size", str(size), "--no-metrics", "--json", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["seconds"])


def main() -> None:
    """Print a Markdown table."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    contents = sorted((SAMPLE / "content").glob("*.jpg"))
    styles = sorted((SAMPLE / "style").glob("*.jpg"))
    pairs = [(content, style) for content in contents for style in styles]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(
        f"{REPEATS * len(contents)} contents, each with the same {len(styles)} styles, shorter side {size}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Each content several times under other names, so that start-up does not drown the rate.
        rows: dict[str, list[str]] = {"content": [], "style": []}
        for repeat in range(REPEATS):
            for content, style in pairs:
                copy = folder / f"{repeat}-{content.name}"
                copy.write_bytes(content.read_bytes())
                rows["content"].append(str(copy))
                rows["style"].append(str(style))
        pq.write_table(pa.table(rows), folder / "pairs.parquet")
        count = len(pairs) * REPEATS
        plain = plain_loop(pairs, size, folder) * REPEATS
        alone = package(folder / "pairs.parquet", size, folder / "alone", "--in-process")
        on_ray = package(folder / "pairs.parquet", size, folder / "ray")
    print("| | images/s | ÷ plain loop |")
    print("|---|---|---|")
    for label, seconds in (("plain loop", plain), ("`--in-process`", alone), ("local Ray", on_ray)):
        print(f"| {label} | {count / seconds:.2f} | {plain / seconds:.2f} |")


if __name__ == "__main__":
    main()
