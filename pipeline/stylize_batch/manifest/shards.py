"""A plan as it lies under `plan/`: shards, which every worker reads, and the styles of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa

from stylize_batch import parquet
from stylize_batch.ahead import begun_ahead
from stylize_batch.errors import SystemicError
from stylize_batch.root import Root

STYLES_KEY = "plan/styles.parquet"

READ_THREADS = 16
"""Files read at once to see whether a plan is whole."""


class Shard(NamedTuple):
    """A shard: its number, and how many pairs it has in all."""

    number: int
    pairs: int


def shard_key(shard: int) -> str:
    """Return the key of a shard's plan."""
    return f"plan/shard-{shard:06d}.parquet"


def put_shard(root: Root, shard: int, table: pa.Table, run: str) -> None:
    """Write one shard of a run."""
    _put(root, shard_key(shard), table, run)


def read_shard(root: Root, shard: int, run: str) -> pa.Table:
    """Read one shard: `pair_id`, `content`, `style` (list), `alpha`, `output` (key), the manifest's other columns.

    Where there are no styles, `alpha` is null.

    Raises:
        SystemicError: it is damaged or missing, or of another run, which has begun anew meanwhile.
    """
    return _read(root, shard_key(shard), run)


def largest_first(root: Root, shards: Iterable[int]) -> list[int]:
    """Order shards so that the last ones, for which workers wait for each other, are small; their files tell about."""
    sizes = root.sizes("plan")
    return sorted(shards, key=lambda shard: (-sizes.get(shard_key(shard), 0), shard))


def is_whole(root: Root, shards: int, run: str) -> bool:
    """Whether every file of a run's plan is there: none is damaged, as a power cut may leave it, and none another run's."""
    keys = [STYLES_KEY, *map(shard_key, range(shards))]
    sizes = root.sizes("plan")
    if not all(sizes.get(key) for key in keys):
        return False

    def is_sound(key: str) -> bool:
        try:
            _read(root, key, run, columns=[])
        except SystemicError:
            return False
        return True

    with ThreadPoolExecutor(READ_THREADS) as threads:
        return all(sound.result() for _, sound in begun_ahead(threads, is_sound, keys, READ_THREADS))


def put_styles(root: Root, uris: list[str], run: str) -> None:
    """Write the distinct URIs of all rows of a run that take a style as it is."""
    _put(root, STYLES_KEY, pa.table({"style": pa.array(uris, pa.string())}), run)


def read_styles(root: Root, run: str) -> list[str]:
    """Read the distinct style URIs of the whole manifest, sorted.

    Raises:
        SystemicError: as `read_shard`.
    """
    return _read(root, STYLES_KEY, run)["style"].to_pylist()


def _put(root: Root, key: str, table: pa.Table, run: str) -> None:
    root.put(key, parquet.dumps(table.replace_schema_metadata({parquet.RUN: run.encode()})))


def _read(root: Root, key: str, run: str, columns: list[str] | None = None) -> pa.Table:
    table = parquet.read(root, key, columns)
    if table is None:
        raise SystemicError(
            f"{root.uri_of(key)} is damaged or missing: delete it if it is there, and the repeated command makes it again"
        )
    if parquet.note(table, parquet.RUN) != run:
        raise SystemicError(f"another run has begun anew at {root.uri}")
    return table.replace_schema_metadata(None)
