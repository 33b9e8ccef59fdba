"""The style bank: every distinct style encoded once, looked up by URI; kept in a run's committed parts, or in a bank
file of its own for many runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stylize_batch import parquet
from stylize_batch.errors import RowError, SystemicError, UsageError
from stylize_batch.manifest.naming import digest
from stylize_batch.root import Root, replacing
from stylize_batch.storage import absolute, failure, filesystem, parent

Vectors = npt.NDArray[np.float32]

KEY = b"stylize_batch.bank"
"""Parquet metadata key of the model digest and style size that a part or a bank file was made with."""

WRITTEN = b"stylize_batch.written"
"""Parquet metadata key of the time a part was written, in seconds since 1970."""

ROW_GROUP = 1024
"""Styles of a bank file that are written and read at once: 8 MB."""


class StyleVector(NamedTuple):
    """One encoded style.

    Attributes:
        uri: as the manifest writes it.
        version: ETag, or size and modification time, of the image when it was read.
        vector: the network's style vector, float32 [width].
    """

    uri: str
    version: str
    vector: Vectors


class StyleBatch(NamedTuple):
    """What encoding some styles gave.

    Attributes:
        vectors: of the styles that were encoded.
        failures: the reason for each style that failed.
        styles: how many were asked for; those that are neither are unchanged.
        seconds: by stage; what threads did at the same time adds up.
    """

    vectors: list[StyleVector]
    failures: dict[str, RowError]
    styles: int
    seconds: Mapping[str, float]


class StyleBank:
    """Style vectors [n, width] by URI, and the styles that failed. Its matrix is shared, never copied."""

    def __init__(self, uris: Sequence[str], matrix: Vectors, failures: dict[str, RowError]) -> None:
        self.uris = list(uris)
        self.matrix = matrix
        self.failures = failures
        self._rows = {uri: row for row, uri in enumerate(self.uris)}

    def __reduce__(self) -> tuple[object, ...]:
        return (StyleBank, (self.uris, self.matrix, self.failures))

    def vectors(self, styles: Sequence[str]) -> Vectors:
        """Return the vectors of some styles, [K, width].

        Raises:
            RowError: of the first style that could not be encoded, naming it; never transient.
        """
        for style in styles:
            if style in self.failures:
                failed = named(self.failures[style], "style", style)
                raise RowError(failed.kind, failed.message)  # what storage did then says nothing of it now
        rows = [self._rows[style] for style in styles]
        return self.matrix[rows[0] : rows[0] + 1] if len(rows) == 1 else self.matrix[rows]


def named(error: RowError, role: str, uri: str) -> RowError:
    """Say of an error which of a row's images it is about, and as what."""
    message = error.message if uri in error.message else f"{uri}: {error.message}"
    return RowError(error.kind, f"{role} {message}", transient=error.transient)


def blend(vectors: Vectors, weights: Sequence[float] | None) -> Vectors:
    """Return the weighted mean of vectors [K, width] (Eq. 15; equal without weights)."""
    if len(vectors) == 1:
        return vectors[0]
    shares = np.full(len(vectors), 1.0) if weights is None else np.asarray(weights, np.float64)
    return (shares / shares.sum() @ vectors).astype(np.float32)


def bank_of(vectors: Iterable[StyleVector], failures: dict[str, RowError]) -> StyleBank:
    """Build a bank."""
    found = list(vectors)
    matrix = np.stack([style.vector for style in found]) if found else np.zeros((0, 0), np.float32)
    return StyleBank([style.uri for style in found], matrix, failures)


def bank_key(model_digest: str, style_size: int) -> str:
    """Return what all vectors of a part or a bank file have in common."""
    return f"{model_digest}-{style_size}"


def _table(vectors: Sequence[StyleVector], key: str) -> pa.Table:
    flat = pa.array(np.concatenate([style.vector for style in vectors]))
    return pa.table(
        {
            "style": pa.array([style.uri for style in vectors], pa.string()),
            "version": pa.array([style.version for style in vectors], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, len(vectors[0].vector)),
        }
    ).replace_schema_metadata({KEY: key.encode()})


def _matrix(table: pa.Table) -> Vectors:
    """Return a table's vectors, [n, width], in its own memory."""
    width = table.schema.field("vector").type.list_size
    return table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), width)


def put_part(root: Root, vectors: list[StyleVector], key: str) -> None:
    """Commit some styles to the bank; a crash loses at most the part in hand."""
    name = digest("\0".join(f"{style.uri}\0{style.version}" for style in vectors))
    table = _table(vectors, key)
    table = table.replace_schema_metadata({**table.schema.metadata, WRITTEN: str(time.time())})
    root.put(f"styles/part-{name}.parquet", parquet.dumps(table))


