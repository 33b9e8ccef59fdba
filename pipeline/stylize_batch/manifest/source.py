"""Where a manifest lies: one Parquet file, a folder or a glob of them, on any storage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stylize_batch.manifest.schema import ManifestError, check_schema
from stylize_batch.storage import absolute, filesystem, is_uri, kind, parent, row_error

BATCH_ROWS = 65_536
"""Rows in memory at once while a manifest is read."""


class Source(NamedTuple):
    """A manifest's files, sorted, and the folder that relative image paths start from."""

    files: list[str]
    base: str


def locate(manifest: str, output: str) -> Source:
    """Find the files of a manifest.

    Args:
        manifest: Parquet file, folder or glob; path or URI. In folders, names that begin with `.` or `_` are skipped.
        output: the run's output root, whose own Parquet files are no manifest.

    Raises:
        ManifestError: there are none.
    """
    uri = absolute(manifest)
    fs, path = filesystem(uri)

    def full(name: str) -> str:
        return str(fs.unstrip_protocol(name)) if is_uri(uri) else name

    try:
        found = kind(fs, path)
        if found == "file":
            return Source([uri], parent(uri))
        if found == "directory":
            names: list[str] = fs.find(path)
            base, kept = uri, [name for name in names if name.endswith(".parquet")]
        elif any(character in path for character in "*?["):
            kept = list(fs.glob(path))
            first = min(uri.index(character) for character in "*?[" if character in uri)
            base = parent(uri[:first] + "x")
        else:
            raise ManifestError(f"there is no manifest {manifest}; give a Parquet file, a folder or a glob")
    except ManifestError:
        raise
    except Exception as error:
        raise ManifestError(f"cannot read the manifest {manifest}: {row_error(error, uri)}") from None
    # Compared as the file system writes them: `file:///x` and `/x`, `memory://x` and `memory:///x` are one.
    below = len(filesystem(base)[1].rstrip("/")) + 1
    own_fs, own = filesystem(output)
    own = own.rstrip("/") + "/"
    files = [
        full(name)
        for name in sorted(kept)
        if not (type(own_fs) is type(fs) and name.startswith(own))
        and not any(part.startswith((".", "_")) for part in name[below:].split("/"))
    ]
    if not files:
        raise ManifestError(f"no .parquet files in {manifest}")
    return Source(files, base)


def fingerprint(source: Source) -> str:
    """Return BLAKE2b-128, hex, of the files' bytes: equal means the same manifest.

    Raises:
        ManifestError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for uri in source.files:
        try:
            fs, path = filesystem(uri)
            with fs.open(path, "rb") as file:
                while block := file.read(1 << 23):
                    digest.update(block)
        except Exception as error:
            raise ManifestError(f"cannot read the manifest {uri}: {row_error(error, uri)}") from None
        digest.update(b"\0")
    return digest.hexdigest()


def count_rows(source: Source) -> int:
    """Return the number of rows, from the files' footers."""
    return sum(file.metadata.num_rows for file in _open_files(source))


def read_batches(source: Source) -> Iterator[tuple[str, int, pa.RecordBatch]]:
    """Read all rows in order as (file, number of the batch's first row in it, batch).

    Raises:
        ManifestError: a file is not Parquet, is damaged, or does not keep the contract's columns and types.
    """
    first: pa.Schema | None = None
    for uri, file in zip(source.files, _open_files(source), strict=True):
        schema = file.schema_arrow
        check_schema(schema, uri)
        if first is None:
            first = schema
        elif not schema.equals(first):
            raise ManifestError(f"{uri} has other columns or types than {source.files[0]}; all must be alike")
        row = 0
        try:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield uri, row, batch
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{uri} is damaged: {str(error).splitlines()[0]}") from None


def _open_files(source: Source) -> Iterator[pq.ParquetFile]:
    for uri in source.files:
        try:
            fs, path = filesystem(uri)
            with fs.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
                yield file
        except pa.ArrowInvalid:
            raise ManifestError(f"{uri} is not a Parquet file") from None
        except OSError as error:
            raise ManifestError(f"cannot read the manifest {uri}: {row_error(error, uri)}") from None
