"""Sources of contents and styles: image trees, lists and archives become one stream of tables of items.

An item has a key (its path below the source, by which it is hashed and named), a URI, and whatever its source says
of it: `label` and `split` from a tree's folders, a list's own columns, COCO's boxes.
"""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from stylize_batch.errors import JobFailedError, UsageError, counted
from stylize_batch.images.decode import SUFFIXES
from stylize_batch.listing import HIDDEN, entries, glob, pattern_of, walk
from stylize_batch.manifest.embedded import image_column, open_embedded
from stylize_batch.manifest.items import KEY, URI, LeftOut
from stylize_batch.manifest.lists import BATCH, LISTS, as_table, read_lists, with_free_names
from stylize_batch.manifest.naming import key_below
from stylize_batch.manifest.unpack import unpack
from stylize_batch.root import Root
from stylize_batch.storage import (
    absolute,
    failure,
    filesystem,
    full_names,
    join,
    kind,
    parent,
)

if TYPE_CHECKING:
    from stylize_batch.progress import Observer

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev")
"""Names of a tree's first folders that are taken for splits, with or without digits, where all first folders have one."""

ARCHIVES = (".tar", ".tar.gz", ".tgz")


class Collected(NamedTuple):
    """The items of a source, spilled to a local file.

    Attributes:
        source: as given.
        items: how many.
        path: the spill.
        folders: columns that are folders of the keys (`split`, `label`), and which folder each is.
        notes: one line for each thing a user should know of.
        problems: one line for each thing that was there and could not be read.
    """

    source: str
    items: int
    path: Path
    folders: dict[str, int]
    notes: list[str]
    problems: list[str]

    def tables(self) -> Iterator[pa.Table]:
        """Read the items back: key, URI, `split` and `label` where there are any, and carried columns."""
        with pa.ipc.open_stream(str(self.path)) as reader:
            for batch in reader:
                table = as_table(batch)
                for name, place in self.folders.items():
                    values = [_folder(key, place) for key in table[KEY].to_pylist()]
                    table = table.append_column(name, pa.array(values, pa.string()))
                yield table


class _Source(NamedTuple):
    """A source's kind, as tables of key, URI and carried columns."""

    tables: Iterator[pa.Table]
    skip: int | None
    """First parts of a key that are an archive's path; None where folders mean nothing."""
    notes: list[str]
    problems: list[str]


