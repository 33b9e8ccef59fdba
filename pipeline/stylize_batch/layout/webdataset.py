"""WebDataset: tar files in which the members of a sample follow each other and share their name up to the first dot.

A sample is a picture, what is known of it (`.json`), and its class where `label` is an integer (`.cls`).
"""

from __future__ import annotations

import base64
import io
import json
import math
import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa

from stylize_batch.images.encode import EXTENSIONS, FORMAT_OF_EXTENSION, Format
from stylize_batch.layout.container import Read
from stylize_batch.manifest.identity import shortest
from stylize_batch.manifest.naming import digest
from stylize_batch.parquet import with_python_times
from stylize_batch.results import OF_OUTCOME

_LIKE_OURS = re.compile(
    rf"_({'|'.join(each[1:] for each in FORMAT_OF_EXTENSION)}|[0-9a-f]{{16}})$", re.IGNORECASE
)
"""How keys end that have got another extension, or a hash."""

_SKIPPED_BY_READERS = re.compile(r"__+([^/]*?)__+(?=$|/)")
"""First folders that the `webdataset` package passes over."""


class Tar:
    """A shard's pictures as a tar file; the same pictures make the same bytes."""

    extension = ".tar"

    def __init__(self, format: Format) -> None:
        """Take note of the job's image format, whose extension goes without saying."""
        self._usual = EXTENSIONS[format]

    def write(self, file: IO[bytes], rows: pa.Table, keys: Sequence[str], read: Read) -> None:
        """See `Form`."""
        labelled = "label" in rows.column_names and pa.types.is_integer(rows.schema.field("label").type)
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for row, (key, known) in enumerate(zip(keys, described(rows), strict=True)):
                sample = sample_key(key, self._usual)
                _add(archive, sample + _extension(key), read(row))
                _add(archive, f"{sample}.json", json.dumps(known, ensure_ascii=False).encode())
                if labelled and known["label"] is not None:
                    _add(archive, f"{sample}.cls", str(known["label"]).encode())

    def location(self, container: str, key: str) -> str:
        """See `Form`."""
        return f"tar://{sample_key(key, self._usual)}{_extension(key)}::{container}"


def sample_key(key: str, usual: str) -> str:
    """Return the key of a picture's sample, which is no other picture's.

    It is the picture's own key without its extension. Another extension than the usual one stays, after a `_`, since
    `a.jpg` and `a.png` are two pictures. Names with further dots, which would end the sample's key, and others that
    readers do not take get a hash.

    Args:
        key: of the picture below `images/`.
        usual: extension of the job's image format.
    """
    stem, extension = posixpath.splitext(key)
    tail = "" if extension == usual else f"_{extension[1:]}"
    folder, slash, name = stem.rpartition("/")
    safe = folder.replace("::", "_") + slash + name.replace("::", "_").replace(".", "_")
    if _SKIPPED_BY_READERS.match(safe):
        safe = _SKIPPED_BY_READERS.sub(r"_\1_", safe, count=1)
    if safe == stem and not _LIKE_OURS.search(stem):
        return stem + tail
    return f"{safe}{tail}_{digest(key)}"


def described(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield what is known of each picture, as JSON can hold it."""
    table = with_python_times(rows.drop_columns(OF_OUTCOME))
    short = [field.name for field in table.schema if pa.types.is_float32(field.type)]
    for batch in table.to_batches():
        for row in batch.to_pylist():
            for name in short:
                row[name] = None if row[name] is None else float(shortest(row[name]))
            yield {name: _as_json(value) for name, value in row.items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _extension(key: str) -> str:
    return EXTENSIONS[FORMAT_OF_EXTENSION[posixpath.splitext(key)[1].lower()]]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of nobody, and of no time
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
