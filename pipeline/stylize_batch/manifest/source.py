"""Where a manifest lies: one Parquet file, a folder or a glob of them, on any storage."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stylize_batch import parquet
from stylize_batch.ahead import begun_ahead
from stylize_batch.listing import files, glob, pattern_of
from stylize_batch.manifest.schema import CATEGORIES, DECIDING, ManifestError, check_schema
from stylize_batch.root import FOLDERS, RECORD
from stylize_batch.storage import (
    absolute,
    explained,
    failure,
    filesystem,
    full_names,
    join,
    kind,
    parent,
)

SKIPPED = (".", "_")
"""How names begin of files and folders that are no part of a manifest: Spark writes such."""

BATCH_ROWS = 65_536
BATCH_BYTES = 32_000_000
"""Rows, and bytes about, in memory at once while a manifest is read."""

READ_ROWS = 1024
"""Rows read at once, until their bytes are known: a text that a file holds once may stand in each of them."""

OPEN_AHEAD = 16
SMALL_FILE = READ_BYTES = 4_000_000
"""Files opened ahead of the one being read; those up to so many bytes are read whole, others in such pieces."""


ELSEWHERE = (
    "; a folder or a list of pictures is no manifest: give it with --content, and --style, or make one of it with "
    "`stylize-batch manifest build`"
)


class Source(NamedTuple):
    """A manifest's files, sorted, and the folder that relative image paths start from."""

    files: list[str]
    base: str


class Size(NamedTuple):
    """Rows of a manifest and bytes of its columns, decompressed but still encoded."""

    rows: int
    bytes: int


def locate(manifest: str) -> Source:
    """Find the files of a manifest. What runs have written in its folder is no part of it.

    Args:
        manifest: Parquet file, folder or glob; path or URI. In folders, names that begin with `.` or `_` are skipped, as
            wildcards do unless they follow such a character.

    Raises:
        ManifestError: there are none.
    """
    uri = absolute(manifest)
    fs, path = filesystem(uri)
    try:
        found = kind(fs, path)
        if found == "file":
            return Source([uri], parent(uri))
        if found == "directory":
            base, kept = uri, [name for name in files(fs, path, SKIPPED) if name.endswith(".parquet")]
        elif pattern := pattern_of(manifest):
            base, kept = pattern.base, glob(pattern, SKIPPED)
        else:
            raise ManifestError(f"there is no manifest {manifest}; give a Parquet file, a folder or a glob")
        names = sorted(_of_no_run(fs, filesystem(base)[1], kept))
    except ManifestError:
        raise
    except Exception as error:
        raise ManifestError(f"cannot read the manifest {manifest}: {explained(error, uri)}") from None
    if kept and not names:
        raise ManifestError(
            f"{manifest} holds only what a run has written; give the manifest that the run is of"
        )
    if not names:
        raise ManifestError(f"there are no .parquet files in {manifest}{ELSEWHERE}")
    return Source(full_names(fs, uri, names), base)


def _of_no_run(fs: Any, base: str, files: Iterable[str]) -> list[str]:
    """Leave out what lies in output roots: where there is a run.json, in the folders that runs write."""

    @functools.cache
    def is_root(folder: str) -> bool:
        return kind(fs, join(folder, RECORD)) == "file"

    def is_of_run(path: str) -> bool:
        folders = path[len(base) :].strip("/").split("/")[:-1]
        return any(
            name in FOLDERS and is_root("/".join([base.rstrip("/"), *folders[:depth]]))
            for depth, name in enumerate(folders)
        )

    return [path for path in files if not is_of_run(path)]


def fingerprint(source: Source) -> str:
    """Return BLAKE2b-128, hex, of the digests of the files' bytes: equal means the same manifest.

    Raises:
        ManifestError: a file cannot be read.
    """
    with ThreadPoolExecutor(OPEN_AHEAD) as threads:
        return hashlib.blake2b(b"".join(threads.map(_digest, source.files)), digest_size=16).hexdigest()


