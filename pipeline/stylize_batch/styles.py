"""The style bank: every distinct style encoded once, kept in committed parts, looked up by URI."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stylize_batch import parquet
from stylize_batch.errors import RowError
from stylize_batch.storage import Root

Vectors = npt.NDArray[np.float32]

KEY = b"stylize_batch.bank"
"""Parquet metadata key of the model digest and style size that a part was made with."""


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
        unchanged: styles left alone because the bank has them as they are.
    """

    vectors: list[StyleVector]
    failures: dict[str, RowError]
    unchanged: int = 0

    @property
    def styles(self) -> int:
        """How many styles were asked for."""
        return len(self.vectors) + len(self.failures) + self.unchanged


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
            RowError: of the first style that could not be encoded, naming it.
        """
        for style in styles:
            if style in self.failures:
                raise named(self.failures[style], "style", style)
        return self.matrix[[self._rows[style] for style in styles]]

    def blend(self, styles: Sequence[str], weights: Sequence[float] | None) -> Vectors:
        """Return the vector of one style, or the weighted mean of several (Eq. 15; equal without weights).

        Raises:
            RowError: of the first style that could not be encoded, naming it.
        """
        return blend(self.vectors(styles), weights)


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


def put_part(root: Root, vectors: list[StyleVector], key: str) -> None:
    """Commit some styles to the bank; a crash loses at most the part in hand."""
    width = len(vectors[0].vector)
    flat = pa.array(np.concatenate([style.vector for style in vectors]))
    table = pa.table(
        {
            "style": pa.array([style.uri for style in vectors], pa.string()),
            "version": pa.array([style.version for style in vectors], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, width),
        }
    ).replace_schema_metadata({KEY: key.encode()})
    name = hashlib.blake2b(
        "\0".join(f"{style.uri}\0{style.version}" for style in vectors).encode(), digest_size=8
    ).hexdigest()
    root.put(f"styles/part-{name}.parquet", parquet.dumps(table))


def read_parts(root: Root, key: str) -> dict[str, StyleVector]:
    """Read the committed styles that were made with the same model and style size."""

    def load(name: str) -> pa.Table | None:
        try:
            return parquet.loads(root.read(name))
        except pa.ArrowException:  # a power cut may leave a part empty
            return None

    found: dict[str, StyleVector] = {}
    with ThreadPoolExecutor(16) as threads:
        tables = list(threads.map(load, root.list("styles")))
    for table in tables:
        if table is None or (table.schema.metadata or {}).get(KEY) != key.encode():
            continue
        vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        rows = zip(table["style"].to_pylist(), table["version"].to_pylist(), vectors, strict=True)
        found.update({uri: StyleVector(uri, version, vector) for uri, version, vector in rows})
    return found
