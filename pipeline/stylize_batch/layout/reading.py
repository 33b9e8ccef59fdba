"""Reading a picture back from wherever the results say it is, in every layout."""

from __future__ import annotations

import re
import tarfile
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import pyarrow.parquet as pq

from stylize_batch.errors import RowError
from stylize_batch.storage import failure, filesystem, read_bytes

CONTAINERS_KEPT = 16
"""Containers whose contents are remembered."""


class _Span(NamedTuple):
    """Bytes of a tar file."""

    start: int
    end: int


class _Cell(NamedTuple):
    """A row of a Parquet file: its row group, and its place in it."""

    group: int
    row: int


_IN_PARQUET = re.compile(r"(.+\.parquet)#([0-9a-f]{32})", re.DOTALL)


def address(output: str, pair_id: str) -> str:
    """Return what names one picture alone, wherever it lies: a row of a Parquet file needs its pair.

    Args:
        output: of its row in the results.
        pair_id: of the same row.
    """
    return f"{output}#{pair_id}" if output.endswith(".parquet") else output


def in_container(address: str) -> bool:
    """Whether a picture lies in a tar or Parquet file, and so is nothing that a browser opens."""
    return address.startswith("tar://") or _IN_PARQUET.fullmatch(address) is not None


class PictureReader:
    """Reads pictures that a run has made, for any number of threads."""

    def __init__(self) -> None:
        self._spans = lru_cache(CONTAINERS_KEPT)(_spans)
        self._cells = lru_cache(CONTAINERS_KEPT)(_cells)
        self._lock = threading.Lock()

    def read(self, address: str) -> bytes:
        """Read a picture's file.

        Args:
            address: what `address` gives.

        Raises:
            RowError: as `storage.read_bytes`.
            SystemicError: as `storage.read_bytes`.
        """
        if address.startswith("tar://"):
            member, _, container = address.removeprefix("tar://").partition("::")
            return self._guarded(self._from_tar, address, member, container)
        if cell := _IN_PARQUET.fullmatch(address):
            return self._guarded(self._from_parquet, address, cell[2], cell[1])
        return read_bytes(address)

    def _guarded(self, read: Callable[[str, str], bytes], address: str, name: str, container: str) -> bytes:
        try:
            return read(name, container)
        except KeyError:
            raise RowError("NotFound", f"{address} does not exist") from None
        except Exception as error:
            raise failure(error, container) from None

    def _from_tar(self, member: str, container: str) -> bytes:
        with self._lock:
            span = self._spans(container)[member]
        fs, path = filesystem(container)
        return bytes(fs.cat_file(path, *span))

    def _from_parquet(self, pair_id: str, container: str) -> bytes:
        with self._lock:
            cell = self._cells(container)[pair_id]
        fs, path = filesystem(container)
        with fs.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
            images = file.read_row_group(cell.group, ["image.bytes"])["image"]
            return images[cell.row].as_py()["bytes"]


def _spans(container: str) -> dict[str, _Span]:
    fs, path = filesystem(container)
    with fs.open(path, "rb") as handle, tarfile.open(fileobj=handle, mode="r:") as archive:
        return {
            member.name: _Span(member.offset_data, member.offset_data + member.size) for member in archive
        }


def _cells(container: str) -> dict[str, _Cell]:
    fs, path = filesystem(container)
    with fs.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
        return {
            pair: _Cell(group, row)
            for group in range(file.num_row_groups)
            for row, pair in enumerate(file.read_row_group(group, ["pair_id"])["pair_id"].to_pylist())
        }