def _digest(uri: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        fs, path = filesystem(uri)
        with fs.open(path, "rb") as file:
            while block := file.read(1 << 23):
                digest.update(block)
    except Exception as error:
        raise ManifestError(f"cannot read the manifest {uri}: {failure(error, uri)}") from None
    return digest.digest()


def size_of(source: Source) -> Size:
    """Return the size of a manifest, from the files' footers.

    Raises:
        ManifestError: a file is not Parquet or cannot be read.
    """
    rows = size = 0
    for _, file in _open_ahead(source):
        rows += file.metadata.num_rows
        size += _bytes(file)
    return Size(rows, size)


def columns_of(source: Source) -> list[str]:
    """Return the names of a manifest's columns, which all its files have.

    Raises:
        ManifestError: the first file is not Parquet or cannot be read.
    """
    with _open(source.files[0]) as file:
        return file.schema_arrow.names


def categories_of(source: Source) -> list[dict[str, Any]]:
    """Return the categories of the COCO annotations that a manifest was built of; none for any other manifest.

    Raises:
        ManifestError: the first file cannot be read, or what it has is no list of categories.
    """
    with _open(source.files[0]) as file:
        found = (file.schema_arrow.metadata or {}).get(CATEGORIES, b"[]")
    try:
        return [{**each, "id": int(each["id"])} for each in json.loads(found)]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise ManifestError(
            f"{source.files[0]} has metadata {CATEGORIES.decode()} that are no COCO categories; build it again"
        ) from None


def unread_partitions(source: Source, columns: list[str]) -> list[str]:
    """Name the columns that only the names of folders give, as partitioned tables have them (`split=train/`).

    Args:
        source: the manifest.
        columns: `columns_of` it.

    Raises:
        ManifestError: one of them would decide the pictures.
    """
    base = len(filesystem(source.base)[1].rstrip("/"))
    below = (filesystem(uri)[1][base:].split("/")[:-1] for uri in source.files)
    names = {part.partition("=")[0] for folders in below for part in folders if "=" in part}
    names -= set(columns)
    for name in sorted(names.intersection(DECIDING)):
        raise ManifestError(
            f"'{name}' stands in the names of the manifest's folders alone, where it decides nothing; write it into the files "
            "as a column"
        )
    return [
        f"'{name}' stands in the names of the manifest's folders alone, and does not reach the results; write it into "
        "the files as a column"
        for name in sorted(names)
    ]


def read_batches(source: Source) -> Iterator[tuple[str, int, pa.RecordBatch]]:
    """Read all rows in order as (file, number of the batch's first row in it, batch), without dictionaries and views.

    Raises:
        ManifestError: a file is not Parquet, is damaged, or does not keep the contract's columns and types.
    """
    first: pa.Schema | None = None
    for uri, file in _open_ahead(source):
        schema = file.schema_arrow
        if first is None:
            first = schema
        elif not schema.equals(first):
            raise ManifestError(
                f"{uri} has other columns or types than {source.files[0]}: {_difference(first, schema)}; all must be alike"
            )
        width = _bytes(file) // max(1, file.metadata.num_rows)
        rows = max(1, min(READ_ROWS, BATCH_BYTES // max(1, width)))
        row = 0
        try:
            for some in gathered(map(decoded, file.iter_batches(rows)), BATCH_BYTES, BATCH_ROWS):
                batch = pa.concat_batches(some)
                yield uri, row, batch
                row += batch.num_rows
        except Exception as error:  # of pyarrow: what rows are used for raises elsewhere
            raise ManifestError(f"{uri} is damaged: {first_line(error)}") from None


def gathered(
    batches: Iterable[pa.RecordBatch], size: int, rows: float = math.inf
) -> Iterator[list[pa.RecordBatch]]:
    """Put batches together that follow one another, until they have so many bytes or rows."""
    some: list[pa.RecordBatch] = []
    bytes_left, rows_left = size, rows
    for batch in batches:
        some.append(batch)
        bytes_left -= batch.nbytes
        rows_left -= batch.num_rows
        if bytes_left <= 0 or rows_left <= 0:
            yield some
            some, bytes_left, rows_left = [], size, rows
    if some:
        yield some


def decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows without dictionaries, which differ from batch to batch, and views, which cannot be sorted."""
    plain = decoded_schema(batch.schema)
    return batch if plain == batch.schema else batch.cast(plain)


def decoded_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of `decoded` rows."""
    return pa.schema([field.with_type(parquet.with_leaves(field.type, _decoded_leaf)) for field in schema])


def _decoded_leaf(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return parquet.with_leaves(kind.value_type, _decoded_leaf)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _open_ahead(source: Source) -> Iterator[tuple[str, pq.ParquetFile]]:
    """Open the files in order, some ahead of the one in hand: many small ones wait for storage together."""
    with ThreadPoolExecutor(OPEN_AHEAD) as threads:
        for uri, opening in begun_ahead(threads, _open, source.files, OPEN_AHEAD):
            with opening.result() as file:
                yield uri, file


def _open(uri: str) -> pq.ParquetFile:
    try:
        fs, path = filesystem(uri)
        handle = fs.open(path, "rb", cache_type="none")  # pyarrow reads in pieces of its own
        source = handle if handle.size > SMALL_FILE else pa.BufferReader(handle.read())
    except Exception as error:
        raise ManifestError(f"cannot read the manifest {uri}: {failure(error, uri)}") from None
    if source is not handle:
        handle.close()
    try:
        # Buffered: a row group may be as large as the manifest.
        file = pq.ParquetFile(source, buffer_size=READ_BYTES, pre_buffer=False)
        check_schema(file.schema_arrow, uri)
    except ManifestError:
        raise
    except Exception as error:  # pyarrow raises many kinds for damage
        if not uri.endswith(".parquet"):
            raise ManifestError(f"{uri} is not a Parquet file{ELSEWHERE}") from None
        raise ManifestError(f"{uri} is not a Parquet file, or a damaged one: {first_line(error)}") from None
    return file


def _difference(first: pa.Schema, other: pa.Schema) -> str:
    """Name the first column that is not alike."""
    there, here = (
        {each.name: f"{each.type}{'' if each.nullable else ', never null,'}" for each in schema}
        for schema in (first, other)
    )
    for name in there | here:
        if there.get(name) != here.get(name):
            return f"'{name}' is {here.get(name, 'missing')} here and {there.get(name, 'missing')} there"
    return "they come in another order"


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its name if it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _bytes(file: pq.ParquetFile) -> int:
    metadata = file.metadata
    return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
