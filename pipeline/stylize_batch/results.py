"""Results: one row per manifest row, written a shard at a time, and the totals over them."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import errno
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch import parquet
from stylize_batch.ahead import begun_ahead
from stylize_batch.manifest.schema import RESULT_COLUMNS
from stylize_batch.root import Root

FINISHED = b"stylize_batch.finished"
"""Parquet metadata key of the time at which a part was finished: seconds since 1970, as text."""

READ_AHEAD = 16
"""Parts being read ahead of the one in use."""

_PART = re.compile(r"results/part-(\d+)\.parquet")
_TYPES: dict[str, pa.DataType] = {
    "pair_id": pa.string(),
    "content": pa.string(),
    "style": pa.list_(pa.string()),
    "output": pa.string(),
    "status": pa.string(),
    "error": pa.string(),
    "content_loss": pa.float32(),
    "style_loss": pa.float32(),
    "content_distance": pa.float32(),
    "alpha": pa.float32(),
    "height": pa.int32(),
    "width": pa.int32(),
    "model": pa.string(),
}

EXAMPLES = 3
"""Failed rows of each kind that are given as examples."""

COUNTED = ["status", "error", "content_loss", "style_loss"]
"""The columns that totals are made of."""

OF_OUTCOME = ["output", "status", "error"]
"""The columns that say whether and where there is a picture, and nothing of it."""


class Outcome(NamedTuple):
    """What became of one pair: a picture with its size and losses (None without metrics), or an error."""

    error: str | None = None
    content_loss: float | None = None
    style_loss: float | None = None
    content_distance: float | None = None
    height: int | None = None
    width: int | None = None


@dataclass
class Totals:
    """Counts over result rows.

    Attributes:
        ok: rows with a picture.
        failed: rows without.
        kinds: failed rows by kind.
        content_loss: sum over `measured` rows.
        style_loss: sum over `measured` rows.
        measured: rows with losses.
    """

    ok: int = 0
    failed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    content_loss: float = 0.0
    style_loss: float = 0.0
    measured: int = 0

    @property
    def pairs(self) -> int:
        """Rows counted."""
        return self.ok + self.failed

    def add(self, other: Totals) -> None:
        """Add another count to this one."""
        self.ok += other.ok
        self.failed += other.failed
        self.kinds.update(other.kinds)
        self.content_loss += other.content_loss
        self.style_loss += other.style_loss
        self.measured += other.measured


class Part(NamedTuple):
    """What a shard's results tell without their rows: the totals, and when they were finished (seconds since 1970)."""

    totals: Totals
    finished: float | None


def part_key(shard: int) -> str:
    """Return the key of a shard's results."""
    return f"results/part-{shard:06d}.parquet"


def results_table(plan: pa.Table, outcomes: list[Outcome], model: str) -> pa.Table:
    """Join a shard's plan with what became of each row, in the plan's order.

    Where pictures are is known once the shard's are stored: `with_outputs`.
    """
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        name: plan[name] for name in ("pair_id", "content", "style")
    }
    for name in Outcome._fields:
        columns[name] = pa.array([getattr(outcome, name) for outcome in outcomes], _TYPES[name])
    columns["status"] = pa.array(["ok" if outcome.error is None else "failed" for outcome in outcomes])
    columns["output"] = pa.nulls(len(plan), _TYPES["output"])
    columns["alpha"] = plan["alpha"]
    columns["model"] = pa.array([model] * len(outcomes), pa.string())
    carried = [name for name in plan.column_names if name not in columns]
    schema = pa.schema(
        [pa.field(name, _TYPES[name]) for name in RESULT_COLUMNS]
        + [plan.schema.field(name) for name in carried]
    )
    return pa.table(
        [columns.get(name, plan[name] if name in carried else None) for name in schema.names], schema
    )


def with_outputs(results: pa.Table, outputs: Sequence[str | None]) -> pa.Table:
    """Fill in where each row's picture is."""
    place = results.column_names.index("output")
    return results.set_column(place, "output", pa.array(outputs, pa.string()))


def put_part(root: Root, shard: int, table: pa.Table, run: str) -> Totals:
    """Write a shard's results in one atomic put; the shard is done once this returns."""
    metadata = {parquet.RUN: run.encode(), FINISHED: f"{time.time():.3f}".encode()}
    root.put(part_key(shard), parquet.dumps(table.replace_schema_metadata(metadata)))
    return totals_of(table)


