"""Images per second of this package and of the plain loop that dataset scripts use, in one run.

    python benchmarks/compare.py [SIZE]    (about ten minutes on two cores)

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
from itertools import cycle, islice
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
PAIRS = 120
"""Pairs of every run of the command, so that its start does not drown the rate."""

PLAIN_PAIRS = 15


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
    """Stylize pairs one by one; return images per second."""
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    started = time.perf_counter()
    for index, (content, style) in enumerate(pairs):
        features = model.encoder(load(content, size))
        wanted = statistics(model.encoder(load(style, STYLE_SIZE)))
        output = model.decoder(adain(statistics(features), wanted).apply(features))
        save_image(output, folder / f"{index}.jpg")
    return len(pairs) / (time.perf_counter() - started)


def package(manifest: Path, size: int, folder: Path, *options: str) -> float:
    """Run the command; return the images per second it reports, its start included."""
    command = [
        str(Path(sys.executable).parent / "stylize-batch"), "run", str(manifest), "-o", str(folder),
        "--size", str(size), "--json", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["images_per_second"])


def pairs_of(contents: list[Path], styles: list[Path], per_content: int) -> list[tuple[Path, Path]]:
    """Pair every content with the next styles in turn."""
    drawn = cycle(styles)
    return [(content, style) for content in contents for style in islice(drawn, per_content)]


def main() -> None:
    """Print a Markdown table."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    contents = sorted((SAMPLE / "content").glob("*.jpg"))
    styles = sorted((SAMPLE / "style").glob("*.jpg"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{PAIRS} pairs of the sample's photographs and {len(styles)} styles, shorter side {size}\n")
    print("| | styles per content | losses | images/s | ÷ plain loop |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = plain_loop(pairs_of(contents, styles, len(styles))[::2][:PLAIN_PAIRS], size, folder)
        print(f"| plain loop | | no | {plain:.2f} | 1.00 |")
        for per_content in (1, 4):
            # Each content several times under other names: no two are the same to the package.
            copies = [
                folder / f"{number}-{content.name}"
                for number, content in enumerate(islice(cycle(contents), PAIRS // per_content))
            ]
            for content, copy in zip(cycle(contents), copies, strict=False):
                copy.write_bytes(content.read_bytes())
            rows = [(str(content), str(style)) for content, style in pairs_of(copies, styles, per_content)]
            manifest = folder / f"{per_content}.parquet"
            pq.write_table(
                pa.table(dict(zip(("content", "style"), zip(*rows, strict=True), strict=True))), manifest
            )
            for engine, *options in (("`--in-process`", "--in-process"), ("local Ray",)):
                for losses, *more in (("no", "--no-metrics"), ("yes",)):
                    rate = package(
                        manifest, size, folder / f"{per_content}-{engine}-{losses}", *options, *more
                    )
                    print(f"| {engine} | {per_content} | {losses} | {rate:.2f} | {rate / plain:.2f} |")


if __name__ == "__main__":
    main()
