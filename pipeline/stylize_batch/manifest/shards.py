"""A plan as it lies under `plan/`: shards, which every worker reads, and the styles of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa

from stylize_batch import parquet
from stylize_batch.errors import SystemicError
from stylize_batch.storage import Root

STYLES_KEY = "plan/styles.parquet"


class Shard(NamedTuple):
    """A shard: its number, and how many pairs it has in all."""

    number: int
    pairs: int


def shard_key(shard: int) -> str:
    """Return the key of a shard's plan."""
    return f"plan/shard-{shard:06d}.parquet"


def put_shard(root: Root, shard: int, table: pa.Table, run: str) -> None:
    """Write one shard of a run."""
    root.put(shard_key(shard), parquet.dumps(table.replace_schema_metadata({parquet.RUN: run.encode()})))


def read_shard(root: Root, shard: int, run: str) -> pa.Table:
    """Read one shard: `pair_id`, `content`, `style` (list), `alpha`, `output` (key), the manifest's other columns.

    Where there are no styles, `alpha` is null.

    Raises:
        SystemicError: it is damaged or missing, or of another run, which has begun anew meanwhile.
    """
    table = _read(root, shard_key(shard))
    if (table.schema.metadata or {}).get(parquet.RUN) != run.encode():
        raise SystemicError(f"another run has begun anew at {root.uri}")
    return table.replace_schema_metadata(None)


def largest_first(root: Root, shards: Iterable[int]) -> list[int]:
    """Order shards so that the last ones, for which workers wait for each other, are small; their files tell about."""
    sizes = root.sizes("plan")
    return sorted(shards, key=lambda shard: (-sizes.get(shard_key(shard), 0), shard))


def is_whole(root: Root, shards: int) -> bool:
    """Whether every file of a plan is there and, as a power cut may leave it, none is empty."""
    sizes = root.sizes("plan")
    return all(sizes.get(key) for key in (STYLES_KEY, *map(shard_key, range(shards))))


def put_styles(root: Root, uris: list[str]) -> None:
    """Write the distinct URIs of all rows that take a style as it is."""
    root.put(STYLES_KEY, parquet.dumps(pa.table({"style": pa.array(uris, pa.string())})))


def read_styles(root: Root) -> list[str]:
    """Read the distinct style URIs of the whole manifest, sorted.

    Raises:
        SystemicError: they are damaged or missing.
    """
    return _read(root, STYLES_KEY)["style"].to_pylist()


def _read(root: Root, key: str) -> pa.Table:
    try:
        return parquet.loads(root.read(key))
    except (FileNotFoundError, pa.ArrowException):  # a power cut may leave a file empty
        raise SystemicError(
            f"{root.uri_of(key)} is damaged or missing: delete it if it is there, and the repeated command makes it again"
        ) from None
