"""Planning: a manifest of any length becomes shards, with every row checked before anything is started.

Rows are streamed in bounded memory, hash-partitioned by content into buckets on local disk, and cut per bucket,
so that all pairs of one content share a shard and the content is fetched, decoded and encoded once.
"""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch.ahead import begun_ahead
from stylize_batch.errors import UsageError
from stylize_batch.images.encode import Format
from stylize_batch.manifest.identity import DEFAULTS, controls, output_keys, pair_ids
from stylize_batch.manifest.reach import Reach, reach
from stylize_batch.manifest.schema import (
    SETTINGS,
    ManifestError,
    check_row,
    list_column,
    number_column,
    number_lists,
    plain_strings,
    remarkable_rows,
)
from stylize_batch.manifest.shards import put_shard, put_styles
from stylize_batch.manifest.source import Size, Source, first_line, read_batches, size_of
from stylize_batch.process import born, place_digest
from stylize_batch.root import Root

BUCKET_ROWS = 131_072
BUCKET_BYTES = 64_000_000
"""Rows of a bucket, and bytes of it, about: what planning holds in memory."""

SORT_BYTES = 128_000_000
"""Bytes of a bucket, about, that are in memory at once: few contents with much beside them may all be in one."""

MAX_BUCKETS = 512
"""Files open at once; longer manifests get larger buckets."""

HASHES = 4_000_000
"""Hashes compared at once in search of duplicates."""

MAX_SUSPECTS = 1000
"""Repeated hashes whose rows are looked up; one pair of rows is reported."""

METADATA = "metadata.parquet"
"""Name of a file that a run writes beside its pictures, and so of no folder of theirs."""

ROW = "stylize_batch.row"
"""Column with a row's number in the manifest, for as long as planning lasts."""

TEMPORARY_PREFIX = "stylize-batch-plan-"
"""Of the local folders that planning spills to; a digest of the machine and the number of the process follow."""

STALE_SECONDS = 86_400.0
"""A folder that nobody has added to for so long is left over: planning takes minutes."""

CHECK_THREADS = 2
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


def check_and_partition(
    source: Source, folder: Path, format: Format, limit: int | None, replaced: Iterable[str] = ()
) -> Partition:
    """Check every row and spread the rows over buckets in a local folder.

    Args:
        source: the manifest.
        folder: to spread them in.
        format: of the pictures.
        limit: only the first rows.
        replaced: folders that the run replaces what lies in, so that no row may read from there.

    Raises:
        ManifestError: a row breaks the contract or reaches for what it may not, two rows ask for the same picture or two share
            an output key.
        UsageError: the folder cannot hold the buckets.
    """
    partition = Partition(folder, size_of(source))
    try:
        for rows in _checked(source, format, limit, reach(source.base, replaced)):
            partition.add(rows)
        partition.close()
        if not partition.pairs:
            raise ManifestError(f"the manifest has no rows ({', '.join(source.files[:3])})")
        partition.refuse_duplicates()
    except OSError as error:
        raise UsageError(
            f"planning cannot use {folder}: {error.strerror or error}; set TMPDIR to a disk with room"
        ) from None
    return partition


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


class _Rows(NamedTuple):
    """Checked rows of a file, from its row `start` on, in the form of the plan."""

    uri: str
    start: int
    table: pa.Table