def collect(
    source: str,
    role: str,
    folder: Path,
    *,
    root: str | None = None,
    unpacked: Root | None = None,
    observer: Observer,
) -> Collected:
    """Read a source to its end.

    Args:
        source: folder, image, list (CSV, JSON, JSON lines, Parquet), COCO annotations, or archives (WebDataset tar,
            Parquet with embedded images); path or URI; a glob of files of one kind.
        role: `content` or `style`.
        folder: local, for the spill.
        root: what a list's relative paths start from; its own folder by default.
        unpacked: where archives are extracted.

    Raises:
        UsageError: there is nothing, or something that cannot be used.
    """
    try:
        found = _open(source, role, root, unpacked, observer)
        if root is not None and found.skip is not None:
            raise UsageError(f"--content-root is for lists, whose paths it completes; {source} is none")
        return _spill(source, role, found, folder / f"{role}.arrow", observer)
    except (UsageError, JobFailedError):
        raise
    except UnicodeEncodeError as error:
        name = error.object[:200].encode("utf-8", "backslashreplace").decode()
        raise UsageError(f"{source} holds the name {name}, which is not UTF-8; rename it") from None
    except (pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read {source}: {error}") from None
    except Exception as error:
        raise UsageError(f"cannot read {source}: {failure(error, absolute(source))}") from None


def _spill(source: str, role: str, found: _Source, path: Path, observer: Observer) -> Collected:
    count = 0
    carried: set[str] = set()
    folders: set[str] = set()
    observer.phase(f"Listing {role}s", None)
    writer: Any = None
    try:
        for table in found.tables:
            if writer is None:
                writer = pa.ipc.new_stream(str(path), table.schema)
                carried.update(table.column_names)
            if found.skip is not None:
                folders.update(key.rpartition("/")[0] for key in table[KEY].to_pylist())
            writer.write_table(table, max_chunksize=BATCH)
            count += len(table)
            observer.advance(count, 0)
    finally:
        if writer is not None:
            writer.close()
    if not count:
        found_instead = "".join(f"; {line}" for line in [*found.problems, *found.notes][:1])
        raise UsageError(f"no images in {source}; expected {', '.join(SUFFIXES)} files{found_instead}")
    columns: dict[str, int] = {}
    if found.skip is not None:
        paths = [folder.split("/") if folder else [] for folder in folders]
        columns = _folder_columns(paths, found.skip)
        columns = {name: place for name, place in columns.items() if name not in carried}
        if role == "content":
            found.notes.extend(f"{source}: {line}" for line in _doubts(paths, columns))
    return Collected(source, count, path, columns, found.notes, found.problems)


def _folder(key: str, place: int) -> str | None:
    parts = key.split("/", place + 1)
    return parts[place] if len(parts) > place + 1 else None


def _folder_columns(paths: list[list[str]], skip: int) -> dict[str, int]:
    """Return which folders of the keys are splits and labels, `skip` first ones being an archive's path.

    Folders that all share, as an archive's of one folder do, say nothing while there are others below them.
    """
    place = skip
    while _is_wrapping(_level(paths, place)) and _level(paths, place + 1) - {None}:
        place += 1
    firsts = _level(paths, place) - {None}
    columns: dict[str, int] = {}
    if firsts and not all(map(_is_split, firsts)):
        columns = {"label": place}
    elif firsts:
        columns = {"split": place}
        if _level(paths, place + 1) - {None}:
            columns["label"] = place + 1
    if skip > 1 and all(map(_is_split, _level(paths, 0))):  # archives in folders of splits
        columns = {"split": 0, **columns}
    return columns


def _level(paths: list[list[str]], place: int) -> set[str | None]:
    """Return the names of the folders at a place; None for paths that end above it."""
    return {path[place] if len(path) > place else None for path in paths}


def _is_wrapping(names: set[str | None]) -> bool:
    return len(names) == 1 and None not in names and not any(map(_is_split, names))


def _is_split(name: str | None) -> bool:
    return name is not None and name.lower().rstrip("0123456789") in SPLITS


def _doubts(paths: list[list[str]], columns: dict[str, int]) -> Iterator[str]:
    """Tell of labels that may be none: one for all, or splits among others."""
    if "label" not in columns:
        return
    labels = sorted(name for name in _level(paths, columns["label"]) if name is not None)
    if len(labels) == 1:
        yield f"all contents have the one label '{labels[0]}', the name of their folder"
    splits = [name for name in labels if _is_split(name)]
    if splits and "split" not in columns:
        other = next(name for name in labels if not _is_split(name))
        yield (
            f"folders are named like splits ({', '.join(splits)}) and others are not, such as {other}, so that all become "
            "labels; move the others out to get splits"
        )


def _open(source: str, role: str, root: str | None, unpacked: Root | None, observer: Observer) -> _Source:
    """Find out what a source is."""
    uri = absolute(source)
    fs, path = filesystem(uri)
    base = parent(uri)
    lies = kind(fs, path)
    if lies == "file" and uri.startswith(("http://", "https://")) and fs.isdir(path):
        lies = "directory"  # a page of links, which that file system calls a file
    if lies == "directory":
        base = uri.rstrip("/")
        if unpacked is not None and f"{unpacked.uri.rstrip('/')}/".startswith(f"{base}/"):
            raise UsageError(
                f"--unpack {unpacked.uri} lies in {source}, where it would be listed too; name another"
            )
        names = _lone_archives(fs, path)
        if not names:
            notes: list[str] = []
            return _Source(_tree(fs, path.rstrip("/"), base, notes), 0, notes, [])
    elif lies == "file":
        names = [path]
    else:
        pattern = pattern_of(source)
        names = glob(pattern, HIDDEN) if pattern else []
        if pattern is None or not names:
            raise UsageError(
                f"there is no {role} source {source}; give a folder, a list, an image or archives"
            )
        base = pattern.base
    uris = full_names(fs, uri, names)
    if all(name.lower().endswith(SUFFIXES) for name in uris):
        return _Source(_items((key_below(each, base), each) for each in uris), 0, [], [])
    if _are(uris, ARCHIVES) or (_are(uris, (".parquet",)) and _embedded(uris[0])):
        if unpacked is None:
            raise UsageError(
                f"{source} holds images in archives; extract them first: stylize-batch manifest build … --unpack DIR"
            )
        found = unpack(uris, None if lies == "file" else base, unpacked, role, observer)
        tables = (with_free_names(table, source, role, found.notes) for table in found.tables())
        depths = {prefix.count("/") for prefix in found.prefixes}
        if len(depths) > 1:
            found.notes.append(
                f"{source}: archives lie in folders of different depth, so that no folder is a label"
            )
        return _Source(tables, depths.pop() if len(depths) == 1 else None, found.notes, found.problems)
    if _are(uris, LISTS):
        notes = []
        return _Source(read_lists(uris, role, root, notes), None, notes, [])
    raise UsageError(
        f"{source} is no {role} source; give a folder of images, a list ({', '.join(LISTS)}), "
        f"an image or archives ({', '.join(ARCHIVES)}, .parquet)"
    )


def _are(uris: list[str], suffixes: tuple[str, ...]) -> bool:
    return all(uri.lower().endswith(suffixes) for uri in uris)


def _embedded(uri: str) -> bool:
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as handle, open_embedded(handle) as file:
        return image_column(file) is not None


def _lone_archives(fs: Any, folder: str) -> list[str]:
    """Return the archives of a folder that holds nothing else to take images from."""
    found = [each for each in entries(fs, folder) if not each[0].startswith(HIDDEN)]
    if any(is_folder or name.lower().endswith(SUFFIXES) for name, is_folder in found):
        return []
    names = sorted(name for name, _ in found)
    # A Parquet file beside tars is what was built of them.
    tars, tables = (
        [name for name in names if name.lower().endswith(each)] for each in (ARCHIVES, ".parquet")
    )
    return [join(folder, name) for name in tars or tables]


def _tree(fs: Any, folder: str, uri: str, notes: list[str]) -> Iterator[pa.Table]:
    """Walk a folder, sorted, with one folder's names in memory at a time; what is not named as an image is noted."""
    left_out = LeftOut()

    def images() -> Iterator[tuple[str, str]]:
        for path in walk(fs, folder, HIDDEN, ordered=True):
            key = path[len(folder) :].lstrip("/")
            if key.lower().endswith(SUFFIXES):
                yield key, join(uri, key)
            else:
                left_out.add(key)

    yield from _items(images())
    if left_out:
        notes.append(
            f"{uri}: {counted(len(left_out), 'file is', 'files are')} left out, not named like an image "
            f"{left_out}; {left_out.advice}"
        )


def _items(found: Iterable[tuple[str, str]]) -> Iterator[pa.Table]:
    items = iter(found)
    while batch := list(islice(items, BATCH)):
        keys, uris = zip(*batch, strict=True)
        yield pa.table({KEY: pa.array(keys, pa.string()), URI: pa.array(uris, pa.string())})
