"""Planning: checked rows, spread over buckets, become shards.

Buckets are cut so that all pairs of one content share a shard, and the content is fetched, decoded and encoded once.
"""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch.ahead import begun_ahead
from stylize_batch.manifest.partition import Partition
from stylize_batch.manifest.shards import put_shard, put_styles
from stylize_batch.root import Root

PUT_THREADS = 16

MAX_SHARD_PAIRS = 128
MIN_SHARDS = 16
MAX_SHARDS = 16_384
"""A shard holds at most so many pairs; fewer where there would be under so many shards, and more where there would be over
so many: each costs a file of the plan, a task and a part of the results."""

MAX_GPU_SHARD_PAIRS = 2048
MIN_GPU_SHARDS = 512
"""On GPUs alone, which have nothing to do where a shard ends, one holds up to so many pairs where that leaves so many shards:
enough for many GPUs to finish together."""

OVERSIZE = 4
"""A content with more pairs than this many shards is split over several."""


def usual_shard_pairs(pairs: int, *, gpus: bool = False) -> int:
    """Return the pairs per shard for a manifest of so many, which GPUs alone are to work on, or others too."""
    most = MAX_SHARD_PAIRS
    if gpus:
        most = max(most, min(MAX_GPU_SHARD_PAIRS, pairs // MIN_GPU_SHARDS))
    return max(1, min(most, -(-pairs // MIN_SHARDS)), -(-pairs // MAX_SHARDS))


def write_plan(partition: Partition, root: Root, shard_pairs: int, run: str) -> int:
    """Cut the buckets into shards of about `shard_pairs` pairs, write them under `plan/`, as those of a run, and return
    how many there are."""

    def put(numbered: tuple[int, pa.Table]) -> None:
        put_shard(root, *numbered, run)

    shards = 0
    with ThreadPoolExecutor(PUT_THREADS) as threads:
        tables = enumerate(_cut(partition.buckets(), shard_pairs))
        for _, written in begun_ahead(threads, put, tables, 4 * PUT_THREADS):
            written.result()
            shards += 1
    put_styles(root, sorted(partition.styles), run)
    return shards


def _cut(buckets: Iterator[pa.Table], shard_pairs: int) -> Iterator[pa.Table]:
    """Slice sorted tables into shards at content boundaries; what is left of a bucket joins the next one."""
    rest: pa.Table | None = None
    for bucket in buckets:
        table = bucket if rest is None else pa.concat_tables([rest, bucket])
        bounds = _content_bounds(table["content"])
        start = 0
        for begin, end in pairwise(bounds):
            if end - start > shard_pairs and begin > start:
                yield table.slice(start, begin - start)
                start = begin
            while end - start > OVERSIZE * shard_pairs:
                yield table.slice(start, shard_pairs)
                start += shard_pairs
        rest = table.slice(start)
    if rest is not None and rest.num_rows:
        yield rest


def _content_bounds(contents: pa.ChunkedArray) -> list[int]:
    values = contents.combine_chunks()
    if not len(values):
        return [0]
    changed = pc.not_equal(values.slice(1), values.slice(0, len(values) - 1))
    return [0, *(np.flatnonzero(changed.to_numpy(zero_copy_only=False)) + 1).tolist(), len(values)]