def read_parts(root: Root, key: str) -> dict[str, StyleVector]:
    """Read the committed styles that were made with the same model and style size.

    Of a style whose image has changed between runs the last one: the others would be encoded again by each.
    """
    found: dict[str, StyleVector] = {}
    with ThreadPoolExecutor(16) as threads:
        tables = list(threads.map(partial(parquet.read, root), root.list("styles")))
    usable = [table for table in tables if table is not None and parquet.note(table, KEY) == key]
    for table in sorted(usable, key=lambda table: float(parquet.note(table, WRITTEN) or 0)):
        rows = zip(table["style"].to_pylist(), table["version"].to_pylist(), _matrix(table), strict=True)
        found.update({uri: StyleVector(uri, version, vector) for uri, version, vector in rows})
    return found


class BankFile(NamedTuple):
    """What a bank file holds.

    Attributes:
        uri: its own, absolute.
        key: see `bank_key`.
        styles: URIs, absolute.
        versions: of the images when they were encoded.
        matrix: their vectors, float32 [n, width].
    """

    uri: str
    key: str
    styles: list[str]
    versions: list[str]
    matrix: Vectors

    @property
    def model_digest(self) -> str:
        """Digest of the model that encoded the styles."""
        return self.key.rpartition("-")[0]

    @property
    def style_size(self) -> str:
        """Shorter side of the style images when they were encoded, pixels."""
        return self.key.rpartition("-")[2]

    def by_uri(self) -> dict[str, StyleVector]:
        """Return its styles by their absolute URIs."""
        rows = zip(self.styles, self.versions, self.matrix, strict=True)
        return {uri: StyleVector(uri, version, vector) for uri, version, vector in rows}


def write_bank(uri: str, vectors: Sequence[StyleVector], key: str) -> None:
    """Write a bank file, whole or not at all, a row group at a time.

    Styles below its folder are named relative to that, so that they can be moved together.

    Args:
        uri: of the file.
        vectors: of the styles, whose URIs are absolute; at least one.
        key: see `bank_key`.

    Raises:
        OSError: storage refused or did not answer.
    """
    folder = parent(absolute(uri))
    with replacing(uri) as path:
        writer: pq.ParquetWriter | None = None
        try:
            for start in range(0, len(vectors), ROW_GROUP):
                group = [
                    style._replace(uri=_relative(style.uri, folder))
                    for style in vectors[start : start + ROW_GROUP]
                ]
                table = _table(group, key)
                if writer is None:
                    writer = pq.ParquetWriter(
                        path, table.schema, compression="zstd", use_dictionary=False, write_page_checksum=True
                    )
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


def _relative(uri: str, folder: str) -> str:
    """Return an absolute URI relative to a folder, if it lies below; unless that would be read as another: one that
    begins with a slash, or looks absolute itself."""
    short = uri.removeprefix(folder.rstrip("/") + "/")
    return short if absolute(short, folder) == uri else uri


def read_bank(uri: str) -> BankFile:
    """Read a bank file; in memory are its vectors and one row group.

    Raises:
        UsageError: there is none, it is something else, or damaged.
    """
    try:
        fs, path = filesystem(absolute(uri))
        with fs.open(path, "rb") as handle, pq.ParquetFile(handle, page_checksum_verification=True) as file:
            return _read_bank(absolute(uri), file)
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"there is no style bank {uri}; `stylize-batch styles encode` makes one") from None
    except IsADirectoryError:
        raise UsageError(
            f"{uri} is a folder, no style bank; name the file that `stylize-batch styles encode` made"
        ) from None
    except Exception as error:
        found = failure(error, uri)
        refused = isinstance(found, SystemicError) or found.kind == "AccessDenied"
        raise UsageError(
            f"cannot read the style bank {uri}: {found if refused else error}{'' if refused else ADVICE}"
        ) from None


ADVICE = "; remove it and make one with `stylize-batch styles encode`"


def _read_bank(uri: str, file: Any) -> BankFile:
    schema = file.schema_arrow
    key = (schema.metadata or {}).get(KEY, b"").decode("ascii", "replace")
    if not key:
        raise UsageError(
            f"{uri} is no style bank; `stylize-batch styles encode` makes one, at a path of its own"
        )
    kinds = {name: schema.field(name).type for name in schema.names}
    vector: Any = kinds.get("vector")
    sound = (
        kinds.get("style") == kinds.get("version") == pa.string()
        and pa.types.is_fixed_size_list(vector)
        and vector.value_type == pa.float32()
    )
    if not sound:
        raise UsageError(f"the style bank {uri} has other columns than this version writes{ADVICE}")
    styles: list[str] = []
    versions: list[str] = []
    matrix = np.empty((file.metadata.num_rows, vector.list_size), np.float32)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, ["style", "version", "vector"], use_threads=False)
        if any(table[name].null_count for name in table.column_names):
            raise UsageError(f"the style bank {uri} lacks values{ADVICE}")
        matrix[len(styles) : len(styles) + len(table)] = _matrix(table)
        styles += [absolute(style, parent(uri)) for style in table["style"].to_pylist()]
        versions += table["version"].to_pylist()
    return BankFile(uri, key, styles, versions, matrix)
