"""Output roots as a run leaves them, without the network: results parts over pictures that are there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from stylize_batch.job.record import RunRecord
from stylize_batch.results import Outcome, put_part, results_table, with_outputs
from stylize_batch.root import Root
from tests.conftest import Row

RUN = "the-run"


def row(
    content: str, style: Sequence[str], outcome: Outcome, picture: str = "/out/x.jpg", **columns: object
) -> Row:
    """One row: what the manifest says of it, its outcome, and where its picture is if it has one."""
    found = {"content": content, "style": list(style), "outcome": outcome, "picture": picture}
    return {**found, "alpha": 1.0, **columns}


def part(rows: Sequence[Row]) -> pa.Table:
    """Results of rows, whose identities follow from their contents, styles and α."""
    columns = {name: [each[name] for each in rows] for name in rows[0] if name not in ("outcome", "picture")}
    columns["pair_id"] = [identity(each) for each in rows]
    columns["output"] = [None] * len(rows)
    plan = pa.table(
        {
            name: pa.array(values, {"alpha": pa.float32(), "style": pa.list_(pa.string())}.get(name))
            for name, values in columns.items()
        }
    )
    outputs = [None if each["outcome"].error else each["picture"] for each in rows]
    return with_outputs(results_table(plan, [each["outcome"] for each in rows], "adain-test"), outputs)


def identity(each: Row) -> str:
    """A hash as long as a real one."""
    text = f"{each['content']} {each['style']} {each['alpha']}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def make_root(folder: Path, parts: Sequence[Sequence[Row]], base: Path, pairs: int | None = None) -> Root:
    """Write run.json and results parts.

    Args:
        folder: output root.
        parts: their rows.
        base: folder that relative paths start from.
        pairs: rows of the manifest; more than there are results make the run an unfinished one.
    """
    root = Root(str(folder))
    for shard, rows in enumerate(parts):
        put_part(root, shard, part(rows), RUN)
    there = sum(map(len, parts))
    RunRecord(
        run=RUN,
        state="finished" if pairs in (None, there) else "running",
        fixed={},
        settings={"manifest": "pairs.parquet", "model": "adain-test", "size": 48},
        model_digest="0" * 32,
        manifest_fingerprint="1" * 32,
        base=str(base),
        home=root.uri_of(""),
        shard_pairs=4,
        pairs=there if pairs is None else pairs,
        shards=len(parts),
    ).save(root)
    root.clear_temporaries()
    return root
