"""Images that are gone with their folder: it was moved, or is not mounted, and that is no fault of the rows."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from stylize_batch.errors import SystemicError
from stylize_batch.manifest.schema import string_lists
from stylize_batch.manifest.shards import Shard, read_shard
from stylize_batch.root import Root
from stylize_batch.settings import WorkerSettings
from stylize_batch.storage import absolute, filesystem

PROBED = 16
"""Other shards that are looked at, spread over all, before a folder that is missing is taken for all of them."""


def refuse_vanished(results: pa.Table, shard: Shard, root: Root, settings: WorkerSettings) -> None:
    """Raise SystemicError when the folder of a shard's contents is gone, and those of other shards are, too. Its masks, and
    the styles that it re-colours, are looked at likewise.

    If the others' are there, or no other shard needs any, it is one wrong folder of the manifest, whose rows fail.

    Args:
        results: of the whole shard.
        shard: that they are of.
        root: of the run.
        settings: of the job.
    """
    if not any((error or "").startswith("NotFound:") for error in results["error"].to_pylist()):
        return
    for kind, uris in enumerate(_needed(results)):
        folder = vanished_folder(uris, settings.base)
        if folder is None:
            continue
        others = _others(shard.number, root)
        elsewhere = (_needed(read_shard(root, other, settings.run))[kind] for other in others)
        gone = (vanished_folder(needed, settings.base) for needed in elsewhere if needed)
        if next(gone, not others) and all(gone):  # where others need none, there is no next
            raise vanished(folder)


def vanished(folder: str) -> SystemicError:
    """Return the error that says so of a folder."""
    return SystemicError(f"the folder {folder} of the images is missing or empty; put it back or mount it")


def vanished_folder(uris: Iterable[str], base: str) -> str | None:
    """Return the innermost folder around some files, if it is missing or, as without its mount, empty; local ones only.

    Args:
        uris: of the files, if there are any, as a manifest writes them.
        base: that relative ones start from.
    """
    places = [filesystem(absolute(uri, base)) for uri in uris]
    if not places or not all(isinstance(fs, LocalFileSystem) for fs, _ in places):
        return None
    folder = os.path.commonpath([os.path.dirname(path) for _, path in places])  # noqa: PTH120 (of strings)
    try:
        with os.scandir(folder) as entries:
            return None if any(True for _ in entries) else folder
    except (FileNotFoundError, NotADirectoryError):
        return folder
    except OSError:  # it is there, and refuses
        return None


def _needed(rows: pa.Table) -> tuple[list[str], ...]:
    """Return the contents, the masks and the styles to be re-coloured that rows of a shard need; other styles are
    encoded before it."""
    unused = [None] * len(rows)
    masks = string_lists(rows["mask"].combine_chunks()) if "mask" in rows.column_names else unused
    colors = rows["preserve_color"].to_pylist() if "preserve_color" in rows.column_names else unused
    styles = zip(rows["style"].to_pylist(), colors, strict=True)
    return (
        rows["content"].to_pylist(),
        [uri for each in masks for uri in each or () if uri],
        [uri for each, recolored in styles if recolored for uri in each],
    )


def _others(shard: int, root: Root) -> list[int]:
    """Return some other shards, spread over all."""
    count = sum(key.startswith("plan/shard-") for key in root.list("plan"))
    others = [other for other in range(count) if other != shard]
    return others[:: max(1, len(others) // PROBED)]
