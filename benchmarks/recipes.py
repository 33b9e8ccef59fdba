"""What the recipes in jobs/ make of a small dataset, and what that comes to for all of ImageNet-1k.

    python benchmarks/recipes.py [--contents 12]

Every recipe runs with its own settings, on one core without Ray, with the styles from a bank. Processor seconds count, less
those of a run of one picture, so that neither start-up nor the styles nor other work on the machine matters. Bytes are
those of the sample's photographs.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from pathlib import Path

from harness import COMMAND, SAMPLE, Page, options

from stylize_batch.job.bank import encode
from stylize_batch.job.spec import make_spec
from stylize_batch.progress import Silent

REPOSITORY = Path(__file__).parent.parent
STYLES = SAMPLE / "style"
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
        *COMMAND, "run", "--job", str(recipe), "--content", str(dataset),
        "--style", str(STYLES), "-o", str(output), "--in-process", "--device", "cpu", *options,
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, [
        path.stat().st_size for path in (output / "images").rglob("*.*") if path.suffix != ".parquet"
    ]


def measure(recipe: Path, dataset: Path, folder: Path) -> tuple[float, float]:
    """Return processor seconds and bytes per picture."""
    bank = folder / f"{recipe.stem}.bank.parquet"
    size = make_spec({"content": "c", "style": "s"}, str(recipe)).style_size
    encode(str(STYLES), str(bank), style_size=size, device="cpu", observer=Silent())
    one, _ = run(recipe, dataset, folder / f"{recipe.stem}-one", "--styles", str(bank), "--limit", "1")
    all, sizes = run(recipe, dataset, folder / recipe.stem, "--styles", str(bank))
    return (all - one) / (len(sizes) - 1), sum(sizes) / len(sizes)


def _short(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"


def main() -> None:
    """Write the page."""
    parser = options(__doc__)
    parser.add_argument("--contents", type=int, default=12, help="of the small dataset")
    given = parser.parse_args()
    with Page("Recipes", given) as page, tempfile.TemporaryDirectory() as name:
        page.table(
            "",
            "pictures per content",
            "core-seconds each",
            "KB each",
            "ImageNet-1k: pictures",
            "GB",
            "core-hours",
        )
        make_dataset(Path(name) / "dataset", 2 if given.quick else given.contents)
        for recipe in sorted((REPOSITORY / "jobs").glob("*.yaml")):
            if recipe.name == "rayjob.yaml":  # a run on Kubernetes, and none of its own
                continue
            seconds, size = measure(recipe, Path(name) / "dataset", Path(name))
            build = make_spec({"content": "c", "style": "s"}, str(recipe)).build
            each = (build.styles_per_content or 1) + build.keep_originals
            pictures = (build.sample or IMAGENET) * each
            page.row(
                f"`{recipe.name}`", each, f"{seconds:.2f}", f"{size / 1e3:.0f}", f"{pictures:,}",
                _short(pictures * size / 1e9), _short(pictures * seconds / 3600),
            )  # fmt: skip
        page.end_table()


if __name__ == "__main__":
    main()
