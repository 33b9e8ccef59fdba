"""Rows of a manifest of any length, spread over buckets on local disk, where any two that contradict are found.

A row's bucket is a hash of its content, so that all rows of a content meet, and memory holds a bucket at a time.
"""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch.errors import UsageError
from stylize_batch.images.encode import Format
from stylize_batch.manifest.naming import METADATA
from stylize_batch.manifest.reach import reach
from stylize_batch.manifest.rows import Rows, checked_rows
from stylize_batch.manifest.schema import ManifestError
from stylize_batch.manifest.source import Size, Source, size_of

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

ROW = "stylize_batch.row"
"""Column with a row's number in the manifest, for as long as planning lasts."""


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
        for rows in checked_rows(source, format, limit, reach(source.base, replaced)):
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

    def add(self, checked: Rows) -> None:
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