def totals_of(table: pa.Table) -> Totals:
    """Count a results table, of which the `COUNTED` columns are enough."""
    failed = table.filter(pc.equal(table["status"], "failed"))
    kinds = Counter(str(error).partition(":")[0] for error in failed["error"].to_pylist())
    measured = len(table) - table["style_loss"].null_count
    return Totals(
        ok=len(table) - len(failed),
        failed=len(failed),
        kinds=kinds,
        content_loss=float(pc.sum(table["content_loss"]).as_py() or 0.0),
        style_loss=float(pc.sum(table["style_loss"]).as_py() or 0.0),
        measured=measured,
    )


def read_finished(root: Root, shard: int, run: str, columns: list[str] | None = None) -> pa.Table | None:
    """Read a shard's results, or some columns of them; None if this run has not written them yet."""
    table = parquet.read(root, part_key(shard), columns)
    return table if table is not None and parquet.note(table, parquet.RUN) == run else None


def complete(plan: pa.Table, earlier: pa.Table | None, make: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Make the rows of a shard that earlier results lack or list as failed; returns all, in the plan's order."""
    if earlier is None:
        return make(plan)
    failed = pc.equal(earlier["status"], "failed")
    if not pc.any(failed).as_py():
        return earlier
    made = make(plan.filter(failed))
    position = np.where(failed.to_numpy(), len(earlier), np.arange(len(earlier)))
    position[failed.to_numpy()] += np.arange(len(made))
    return pa.concat_tables([earlier.replace_schema_metadata(None), made]).take(pa.array(position))


def finished_parts(root: Root, run: str) -> dict[int, Part]:
    """Return the shards whose results this run has written, with what their parts tell."""
    shards = sorted(listed_shards(root))

    def load(shard: int) -> Part | None:
        table = read_finished(root, shard, run, COUNTED)
        if table is None:
            return None
        finished = parquet.note(table, FINISHED)
        return Part(totals_of(table), None if finished is None else float(finished))

    with ThreadPoolExecutor(16) as threads:
        found = zip(shards, threads.map(load, shards), strict=True)
        return {shard: part for shard, part in found if part is not None}


def finished_shards(root: Root, run: str) -> dict[int, Totals]:
    """Return the shards whose results this run has written, with their totals."""
    return {shard: part.totals for shard, part in finished_parts(root, run).items()}


def examples_of_failures(root: Root, run: str, finished: Mapping[int, Totals]) -> dict[str, list[str]]:
    """Return some failed rows of each kind, each as its content and the reason, from the first parts that have any.

    Raises:
        OSError: storage refused or did not answer.
    """
    found: dict[str, list[str]] = {}
    left = READ_AHEAD
    for shard, totals in sorted(finished.items()):
        if not left or all(len(found.get(kind, ())) >= EXAMPLES for kind in totals.kinds):
            continue
        left -= 1
        table = read_finished(root, shard, run, ["content", "error"])
        rows = [] if table is None else table.filter(pc.is_valid(table["error"])).to_pylist()
        for content, error in dict.fromkeys((row["content"], row["error"]) for row in rows):
            kind, _, reason = error.partition(": ")
            if len(some := found.setdefault(kind, [])) < EXAMPLES:
                some.append(reason if content in reason else f"{content}: {reason}")
    return found


def listed_shards(root: Root) -> set[int]:
    """Return the shards that have a results part under the root."""
    return {int(match[1]) for key in root.list("results") if (match := _PART.fullmatch(key))}


def read_parts(
    root: Root, run: str, columns: list[str] | None = None, shards: int | None = None
) -> Iterator[pa.Table]:
    """Read the parts that this run has written, or some columns of them, one after the other in shard order, some ahead.

    Args:
        root: of the run.
        run: its identity.
        columns: all by default.
        shards: how many a finished run has; by default, those are read that have a part.

    Raises:
        OSError: storage refused or did not answer, or one of so many `shards` has no sound part of this run.
    """
    numbers = sorted(listed_shards(root)) if shards is None else range(shards)
    with ThreadPoolExecutor(READ_AHEAD) as threads:
        read = partial(read_finished, root, run=run, columns=columns)
        for shard, part in begun_ahead(threads, read, numbers, READ_AHEAD):
            table = part.result()
            if table is not None:
                yield table
            elif shards is not None:
                lost = root.uri_of(part_key(shard))
                raise FileNotFoundError(errno.ENOENT, f"{lost} is gone or damaged; run again")
