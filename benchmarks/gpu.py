"""Files to files on a GPU: pictures per second, what the stylize stage alone would make, and what the cores' codecs do.

    python benchmarks/gpu.py [--device cuda] [--size 224] [--pairs 50000] [--processes 1 4] [--photographs DIR] [--quick]

Processes are runs side by side, each of its own part of the pairs. Four of them are not quite the four actors that
`--gpus-per-actor 0.25` puts on a card: those plan their batches with a quarter of its memory each and take shards from
one plan; these have a plan of their own each, and batches as if the whole card were theirs.
"""

from __future__ import annotations

import argparse
import functools
import io
import multiprocessing
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter, time
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import SAMPLE, Page, options, stages_of, stylize, written
from network import Stage, random_pictures
from PIL import Image

from stylize_batch.images.decode import SUFFIXES, decode
from stylize_batch.images.encode import encode
from stylize_batch.model import container
from stylize_batch.settings import Device

STYLE_SIZE = 512
QUALITY = 95
SHAPES = ((500, 375), (375, 500), (334, 500), (400, 300), (320, 320), (256, 256))
"""Width and height of the photographs: those of ImageNet's and the like."""

SHARE = (0.5, 1.0)
"""Of a photograph's shorter side, what a crop of it takes."""

PHOTOGRAPHS = 2000
"""Different ones; each comes several times under other names, and no two names are the same to the package."""

CODEC_PASSES = 2
"""Times that each of the photographs is decoded and encoded to find the codecs' rate."""

QUICK_PAIRS = 40
"""Of a run with `--quick`."""

CALIBRATION = 25
"""Of the pairs, one in so many tells how many there is time for."""

SECONDS = 40.0
"""A run gets no more pairs than one process made in so long without losses."""

ROUNDS = 8
"""Batches that each lane makes one after the other when the stage alone is timed, as in a run."""

ROOM = 8 * 2**30
"""Bytes that a run's files may take."""

TARGET = 1_281_167
"""Pictures of ImageNet's training set."""

STAGES = ("encode", "stylize", "metrics", "wait", "fetch", "decode", "codec", "put")


class Case(NamedTuple):
    """What the runs have in common: where they work and how large the pictures are."""

    folder: Path
    device: Device
    size: int
    photographs: list[Path]
    cores: int


class Found(NamedTuple):
    """What some processes did side by side.

    Attributes:
        pairs: of all.
        rate: pictures per second, the sum of what each says of its own from the start of planning to the last part.
        first: seconds until all had written a picture, the interpreters' start included.
        steady: pictures per second of all from then on, until the first had written its last; where
            no time lies between, as in a run of few pairs, `rate`.
        stages: seconds, summed over all.
    """

    pairs: int
    rate: float
    first: float
    steady: float
    stages: Counter[str]


def make_photographs(sources: list[Path], folder: Path, count: int, pool: Executor) -> list[Path]:
    """Cut different pictures out of photographs, each always the same; return the files."""
    paths = [folder / f"{number}.jpg" for number in range(count)]
    list(pool.map(_cut, islice(cycle(sources), count), paths, range(count), chunksize=16))
    return paths


def _cut(source: Path, path: Path, seed: int) -> None:
    chance = random.Random(seed)
    width, height = chance.choice(SHAPES)
    with Image.open(source) as image:
        scale = chance.uniform(*SHARE) * min(image.width / width, image.height / height)
        left, top = (
            chance.uniform(0, have - scale * want)
            for have, want in ((image.width, width), (image.height, height))
        )
        box = (left, top, left + scale * width, top + scale * height)
        cut = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, box)
    buffer = io.BytesIO()
    cut.save(buffer, "JPEG", quality=90)
    path.write_bytes(buffer.getvalue())


def _transcode(size: int, path: Path) -> None:
    encode(decode(path.read_bytes(), size=size, crop=size), "jpeg", QUALITY)


def codec_rate(case: Case, pool: Executor) -> float:
    """Return how many pictures per second a pool's workers decode and encode again, with nothing else to do."""
    call = functools.partial(_transcode, case.size)
    started = perf_counter()
    for _ in range(CODEC_PASSES):
        list(pool.map(call, case.photographs, chunksize=16))
    return CODEC_PASSES * len(case.photographs) / (perf_counter() - started)


def stage_rate(case: Case, metrics: bool) -> float:
    """Return how many pictures per second the stylize stage makes of contents that are at hand."""
    stage = Stage(container.DEFAULT, case.device, "fp16" if case.device == "cuda" else "fp32")
    stage.at_once *= ROUNDS
    shape = (case.size, case.size)
    contents = random_pictures(stage.batch(shape), shape)
    with torch.inference_mode():
        styles = stage.network.encode_styles(random_pictures(1, (128, 128)))
    call = functools.partial(stage.run, contents, styles, metrics)
    return len(contents) / stage.seconds(len(contents) * case.size**2, call)


