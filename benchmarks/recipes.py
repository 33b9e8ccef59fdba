"""What the recipes in jobs/ make of a small dataset, and what that comes to for all of ImageNet-1k.

    python benchmarks/recipes.py [CONTENTS]

Every recipe runs with its own settings, on one core without Ray. Processor seconds count, less those of a run of one
picture, so that neither start-up nor other work on the machine matters. Bytes are those of the sample's photographs.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from stylize_batch.job.spec import make_spec

REPOSITORY = Path(__file__).parent.parent
STYLES = REPOSITORY / "manifests" / "sample" / "style"
IMAGENET = 1_281_167 + 50_000
"""Images of ImageNet-1k with a label: training and validation."""


def make_dataset(folder: Path, contents: int) -> None:
    """Write an ImageFolder tree of so many contents: the sample's, several times under other names."""
    sources = sorted((REPOSITORY / "manifests" / "sample-imagefolder").glob("*/*.jpg"))
    for number in range(contents):
        source = sources[number % len(sources)]
        target = folder / source.parent.name / f"{number:04d}-{source.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())


def run(recipe: Path, dataset: Path, output: Path, *options: str) -> tuple[float, list[int]]:
    """Run a recipe; return processor seconds and each picture's bytes."""
    command = [
        str(Path(sys.executable).parent / "stylize-batch"), "run", "--job", str(recipe), "--content", str(dataset),
        "--style", str(STYLES), "-o", str(output), "--in-process", "--device", "cpu", *options,
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, [path.stat().st_size for path in (output / "images").rglob("*.*")]


def measure(recipe: Path, dataset: Path, folder: Path) -> tuple[float, float]:
    """Return processor seconds and bytes per picture."""
    one, _ = run(recipe, dataset, folder / f"{recipe.stem}-one", "--limit", "1")
    all, sizes = run(recipe, dataset, folder / recipe.stem)
    return (all - one) / (len(sizes) - 1), sum(sizes) / len(sizes)


def _short(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"


def main() -> None:
    """Print a Markdown table."""
    contents = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    print(f"{platform.machine()}, torch {torch.__version__}; {contents} contents\n")
    print(
        "| | pictures per content | core-seconds each | KB each | ImageNet-1k: pictures | GB | core-hours |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        make_dataset(Path(name) / "dataset", contents)
        for recipe in sorted((REPOSITORY / "jobs").glob("*.yaml")):
            seconds, size = measure(recipe, Path(name) / "dataset", Path(name))
            build = make_spec({"content": "c", "style": "s"}, str(recipe)).build
            each = (build.styles_per_content or 1) + build.keep_originals
            pictures = (build.sample or IMAGENET) * each
            print(
                f"| `{recipe.name}` | {each} | {seconds:.2f} | {size / 1e3:.0f} | {pictures:,} "
                f"| {_short(pictures * size / 1e9)} | {_short(pictures * seconds / 3600)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
