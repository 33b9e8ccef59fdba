"""Planning: a manifest of any length becomes shards, with every row checked before anything is started.

Rows are streamed in bounded memory, hash-partitioned by content into buckets on local disk, and cut per bucket,
so that all pairs of one content share a shard and the content is fetched, decoded and encoded once.
"""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch import parquet
from stylize_batch.errors import UsageError
from stylize_batch.images.encode import Format
from stylize_batch.manifest.identity import output_key, pair_id
from stylize_batch.manifest.schema import (
    SETTINGS,
    ManifestError,
    check_row,
    number_column,
    plain_strings,
    string_lists,
)
from stylize_batch.manifest.source import Source, count_rows, read_batches
from stylize_batch.storage import Root

BUCKET_ROWS = 262_144
"""Rows of a bucket, about: what planning holds in memory."""

STYLES_KEY = "plan/styles.parquet"
"""The distinct style URIs of all rows."""

ROW = "stylize_batch.row"
"""Column with a row's number in the manifest, for as long as planning lasts."""

PUT_THREADS = 16

OVERSIZE = 4
"""A content with more pairs than this many shards is split over several."""


class Plan(NamedTuple):
    """What planning found: `shards` files under `plan/`, `pairs` rows in all."""

    pairs: int
    shards: int


def shard_key(shard: int) -> str:
    """Return the key of a shard's plan."""
    return f"plan/shard-{shard:06d}.parquet"


def read_shard(root: Root, shard: int) -> pa.Table:
    """Read one shard: `pair_id`, `content`, `style` (list), `alpha`, `output` (key), the manifest's other columns."""
    return parquet.loads(root.read(shard_key(shard)))


def read_styles(root: Root) -> list[str]:
    """Read the distinct style URIs of the whole manifest, sorted."""
    return parquet.loads(root.read(STYLES_KEY))["style"].to_pylist()