def run(case: Case, name: str, pairs: int, processes: int, metrics: bool) -> Found:
    """Have processes stylize so many pairs, side by side."""
    styles = sorted((SAMPLE / "style").glob("*.jpg"))
    calls: list[Callable[[], dict[str, Any]]] = []
    outputs: list[Path] = []
    for process in range(processes):
        part = case.folder / f"{name}-{process}"
        rows: list[dict[str, str]] = []
        (part / "content").mkdir(parents=True)
        for number, (photograph, style) in enumerate(
            islice(zip(cycle(case.photographs), cycle(styles)), process, pairs, processes)
        ):
            content = part / "content" / f"{number}.jpg"
            os.link(photograph, content)
            rows.append({"content": str(content), "style": str(style)})
        pq.write_table(pa.Table.from_pylist(rows), part / "pairs.parquet")
        outputs.append(part / "out")
        calls.append(
            functools.partial(
                stylize, part / "pairs.parquet", "-o", part / "out", "--in-process", "--device", case.device,
                "--size", case.size, "--crop", case.size, "--style-size", STYLE_SIZE, "--quality", QUALITY,
                *([] if metrics else ["--no-metrics"]),
            )
        )  # fmt: skip
    started = time()
    with ThreadPoolExecutor(processes) as threads:
        told = [each.result() for each in [threads.submit(call) for call in calls]]
    times = [written(output) for output in outputs]
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    between = sum(begin < moment <= end for each in times for moment in each)
    stages: Counter[str] = Counter()
    for output in outputs:
        stages.update(stages_of(output))
    for output in outputs:
        shutil.rmtree(output.parent)
    rate = sum(each["images_per_second"] for each in told)
    steady = between / (end - begin) if between else rate
    return Found(pairs, rate, begin - started, steady, stages)


def write_codecs(page: Page, case: Case, pool: Executor) -> None:
    """Table of what the cores' codecs do alone."""
    page.say(
        f"## The codecs\n\nPhotographs of {_sides(SHAPES)} pixels from memory, decoded to {case.size} × {case.size} and "
        f"encoded as JPEG of quality {QUALITY}, with nothing else to do."
    )
    page.table("", "pictures/s")
    page.row(f"{case.cores} processes", f"{codec_rate(case, pool):,.0f}")
    with ThreadPoolExecutor(case.cores) as threads:
        page.row(f"{case.cores} threads of one process", f"{codec_rate(case, threads):,.0f}")
    page.end_table()


def write_runs(page: Page, case: Case, most: int, processes: list[int]) -> None:
    """Tables of the runs."""
    calibrated = run(case, "calibration", max(2, most // CALIBRATION), 1, False)
    pairs = min(most, max(2 * max(processes), int(SECONDS * calibrated.steady)))
    page.say(
        f"## Files to files\n\n{container.DEFAULT}, one of {len(list((SAMPLE / 'style').glob('*.jpg')))} styles for each "
        f"content, {case.size} × {case.size}, JPEG, all in {case.folder.parent}. *Pictures/s* are the command's own, from "
        "the start of planning to the last result, summed over the processes; the first picture counts from the start of "
        "the command, and where there are several processes it is the last one's. *The stage alone* makes pictures of "
        "contents that are at hand, without files, in one process. *ImageNet* is "
        f"{TARGET:,} pictures at the rate from the first one on, and the start."
    )
    page.table(
        "processes", "losses", "pairs", "pictures/s", "first picture, s", "pictures/s from then on",
        "the stage alone", "÷ the stage alone", "ImageNet, min",
    )  # fmt: skip
    runs: list[tuple[int, str, Found]] = []
    for metrics in (False, True):
        alone = stage_rate(case, metrics)
        if case.device == "cuda":
            torch.cuda.empty_cache()
        for count in processes:
            losses = "yes" if metrics else "no"
            found = run(case, f"{losses}-{count}", pairs, count, metrics)
            runs.append((count, losses, found))
            page.row(
                count, losses, f"{found.pairs:,}", f"{found.rate:,.1f}", f"{found.first:.1f}", f"{found.steady:,.1f}",
                f"{alone:,.1f}", f"{found.steady / alone:.2f}", f"{(found.first + TARGET / found.steady) / 60:,.1f}",
            )  # fmt: skip
    page.end_table()
    page.say(
        "Milliseconds of threads for each picture; `encode` to `wait` are those of the threads that feed the network, and "
        "of each process there are two on a GPU."
    )
    page.table("processes", "losses", *STAGES)
    for count, losses, found in runs:
        each = (f"{1e3 * found.stages[stage] / found.pairs:.2f}" for stage in STAGES)
        page.row(count, losses, *each)
    page.end_table()


def _sides(shapes: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{width} × {height}" for width, height in shapes)


def main() -> None:
    """Write the page."""
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--pairs", type=int, default=50_000, help="of a run, if there is time for so many")
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="side by side")
    parser.add_argument(
        "--photographs", type=Path, default=SAMPLE / "content", help="folder; crops of them are the contents"
    )
    write(parser.parse_args())


def write(given: argparse.Namespace) -> None:
    """Write the page that was asked for."""
    size, different, pairs = (
        (64, QUICK_PAIRS, QUICK_PAIRS) if given.quick else (given.size, PHOTOGRAPHS, given.pairs)
    )
    cores = len(os.sched_getaffinity(0))
    memory = Path("/dev/shm")  # noqa: S108 (the fastest place for files)
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    with (
        tempfile.TemporaryDirectory(dir=memory if roomy else None) as name,
        # Forked while this process has no other threads, and none of a GPU's driver.
        ProcessPoolExecutor(cores, multiprocessing.get_context("fork")) as pool,
    ):
        folder = Path(name)
        sources = sorted(path for path in given.photographs.rglob("*") if path.suffix.lower() in SUFFIXES)
        case = Case(folder, given.device, size, make_photographs(sources, folder, different, pool), cores)
        with Page("Files to files on a GPU", given, device=given.device) as page:
            write_codecs(page, case, pool)
            write_runs(page, case, pairs, given.processes)


if __name__ == "__main__":
    main()
