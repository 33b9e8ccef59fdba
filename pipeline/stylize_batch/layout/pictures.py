"""The pictures of a shard on their way to storage: what every layout offers the worker, and the choice of one."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

from stylize_batch.layout.container import Container
from stylize_batch.layout.embedded import ImageParquet
from stylize_batch.layout.webdataset import Tar
from stylize_batch.manifest.shards import Shard
from stylize_batch.root import Root
from stylize_batch.settings import WorkerSettings


class Pictures(Protocol):
    """Takes the encoded pictures of some rows of a shard. None counts before `commit` has returned."""

    def put(self, row: int, data: bytes) -> None:
        """Take a row's picture, from any thread.

        Raises:
            OSError: storage refused or did not answer.
        """
        ...

    def commit(self, results: pa.Table) -> list[str | None]:
        """Store what has been taken, and return where each row's picture is: a path or URI that opens as it stands.

        Args:
            results: of the rows, in the order they were given, with `output` still empty.

        Raises:
            OSError: storage refused or did not answer.
        """
        ...

    def close(self) -> None:
        """Drop what is not committed."""
        ...


class Files:
    """One object for each picture, under its own key."""

    def __init__(self, root: Root, rows: pa.Table) -> None:
        self._root = root
        self._keys = [f"images/{key}" for key in rows["output"].to_pylist()]

    def put(self, row: int, data: bytes) -> None:
        """See `Pictures`."""
        self._root.put(self._keys[row], data)

    def commit(self, results: pa.Table) -> list[str | None]:
        """See `Pictures`."""
        found = zip(self._keys, results["status"].to_pylist(), strict=True)
        return [self._root.uri_of(key) if status == "ok" else None for key, status in found]

    def close(self) -> None:
        """See `Pictures`."""


def open_pictures(settings: WorkerSettings, root: Root, shard: Shard, rows: pa.Table) -> Pictures:
    """Make ready to take pictures, in the job's layout.

    Args:
        settings: of the job.
        root: of the run.
        shard: that the rows belong to.
        rows: of the shard's plan.
    """
    if settings.layout == "files":
        return Files(root, rows)
    form = Tar(settings.format) if settings.layout == "webdataset" else ImageParquet()
    return Container(form, root, shard, rows)