def check_and_partition(source: Source, folder: Path, format: Format, limit: int | None) -> Partition:
    """Check every row and spread the rows over buckets in a local folder.

    Raises:
        ManifestError: a row breaks the contract, two rows are identical or two share an output key.
    """
    rows = count_rows(source)
    partition = Partition(folder, max(1, -(-rows // BUCKET_ROWS)))
    for uri, start, batch in read_batches(source):
        if limit is not None:
            batch = batch.slice(0, limit - partition.pairs)
            if not batch.num_rows:
                break
        try:
            partition.add(uri, start, batch, format)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ManifestError(f"{uri} holds what cannot be read, near row {start}: {reason}") from None
    partition.close()
    if not partition.pairs:
        raise ManifestError(f"the manifest has no rows ({', '.join(source.files[:3])})")
    partition.refuse_duplicates()
    return partition


def write_plan(partition: Partition, root: Root, shard_pairs: int) -> Plan:
    """Cut the buckets into shards of about `shard_pairs` pairs and write them under `plan/`."""
    shards = 0
    tables = _cut(partition.buckets(), shard_pairs)
    with ThreadPoolExecutor(PUT_THREADS) as threads:
        while group := list(islice(tables, 4 * PUT_THREADS)):
            keys = [shard_key(shards + index) for index in range(len(group))]
            list(threads.map(lambda key, table: root.put(key, parquet.dumps(table)), keys, group))
            shards += len(group)
    root.put(STYLES_KEY, parquet.dumps(pa.table({"style": pa.array(sorted(partition.styles), pa.string())})))
    return Plan(partition.pairs, shards)


class Partition:
    """Checked rows, spread over bucket files by a hash of their content."""

    def __init__(self, folder: Path, buckets: int) -> None:
        self.pairs = 0
        self.styles: set[str] = set()
        self._paths = [folder / f"bucket-{index:05d}.arrow" for index in range(buckets)]
        self._writers: list[pa.RecordBatchStreamWriter] = []
        self._identities: list[npt.NDArray[np.uint64]] = []
        self._keys: list[npt.NDArray[np.uint64]] = []
        self._folders: list[npt.NDArray[np.uint64]] = []

    def add(self, uri: str, start: int, batch: pa.RecordBatch, format: Format) -> None:
        """Check a batch of manifest rows and spill it; `start` is its first row's number in the file."""
        canonical, buckets = self._canonical(uri, start, batch, format)
        if not self._writers:
            self._writers = [pa.ipc.new_stream(str(path), canonical.schema) for path in self._paths]
        for bucket in np.unique(buckets):
            part = canonical if len(self._paths) == 1 else canonical.filter(pa.array(buckets == bucket))
            self._writers[bucket].write_table(part)
        self.pairs += batch.num_rows

    def close(self) -> None:
        """Finish the bucket files."""
        for writer in self._writers:
            writer.close()

    def buckets(self) -> Iterator[pa.Table]:
        """Read the buckets back, each sorted by content and then in the manifest's order."""
        for path in self._paths:
            with pa.ipc.open_stream(str(path)) as reader:
                table = reader.read_all()
            order = pc.sort_indices(table, sort_keys=[("content", "ascending"), (ROW, "ascending")])
            yield table.take(order).drop_columns([ROW])

    def refuse_duplicates(self) -> None:
        """Raise ManifestError when two rows are identical or two rows would write the same picture."""
        for column, hashes, problem in (
            ("pair_id", self._identities, "are identical; remove one"),
            ("output", self._keys, "have the same output key {!r}; give each row its own"),
        ):
            joined = np.sort(np.concatenate(hashes))
            repeated = joined[1:][joined[1:] == joined[:-1]]
            if not len(repeated):
                continue
            # 64 bits say there may be a pair; only the rows themselves say which.
            found: dict[str, int] = {}
            for table in self.buckets_unsorted():
                for value, row in zip(table[column].to_pylist(), table[ROW].to_pylist(), strict=True):
                    if np.isin(_hash64(value), repeated):
                        if value in found:
                            first, second = sorted((found[value], row))
                            raise ManifestError(f"rows {first} and {second} {problem.format(value)}")
                        found[value] = row

        folders = np.unique(np.concatenate(self._folders))
        clash = np.intersect1d(folders, np.concatenate(self._keys))
        if len(clash):
            for table in self.buckets_unsorted():
                for key, row in zip(table["output"].to_pylist(), table[ROW].to_pylist(), strict=True):
                    if _hash64(key) in clash:
                        raise ManifestError(
                            f"row {row}: the output key {key!r} is the folder of another row's"
                        )

    def buckets_unsorted(self) -> Iterator[pa.Table]:
        """Read the buckets back as they were written, with the row numbers."""
        for path in self._paths:
            with pa.ipc.open_stream(str(path)) as reader:
                yield reader.read_all()

    def _canonical(
        self, uri: str, start: int, batch: pa.RecordBatch, format: Format
    ) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        names = batch.schema.names
        count = batch.num_rows
        empty = [None] * count
        contents: list[str | None] = plain_strings(batch["content"]).to_pylist()
        styles = string_lists(batch["style"])
        weights = batch["style_weights"].to_pylist() if "style_weights" in names else empty
        alphas = number_column(batch["alpha"]) if "alpha" in names else empty
        colors = batch["preserve_color"].to_pylist() if "preserve_color" in names else empty
        masks = string_lists(batch["mask"]) if "mask" in names else empty
        outputs = plain_strings(batch["output"]).to_pylist() if "output" in names else empty
        identities: list[str] = []
        keys: list[str] = []
        buckets = np.zeros(count, np.int64)
        rows = zip(contents, styles, weights, alphas, colors, masks, outputs, strict=True)
        for index, (content, style, weight, alpha, color, mask, output) in enumerate(rows):
            try:
                check_row(content, style, weight, alpha, mask, output)
            except UsageError as error:
                raise ManifestError(f"{uri}, row {start + index}: {error}") from None
            assert content is not None
            assert style is not None
            identity = pair_id(content, style, weight, alpha, color, mask)
            identities.append(identity)
            keys.append(output_key(output, content, style[0], identity, format))
            buckets[index] = zlib.crc32(content.encode("utf-8", "surrogatepass")) % len(self._paths)
            self.styles.update(style)
        self._identities.append(np.array([_hash64(value) for value in identities], np.uint64))
        self._keys.append(np.array([_hash64(value) for value in keys], np.uint64))
        parents = {str(parent) for key in keys if "/" in key for parent in PurePosixPath(key).parents}
        self._folders.append(np.array([_hash64(parent) for parent in parents], np.uint64))
        columns = {
            "pair_id": pa.array(identities, pa.string()),
            "content": pa.array(contents, pa.string()),
            "style": pa.array(styles, pa.list_(pa.string())),
            "alpha": pa.array([1.0 if alpha is None else alpha for alpha in alphas], pa.float32()),
            "output": pa.array(keys, pa.string()),
        }
        for name in names:
            if name not in SETTINGS:
                columns[name] = _decoded(batch[name])
        columns[ROW] = pa.array(np.arange(self.pairs, self.pairs + count))
        return pa.table(columns), buckets


def _decoded(column: pa.Array) -> pa.Array:
    # Dictionaries differ from batch to batch, which a stream of batches cannot hold; views cannot be sorted by.
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    return column.cast(pa.binary()) if pa.types.is_binary_view(column.type) else column


def _hash64(text: str) -> np.uint64:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


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


def temporary_folder(root: str) -> tempfile.TemporaryDirectory[str]:
    """Return a local folder for a partition's buckets, removed when its context ends.

    Its name tells whose it is, so that what a killed run has left there goes when the command is repeated.

    Args:
        root: the run's output root.
    """
    prefix = f"stylize-batch-plan-{hashlib.blake2b(root.encode(), digest_size=8).hexdigest()}-"
    for stale in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
