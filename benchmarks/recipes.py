"""What the recipes in jobs/ make of a small dataset, and what that comes to for all of ImageNet-1k.

    python benchmarks/recipes.py [CONTENTS]

Every recipe runs with its own settings and without Ray. Bytes and rates are those of the sample's photographs;
pictures of a larger collection differ, so look at a preview of your own.
"""

from __future__ import annotations

import json
import os
import platform
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


def measure(recipe: Path, dataset: Path, output: Path) -> tuple[float, float]:
    """Run a recipe; return pictures per second and bytes per picture."""
    command = [
        str(Path(sys.executable).parent / "stylize-batch"), "run", "--job", str(recipe), "--content", str(dataset),
        "--style", str(STYLES), "-o", str(output), "--in-process", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sizes = [path.stat().st_size for path in (output / "images").rglob("*.*")]
    return float(json.loads(done.stdout)["images_per_second"]), sum(sizes) / len(sizes)


def main() -> None:
    """Print a Markdown table."""
    contents = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {device}, torch {torch.__version__}; {contents} contents\n"
    )
    print("| | pictures per content | pictures/s | KB each | ImageNet-1k: pictures | GB | hours |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        make_dataset(Path(name) / "dataset", contents)
        for recipe in sorted((REPOSITORY / "jobs").glob("*.yaml")):
            rate, size = measure(recipe, Path(name) / "dataset", Path(name) / recipe.stem)
            build = make_spec({"content": "c", "style": "s"}, str(recipe)).build
            each = (build.styles_per_content or 1) + build.keep_originals
            pictures = (build.sample or IMAGENET) * each
            print(
                f"| `{recipe.name}` | {each} | {rate:.2f} | {size / 1e3:.0f} | {pictures:,} "
                f"| {pictures * size / 1e9:,.3g} | {pictures / rate / 3600:,.3g} |"
            )


if __name__ == "__main__":
    main()
