"""Images that are gone with their folder: it was moved, or is not mounted, and that is no fault of the rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from stylize_batch.errors import SystemicError
from stylize_batch.manifest.shards import Shard, read_shard
from stylize_batch.root import Root
from stylize_batch.settings import WorkerSettings
from stylize_batch.storage import absolute, filesystem

PROBED = 16
"""Other shards that are looked at, spread over all, before a folder that is missing is taken for all of them."""


def refuse_vanished(results: pa.Table, shard: Shard, root: Root, settings: WorkerSettings) -> None:
    """Raise SystemicError when the folder of a shard's contents is gone, and those of other shards are, too.

    If others are there, it is one wrong folder of the manifest, whose rows fail.

    Args:
        results: of the whole shard.
        shard: that they are of.
        root: of the run.
        settings: of the job.
    """
    if not all((error or "").startswith("NotFound:") for error in results["error"].to_pylist()):
        return
    folder = vanished_folder(results["content"].to_pylist(), settings.base)
    if folder and all(
        vanished_folder(contents, settings.base) for contents in _others(shard.number, root, settings.run)
    ):
        raise vanished(folder)


def vanished(folder: str) -> SystemicError:
    """Return the error that says so of a folder."""
    return SystemicError(f"the folder {folder} of the images is missing or empty; put it back or mount it")


def vanished_folder(uris: Iterable[str], base: str) -> str | None:
    """Return the innermost folder around some files, if it is missing or, as without its mount, empty; local ones only.

    Args:
        uris: as a manifest writes them.
        base: that relative ones start from.
    """
    places = [filesystem(absolute(uri, base)) for uri in uris]
    if not all(isinstance(fs, LocalFileSystem) for fs, _ in places):
        return None
    folder = os.path.commonpath([os.path.dirname(path) for _, path in places])  # noqa: PTH120 (of strings)
    try:
        with os.scandir(folder) as entries:
            return None if any(True for _ in entries) else folder
    except (FileNotFoundError, NotADirectoryError):
        return folder
    except OSError:  # it is there, and refuses
        return None


def _others(shard: int, root: Root, run: str) -> Iterator[list[str]]:
    """Yield the contents of other shards."""
    count = sum(key.startswith("plan/shard-") for key in root.list("plan"))
    others = [other for other in range(count) if other != shard]
    for other in others[:: max(1, len(others) // PROBED)]:
        yield read_shard(root, other, run)["content"].to_pylist()
