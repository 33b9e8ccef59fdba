"""Containers: the pictures of a shard in one object under `images/`, written by one put before the shard's results.

A container's name says which rows are in it. All of a shard make `part-000012.tar`; some of them, where others have
failed or are tried again, make a container named after those rows, `part-000012-<hash>.tar`. So a name stands for the
same pictures whoever writes it, results never name a container that lacks a row of theirs, and nothing is ever
replaced by something else. What a killed run has written and no results name is deleted when a run ends.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import IO, NamedTuple, Protocol

import pyarrow as pa

from stylize_batch.manifest.naming import digest
from stylize_batch.manifest.shards import Shard
from stylize_batch.results import read_parts
from stylize_batch.root import Root

_NAME = re.compile(r"images/part-\d{6,}(-[0-9a-f]{16})?\.(tar|parquet)")

Read = Callable[[int], bytes]
"""Returns the picture of a row of the table at hand."""


class Form(Protocol):
    """What kind of file a container is."""

    @property
    def extension(self) -> str:
        """What its name ends in."""
        ...

    def write(self, file: IO[bytes], rows: pa.Table, keys: Sequence[str], read: Read) -> None:
        """Write rows with their pictures, in order; the same rows and pictures make the same bytes.

        Args:
            file: to write to.
            rows: the results of pictures that are ok.
            keys: of the pictures, as the layout `files` has them below `images/`.
            read: gives a picture.
        """
        ...

    def location(self, container: str, key: str) -> str:
        """Return what opens a picture, or the container it has to be looked up in.

        Args:
            container: its path or URI.
            key: of the picture.
        """
        ...


class _Place(NamedTuple):
    """Where a picture lies in the spool."""

    offset: int
    length: int


class Container:
    """Pictures of some rows of a shard: spooled to a local file as they come, put together in the rows' order."""

    def __init__(self, form: Form, root: Root, shard: Shard, rows: pa.Table) -> None:
        self._form = form
        self._root = root
        self._shard = shard
        self._keys: list[str] = rows["output"].to_pylist()
        self._spool = root.spool()
        self._lock = threading.Lock()
        self._places: dict[int, _Place] = {}

    def put(self, row: int, data: bytes) -> None:
        """See `Pictures`."""
        with self._lock:
            self._places[row] = _Place(self._spool.tell(), len(data))
            self._spool.write(data)

    def commit(self, results: pa.Table) -> list[str | None]:
        """See `Pictures`."""
        outputs: list[str | None] = [None] * len(results)
        taken = sorted(self._places)
        if not taken:
            return outputs
        rows = results.take(pa.array(taken))
        keys = [self._keys[row] for row in taken]

        def read(position: int) -> bytes:
            place = self._places[taken[position]]
            self._spool.seek(place.offset)
            return self._spool.read(place.length)

        name = container_name(self._shard, rows["pair_id"].to_pylist()) + self._form.extension
        self._root.put_large(name, lambda file: self._form.write(file, rows, keys, read))
        for row, key in zip(taken, keys, strict=True):
            outputs[row] = self._form.location(self._root.uri_of(name), key)
        return outputs

    def close(self) -> None:
        """See `Pictures`."""
        self._spool.close()


def container_name(shard: Shard, pair_ids: list[str]) -> str:
    """Return the key, without extension, of the container of some of a shard's rows."""
    name = f"images/part-{shard.number:06d}"
    if len(pair_ids) == shard.pairs:
        return name
    return f"{name}-{digest(''.join(pair_ids))}"


def unnamed(root: Root, run: str, shards: int) -> list[str]:
    """Return the keys of the containers that no results of a finished run of so many shards name, to be deleted.

    Whoever reads `images/*.tar` would find their pictures twice.

    Raises:
        OSError: as `read_parts`; a container is not unnamed because its results cannot be read.
    """
    listed = {key for key in root.list("images") if _NAME.fullmatch(key)}
    for table in read_parts(root, run, ["output"], shards):
        outputs = {output.rpartition("/")[2] for output in table["output"].to_pylist() if output}
        listed -= {f"images/{name}" for name in outputs}
    return sorted(listed)