class Partition:
    """Checked rows, spread over bucket files by a hash of their content."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.pairs = 0
        self.styles: set[str] = set()
        self._places: list[tuple[int, str, int]] = []
        buckets = max(1, -(-size.rows // BUCKET_ROWS), -(-size.bytes // BUCKET_BYTES))
        self._paths = [folder / f"bucket-{index:05d}.arrow" for index in range(min(buckets, MAX_BUCKETS))]
        self._writers: list[pa.RecordBatchStreamWriter] = []
        parts = min(1 + size.rows // HASHES, MAX_BUCKETS)
        self._identities = _Hashes(folder, "identities", parts)
        self._keys = _Hashes(folder, "keys", parts)
        self._folders = _Hashes(folder, "folders", parts)

    def add(self, checked: _Rows) -> None:
        """Spill checked rows."""
        uri, start, rows = checked
        count = len(rows)
        self._places.append((self.pairs, uri, start))
        self.styles.update(pc.unique(_shared_styles(rows).flatten()).to_pylist())
        self._identities.add(rows["pair_id"].to_pylist())
        keys = rows["output"].to_pylist()
        self._keys.add(keys)
        folders = _folders(keys)
        for folder in folders:
            if folder.rpartition("/")[2] == METADATA:
                raise ManifestError(
                    f"the output keys have a folder {folder!r}, a name of the run's own files; rename it"
                )
        self._folders.add(folders)
        table = rows.append_column(ROW, pa.array(np.arange(self.pairs, self.pairs + count)))
        if not self._writers:
            self._writers = [pa.ipc.new_stream(str(path), table.schema) for path in self._paths]
        buckets = _buckets(table["content"].chunk(0), len(self._paths))
        table = table.take(pa.array(np.argsort(buckets, kind="stable")))
        ends = np.cumsum(np.bincount(buckets, minlength=len(self._paths)))
        for writer, begin, end in zip(self._writers, [0, *ends[:-1]], ends, strict=True):
            if end > begin:
                writer.write_table(table.slice(begin, end - begin))
        self.pairs += count

    def close(self) -> None:
        """Finish the bucket files."""
        for writer in self._writers:
            writer.close()

    def buckets(self) -> Iterator[pa.Table]:
        """Read the buckets back, sorted by content and then in the manifest's order, a large one in parts that follow on."""
        for table in self._buckets_unsorted():
            order = pc.sort_indices(table, sort_keys=[("content", "ascending"), (ROW, "ascending")])
            for rows in np.array_split(order.to_numpy(), 1 + table.nbytes // SORT_BYTES):
                chosen = np.zeros(len(table), bool)
                chosen[rows] = True
                # `take` alone would make one array of all chunks.
                places = pa.array(np.argsort(np.argsort(rows)))
                yield table.filter(pa.array(chosen)).take(places).drop_columns([ROW])

    def refuse_duplicates(self) -> None:
        """Raise ManifestError when two rows ask for the same picture or would write to the same key."""
        for column, hashes, problem in (
            ("pair_id", self._identities, "ask for the same picture; keep one"),
            ("output", self._keys, "have the same output key {!r}; give each row its own"),
        ):
            # 64 bits say there may be a pair; only the rows themselves say which.
            found: dict[str, int] = {}
            suspects, count = hashes.repeated()
            for value, row in self._rows_with(column, suspects):
                if value in found:
                    rows = self._name(*sorted((found[value], row)))
                    more = f"; {count} rows in all repeat an earlier one so" if count > 1 else ""
                    raise ManifestError(f"{rows} {problem.format(value)}{more}")
                found[value] = row
        for key, row in self._rows_with("output", self._keys.shared_with(self._folders)):
            uri, number = self._place(row)
            raise ManifestError(f"{uri}, row {number}: the output key {key!r} is the folder of another row's")

    def _place(self, row: int) -> tuple[str, int]:
        """Return the file that a row of the manifest is in, and its number there."""
        first, uri, start = self._places[bisect_right(self._places, row, key=lambda place: place[0]) - 1]
        return uri, start + row - first

    def _name(self, one: int, other: int) -> str:
        (uri, first), (other_uri, second) = self._place(one), self._place(other)
        if uri == other_uri:
            return f"{uri}, rows {first} and {second}"
        return f"{uri}, row {first}, and {other_uri}, row {second},"

    def _rows_with(self, column: str, hashes: npt.NDArray[np.int64]) -> Iterator[tuple[str, int]]:
        if not len(hashes):
            return
        for table in self._buckets_unsorted():
            values = table[column].to_pylist()
            for index in np.flatnonzero(np.isin(_hashes(values), hashes)).tolist():
                yield values[index], table[ROW][index].as_py()

    def _buckets_unsorted(self) -> Iterator[pa.Table]:
        for path in self._paths:
            with pa.memory_map(str(path)) as file:
                yield pa.ipc.open_stream(file).read_all()


def _checked(source: Source, format: Format, limit: int | None, allowed: Reach) -> Iterator[_Rows]:
    """Check the rows and bring them into the form of the plan, batch by batch, some at once."""

    def canonical(some: tuple[str, int, pa.RecordBatch]) -> _Rows:
        return _canonical(*some, format, allowed)

    with ThreadPoolExecutor(CHECK_THREADS) as threads:
        for _, rows in begun_ahead(threads, canonical, _limited(source, limit), CHECK_THREADS):
            yield rows.result()


def _limited(source: Source, limit: int | None) -> Iterator[tuple[str, int, pa.RecordBatch]]:
    left = limit
    for uri, start, batch in read_batches(source):
        yield uri, start, batch.slice(0, left)
        if left is not None:
            left -= batch.num_rows
            if left <= 0:
                return


def _canonical(uri: str, start: int, batch: pa.RecordBatch, format: Format, allowed: Reach) -> _Rows:
    try:
        batch.validate(full=True)  # invalid UTF-8
        allowed.check(batch, uri, start)
        names = batch.schema.names
        contents = plain_strings(batch["content"])
        styles = list_column(batch["style"])
        weights = number_lists(batch["style_weights"]) if "style_weights" in names else None
        alphas = number_column(batch["alpha"]) if "alpha" in names else None
        if "preserve_color" in names:  # null where all are, as pandas writes it
            at = names.index("preserve_color")
            batch = batch.set_column(at, "preserve_color", batch["preserve_color"].cast(pa.bool_()))
        colors = batch["preserve_color"] if "preserve_color" in names else None
        masks = batch["mask"] if "mask" in names else None
        outputs = plain_strings(batch["output"]) if "output" in names else None
        others = [column for column in (weights, masks) if column is not None]
        for row in remarkable_rows(contents, styles, alphas, colors, outputs, others).tolist():
            weight, alpha, color, mask, output = (
                None if column is None else column[row].as_py()
                for column in (weights, alphas, colors, masks, outputs)
            )
            listed = [mask] if isinstance(mask, str) else mask
            try:
                check_row(contents[row].as_py(), styles[row].as_py(), weight, alpha, color, listed, output)
            except UsageError as error:
                raise ManifestError(f"{uri}, row {start + row}: {error}") from None
        identities = pair_ids(contents, styles, _settings(weights, alphas, colors, masks))
        first_styles = pc.list_element(pc.list_slice(styles, 0, 1, return_fixed_size_list=True), 0)
        shares = pa.array(np.ones(len(batch), np.float32)) if alphas is None else alphas.fill_null(1.0)
        columns = {
            "pair_id": identities,
            "content": contents,
            "style": styles,
            "alpha": pc.if_else(first_styles.is_valid(), shares, pa.scalar(None, pa.float32())),
            "output": output_keys(outputs, contents, first_styles, identities, format),
        }
        for name in names:
            if name not in SETTINGS:
                columns[name] = batch[name]
        return _Rows(uri, start, pa.table(columns))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ManifestError(
            f"{uri} holds what cannot be read, near row {start}: {first_line(error)}"
        ) from None


class _Hashes:
    """64-bit hashes of strings on disk, spread so that equal ones meet in one file. Good for one process only."""

    def __init__(self, folder: Path, name: str, parts: int) -> None:
        self._paths = [folder / f"{name}-{index:05d}" for index in range(parts)]

    def add(self, values: Iterable[str]) -> None:
        hashes = _hashes(values)
        parts = hashes % len(self._paths)
        for index, path in enumerate(self._paths):
            with path.open("ab") as file:
                file.write(hashes[parts == index].tobytes())

    def repeated(self) -> tuple[npt.NDArray[np.int64], int]:
        """Return some that were added twice, if any were, and how many repeat an earlier one."""
        found, count = np.empty(0, np.int64), 0
        for path in self._paths:
            ordered = np.sort(np.fromfile(path, np.int64))
            repeated = ordered[1:][ordered[1:] == ordered[:-1]]
            if not count:
                found = repeated[:MAX_SUSPECTS]
            count += len(repeated)
        return found, count

    def shared_with(self, other: _Hashes) -> npt.NDArray[np.int64]:
        """Return some that are in both, if any are."""
        for path, other_path in zip(self._paths, other._paths, strict=True):
            theirs = np.fromfile(other_path, np.int64)
            shared = theirs[np.isin(theirs, np.fromfile(path, np.int64))] if len(theirs) else theirs
            if len(shared):
                return shared[:MAX_SUSPECTS]
        return np.empty(0, np.int64)


def _hashes(values: Iterable[str]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(hash, values), np.int64)


def _buckets(contents: pa.Array, count: int) -> npt.NDArray[np.int64]:
    """Return each content's bucket, the same on every machine."""
    distinct = contents.dictionary_encode()
    names = distinct.dictionary.cast(pa.binary()).to_pylist()
    checksums = np.fromiter(map(zlib.crc32, names), np.int64, len(names))
    return checksums[distinct.indices.to_numpy()] % count


def _settings(
    weights: pa.Array | None, alphas: pa.Array | None, colors: pa.Array | None, masks: pa.Array | None
) -> pa.Array | str:
    """Write what `controls` does for every row, or once for all."""
    present = [column for column in (weights, alphas, colors, masks) if column is not None]
    if not present:
        return DEFAULTS
    empty = [None] * len(present[0])
    columns = (
        empty if weights is None else weights.to_pylist(),
        empty if alphas is None else alphas.to_pylist(),
        empty if colors is None else colors.to_pylist(),
        empty if masks is None else list_column(masks).to_pylist(),
    )
    return pa.array([controls(*row) for row in zip(*columns, strict=True)], pa.string())


def _shared_styles(rows: pa.Table) -> pa.Array:
    """Return the styles of rows that take them as they are; re-coloured ones are encoded for their pair alone."""
    styles = rows["style"].chunk(0)
    if "preserve_color" not in rows.column_names:
        return styles
    return styles.filter(pc.invert(rows["preserve_color"].chunk(0).fill_null(False)))


def _folders(keys: Iterable[str]) -> set[str]:
    """Return every folder that the keys lie in, at any depth."""
    below = {key.rpartition("/")[0] for key in keys} - {""}
    return below.union(str(parent) for key in below for parent in PurePosixPath(key).parents)


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


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a local folder for a partition's buckets, removed when its context ends.

    Its name tells which process of which machine made it, so that what killed runs have left there goes too: at once
    on that machine, and elsewhere, or after it was started again, when a day has gone by.
    """
    here = f"{place_digest()}-"
    for stale in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        mark = stale.name.removeprefix(TEMPORARY_PREFIX)
        maker = mark.removeprefix(here).partition("-")[0]
        with suppress(OSError):  # another run removes it, too
            if mark.startswith(here) and maker.isdigit():
                gone = born(int(maker)) is None
            else:
                gone = time.time() - stale.stat().st_mtime > STALE_SECONDS
            if gone:
                shutil.rmtree(stale, ignore_errors=True)
    return tempfile.TemporaryDirectory(
        prefix=f"{TEMPORARY_PREFIX}{here}{os.getpid()}-", ignore_cleanup_errors=True
    )
