"""What RandomStyle costs a training set of 224-pixel crops, in a DataLoader's worker and in the training loop.

python benchmarks/augmentation.py
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import SAMPLE, Page, options
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from stylize_batch import RandomStyle
from stylize_batch.job.bank import encode
from stylize_batch.progress import Silent

SIDE, P, BATCH, COPIES, ROUNDS = 224, 0.5, 16, 8, 3


def images_per_second(batches: Iterable[Any], device: str, augment: Any) -> float:
    """Return the rate of one epoch, after a first batch that loads what is loaded once."""
    torch.manual_seed(0)
    left = iter(batches)
    augment(next(left)[0].to(device))
    if device == "cuda":
        torch.cuda.synchronize()
    started, seen = time.perf_counter(), 0
    for images, _ in left:
        seen += len(augment(images.to(device)))
    if device == "cuda":
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - started)


def main() -> None:
    """Write the page."""
    given = options(__doc__).parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as name:
        folder, bank = Path(name) / "photos", str(Path(name) / "bank.parquet")
        encode(str(SAMPLE / "style"), bank, observer=Silent())
        for source in (SAMPLE / "content").glob("*.jpg"):
            for copy in range(COPIES):
                target = folder / source.stem / f"{copy}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        style, nothing = RandomStyle(bank, p=P), v2.Identity()
        crop = [v2.PILToTensor(), v2.RandomResizedCrop(SIDE)]
        plain = datasets.ImageFolder(str(folder), v2.Compose(crop))
        styled = datasets.ImageFolder(str(folder), v2.Compose([*crop, style]))
        alone = f"in the training loop, on the {device.upper()}, beside its loader"
        cases = {
            "without": (plain, nothing),
            "in the worker, on its one CPU core": (styled, nothing),
            alone: (plain, style),
        }
        rates: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(1 if given.quick else ROUNDS):
            for case, (photos, augment) in cases.items():
                loader = DataLoader(photos, BATCH, num_workers=1)
                # The loader decodes while the loop stylizes, so there the batches are made before.
                batches = list(loader) if case == alone else loader
                rates[case].append(images_per_second(batches, device, augment))
    base = 1 / median(rates["without"])
    with Page("RandomStyle", given, device=device) as page:
        page.table(f"{SIDE}×{SIDE}, p = {P}, one worker", "images/s", "s per stylized image")
        for case, found in rates.items():
            rate = median(found)
            seconds = 1 / rate - (0 if case == alone else base)
            page.row(case, f"{rate:.1f}", "" if case == "without" else f"{seconds / P:.3f}")
        page.end_table()


if __name__ == "__main__":
    main()
