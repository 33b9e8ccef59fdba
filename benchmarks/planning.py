"""Seconds and memory of planning a manifest, and of totalling its results, by the manifest's length.

    python benchmarks/planning.py [--millions 1 10] [--quick]

Each step is a process of its own, so that its peak memory is its own. The manifest is what an augmentation set of
ImageNet looks like: 8 styles of 80,000 for each photograph, in random order, with a label. Results are fabricated,
one row in a hundred failed. Processor seconds are those of all cores: they hold on a machine that does other work.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Page, options

from stylize_batch.manifest.partition import check_and_partition
from stylize_batch.manifest.plan import usual_shard_pairs, write_plan
from stylize_batch.manifest.shards import read_shard
from stylize_batch.manifest.source import fingerprint, locate
from stylize_batch.results import Outcome, finished_shards, put_part, results_table, with_outputs
from stylize_batch.root import Root

STYLES_PER_CONTENT = 8
STYLES = 80_000
GROUP_ROWS = 1_000_000


def make_manifest(folder: Path, rows: int) -> None:
    """Write the manifest, a row group at a time."""
    random = np.random.default_rng(0)
    order = random.permutation(rows)
    writer = None
    for start in range(0, rows, GROUP_ROWS):
        pairs = order[start : start + GROUP_ROWS]
        contents = pairs // STYLES_PER_CONTENT
        labels = contents % 1000
        # The second factor makes a content's styles distinct.
        styles = (contents * 7919 + pairs % STYLES_PER_CONTENT * 9973) % STYLES
        table = pa.table(
            {
                "content": [
                    f"train/n{label:08d}/n{label:08d}_{content}.JPEG"
                    for label, content in zip(labels.tolist(), contents.tolist(), strict=True)
                ],
                "style": [f"s3://paintings/train/{style}.jpg" for style in styles.tolist()],
                "label": labels.astype(np.int32),
            }
        )
        writer = writer or pq.ParquetWriter(folder / "pairs.parquet", table.schema)
        writer.write_table(table)
    assert writer
    writer.close()


def plan(folder: Path) -> int:
    """Plan it, as a run does; return the number of shards."""
    source = locate(str(folder / "pairs.parquet"))
    fingerprint(source)
    spill = folder / "spill"
    spill.mkdir()
    partition = check_and_partition(source, spill, "jpeg", None)
    return write_plan(partition, Root(str(folder / "out")), usual_shard_pairs(partition.pairs), "run")


def make_results(folder: Path) -> None:
    """Write a results part for every shard."""
    root = Root(str(folder / "out"))
    ok = Outcome(None, 1.5, 0.5, 2.5, 256, 341)
    failed = Outcome(error="NotFound: it is gone")
    for shard in range(len(root.list("plan")) - 1):
        rows = read_shard(root, shard, "run")
        outcomes = [failed if row % 100 == 0 else ok for row in range(len(rows))]
        outputs = [None if each.error else "/out/images/some/picture.jpg" for each in outcomes]
        put_part(root, shard, with_outputs(results_table(rows, outcomes, "adain-vgg16"), outputs), "run")


def total(folder: Path) -> int:
    """Read what is finished, as the start of a repeated run does; return the rows found."""
    return sum(totals.pairs for totals in finished_shards(Root(str(folder / "out")), "run").values())


def step(name: str, folder: Path, rows: int) -> None:
    """Do one step in this process and print what it took."""
    started = time.perf_counter()
    found: int | None = None
    if name == "manifest":
        make_manifest(folder, rows)
    elif name == "plan":
        found = plan(folder)
    elif name == "results":
        make_results(folder)
    else:
        found = total(folder)
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    processor = usage.ru_utime + usage.ru_stime
    print(
        json.dumps(
            {"found": found, "seconds": seconds, "processor": processor, "peak": usage.ru_maxrss * 1024}
        )
    )


def in_process_of_its_own(name: str, folder: Path, rows: int) -> dict[str, float]:
    """Run a step; return what it printed."""
    command = [sys.executable, __file__, "--step", name, str(folder), str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Write the page."""
    parser = options(__doc__)
    parser.add_argument("--millions", nargs="+", type=float, default=[1, 10], help="rows of each manifest")
    given = parser.parse_args()
    with Page("Planning", given) as page:
        page.say(
            "*Plan* is all that a run does before it starts workers, *total* what a repeated command does first: reading "
            "and counting every part of the results. Each in a process of its own."
        )
        page.table("rows", "", "seconds", "processor seconds", "peak memory, MB", "rows/s", "shards")
        for millions in [0.05] if given.quick else given.millions:
            rows = int(millions * 1_000_000)
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                in_process_of_its_own("manifest", folder, rows)
                made = in_process_of_its_own("plan", folder, rows)
                write_row(page, rows, "plan", made, made["found"])
                in_process_of_its_own("results", folder, rows)
                read = in_process_of_its_own("total", folder, rows)
                assert read["found"] == rows
                write_row(page, rows, "total", read, made["found"])
        page.end_table()


def write_row(page: Page, rows: int, label: str, took: dict[str, float], shards: float) -> None:
    """Write a line of the table."""
    page.row(
        f"{rows:,}", label, f"{took['seconds']:.1f}", f"{took['processor']:.1f}", f"{took['peak'] / 1e6:.0f}",
        f"{rows / took['seconds']:,.0f}", f"{shards:,.0f}",
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
