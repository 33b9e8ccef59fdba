"""Pictures per second of this package, files to files, and of the plain loop that dataset scripts use.

    python benchmarks/compare.py [--size 256] [--pairs 320] [--quick]

The plain loop takes a pair at a time, encodes the style again for every pair, and saves with torchvision; same
weights, same pictures, no losses. It is timed before and after all else.
"""

from __future__ import annotations

import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import SAMPLE, Page, options, stages_of, stylize, written
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import save_image

from stylize_batch.model import checkpoint, container
from stylize_batch.model.adain import adain, statistics

STYLE_SIZE = 512
PLAIN_PAIRS = 14
WARM_UP = 2
"""Pairs of the plain loop that are not timed."""
COMPACT_TIMES = 5
"""Pairs of the compact network for one of the default's, so that its runs last as long."""

CASES = [
    *((container.DEFAULT, per_content, losses) for per_content in (1, 4) for losses in (False, True)),
    *((container.COMPACT, per_content, False) for per_content in (1, 4)),
]
"""Model, styles per content, whether losses are measured."""


def load(path: Path, size: int) -> torch.Tensor:
    """Load an image as [1, 3, H, W] in 0..1 with its shorter side at `size`."""
    with Image.open(path) as image:
        scale = size / min(image.size)
        resized = image.convert("RGB").resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
        )
    return pil_to_tensor(resized)[None].float() / 255


@torch.no_grad()
def plain_loop(pairs: list[tuple[Path, Path]], size: int, style_size: int, folder: Path) -> float:
    """Stylize pairs one by one; return pictures per second after the warm-up."""
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    started = 0.0
    for index, (content, style) in enumerate(pairs, -WARM_UP):
        if index == 0:
            started = time.perf_counter()
        features = model.encoder(load(content, size))
        wanted = statistics(model.encoder(load(style, style_size)))
        output = model.decoder(adain(statistics(features), wanted).apply(features))
        save_image(output, folder / f"{index}.jpg")
    return (len(pairs) - WARM_UP) / (time.perf_counter() - started)


def pairs_of(contents: list[Path], styles: list[Path], per_content: int) -> list[tuple[Path, Path]]:
    """Pair every content with the next styles in turn."""
    drawn = cycle(styles)
    return [(content, style) for content in contents for style in islice(drawn, per_content)]


def write_manifest(folder: Path, count: int, per_content: int) -> Path:
    """Write a manifest of so many pairs of the sample's images."""
    contents, styles = (sorted((SAMPLE / kind).glob("*.jpg")) for kind in ("content", "style"))
    # Each content several times under other names: no two are the same to the package.
    copies: list[Path] = []
    for number, content in enumerate(islice(cycle(contents), count // per_content)):
        copies.append(folder / f"{number}-{content.name}")
        copies[-1].write_bytes(content.read_bytes())
    rows = [{"content": str(c), "style": str(s)} for c, s in pairs_of(copies, styles, per_content)]
    manifest = folder / f"{count}-{per_content}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), manifest)
    return manifest


class Measured:
    """A run of the command, its start included.

    Attributes:
        rate: pictures per second, as the command reports it.
        first: seconds until the first picture was written, the interpreter's start included.
        steady: pictures per second from the first one to the last.
        network: the share of all cores' time in the run that the network had, losses included.
    """

    def __init__(self, manifest: Path, output: Path, *given: object) -> None:
        started = time.time()
        told = stylize(manifest, "-o", output, *given)
        stages = stages_of(output)
        busy = sum(stages.get(stage, 0.0) for stage in ("encode", "stylize", "metrics"))
        self.rate: float = told["images_per_second"]
        times = written(output)
        self.first = times[0] - started
        self.steady = (len(times) - 1) / (times[-1] - times[0])
        self.network: float = busy / told["seconds"] / torch.get_num_threads()


def main() -> None:
    """Write the page."""
    parser = options(__doc__)
    parser.add_argument("--size", type=int, default=256, help="shorter side of the pictures")
    parser.add_argument("--pairs", type=int, default=320, help="of every run of the default model")
    given = parser.parse_args()
    size, style_size, count, loops = given.size, STYLE_SIZE, given.pairs, PLAIN_PAIRS
    if given.quick:
        size, style_size, count, loops = 64, 64, 8, 4
    with Page("Files to files", given) as page, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page.say(
            f"{count} pairs of the sample's photographs, {COMPACT_TIMES * count} of the compact network, and its "
            f"{len(list((SAMPLE / 'style').glob('*.jpg')))} styles, shorter side {size}, JPEG. Rates are the command's "
            "own, from the start of planning, Ray's start and the encoding of styles included. *Network* is the share of "
            "all cores' time in it that the network had. The first picture counts from the start of the command. What Ray "
            "costs beside its start says the last column: pictures per second from the first one to the last."
        )
        page.table(
            "", "model", "styles per content", "losses", "pictures/s", "÷ plain loop", "÷ in-process", "network",
            "first picture, s", "÷ in-process from then on",
        )  # fmt: skip
        sample = sorted((SAMPLE / "content").glob("*.jpg")), sorted((SAMPLE / "style").glob("*.jpg"))
        looped = pairs_of(*sample, len(sample[1]))[::2][:loops]
        plain = plain_loop(looped, size, style_size, folder)
        page.row("plain loop", container.DEFAULT, "", "no", f"{plain:.2f}", "1.00", "", "", "", "")
        for model, per_content, losses in CASES:
            if given.quick and per_content > 1:
                continue
            manifest = write_manifest(
                folder, count * (COMPACT_TIMES if model == container.COMPACT else 1), per_content
            )
            alone: Measured | None = None
            for label, *more in (("in-process", "--in-process"), ("local Ray",)):
                output = folder / "-".join((model, str(per_content), str(losses), label))
                flags = [*more, *([] if losses else ["--no-metrics"])]
                found = Measured(
                    manifest, output, "--size", size, "--style-size", style_size, "--model", model, *flags
                )
                alone = alone or found
                page.row(
                    label, model, per_content, "yes" if losses else "no", f"{found.rate:.2f}",
                    f"{found.rate / plain:.2f}", f"{found.rate / alone.rate:.2f}", f"{found.network:.0%}",
                    f"{found.first:.1f}", f"{found.steady / alone.steady:.2f}",
                )  # fmt: skip
        again = plain_loop(looped, size, style_size, folder)
        page.row(
            "plain loop again",
            container.DEFAULT,
            "",
            "no",
            f"{again:.2f}",
            f"{again / plain:.2f}",
            "",
            "",
            "",
            "",
        )
        page.end_table()


if __name__ == "__main__":
    main()
