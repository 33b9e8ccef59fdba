"""What there is: entries of a folder, the files below it, and what a pattern of names finds, on any storage.

fsspec's `find` and `glob` take a folder that cannot be listed for an empty one, and on a disk they leave out what lies
behind a link to a folder. Here the former raises, and the latter is found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from stylize_batch.errors import UsageError
from stylize_batch.storage import absolute, failure, filesystem, full_names, join, kind, parent

HIDDEN = (".",)
"""How names begin that are no images, such as those a Mac leaves beside its files, and folders that hold none."""


class Pattern(NamedTuple):
    """A pattern of names, below the folder in front of its first wildcard; the folder is a path or URI, absolute."""

    base: str
    names: str


def entries(fs: Any, folder: str, *, links: bool = True) -> Iterator[tuple[str, bool]]:
    """List a folder, in no order: names, and whether each is a folder, or a link to one where `links` are followed."""
    if isinstance(fs, LocalFileSystem):  # names only: a flat folder may hold a million
        with os.scandir(folder) as found:
            yield from ((entry.name, entry.is_dir(follow_symlinks=links)) for entry in found)
        return
    for info in fs.ls(folder, detail=True):
        name = str(info["name"]).rstrip("/")
        if name != folder.rstrip("/"):
            yield name.rpartition("/")[2], info["type"] == "directory"


def walk(
    fs: Any,
    folder: str,
    skip: tuple[str, ...] = (),
    *,
    links: bool = True,
    ordered: bool = False,
    above: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yield the paths of the files below a folder, those in it before those in its folders.

    Args:
        fs: file system.
        folder: path in it.
        skip: how names begin that are left out, folders with all that lies below.
        links: follow those to folders, but for one that leads back up; otherwise they count as files.
        ordered: sort each folder's names, which are in memory then; otherwise only those of its folders are.
        above: the folders that this one lies in, links followed.

    Raises:
        FileNotFoundError: there is no such folder.
        Exception: whatever else the file system raises when it cannot list a folder.
    """
    if links and isinstance(fs, LocalFileSystem):
        above = (*above, os.path.realpath(folder))
        if above[-1] in above[:-1]:
            return
    found = entries(fs, folder, links=links)
    folders: list[str] = []
    for name, is_folder in sorted(found) if ordered else found:
        if name.startswith(skip):
            continue
        if is_folder:
            folders.append(name)
        else:
            yield join(folder, name)
    for name in sorted(folders):
        with suppress(FileNotFoundError):  # gone meanwhile
            yield from walk(fs, join(folder, name), skip, links=links, ordered=ordered, above=above)


def files(fs: Any, folder: str, skip: tuple[str, ...] = (), *, links: bool = True) -> Iterator[str]:
    """Yield what `walk` does, in any order. Object stores are asked for all at once, and may say nothing of a folder that
    is not there; of S3's answers, one page is in memory at a time."""
    if not isinstance(fs, AsyncFileSystem):
        yield from walk(fs, folder, skip, links=links)
        return
    find = getattr(fs, "find_by_page", fs.find)
    for name in find(folder):
        below = str(name)[len(folder) :].strip("/")
        if not any(part.startswith(skip) for part in below.split("/")):
            yield str(name)


def list_files(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """List the files below a folder, recursively and sorted, as absolute URIs; hidden ones are left out.

    Args:
        folder: URI or path; that of a file stands for itself.
        suffixes: keep names that end so, whatever the case.

    Raises:
        UsageError: there is no such folder, or it cannot be listed.
    """
    fs, path = filesystem(folder)
    try:
        lies = kind(fs, path)
        found = [path] if lies == "file" else files(fs, path, HIDDEN) if lies else ()
        names = sorted(name for name in found if name.lower().endswith(suffixes))
    except Exception as error:
        raise UsageError(f"cannot list {folder}: {failure(error, folder)}") from None
    if lies is None:
        raise UsageError(f"there is no folder {folder}")
    return full_names(fs, folder, names)


def pattern_of(path: str) -> Pattern | None:
    """Return a path that nothing lies at as a pattern of names; None if it has no wildcard.

    It is the path as given: the working directory's own, before a relative one, may have such characters in it.
    """
    wildcard = re.search(r"[*?[]", path)
    if wildcard is None:
        return None
    base = parent(path[: wildcard.start()] + "x")
    return Pattern(absolute(base), path[len(base) :].strip("/"))


def glob(pattern: Pattern, skip: tuple[str, ...]) -> list[str]:
    """Return the paths that a pattern finds, sorted, as its file system names them: files and folders, and where it has
    `**`, for folders of any depth, files alone.

    As in a shell, wildcards leave out names that begin with one of `skip`, unless the pattern begins with it, too.

    Raises:
        Exception: whatever the file system raises when it cannot list a folder.
    """
    fs, folder = filesystem(pattern.base)
    names = pattern.names.split("/")
    if names[-1] == "**":
        names.append("*")
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(_found(fs, folder, names, skip))
    return []


def _found(fs: Any, folder: str, names: list[str], skip: tuple[str, ...]) -> Iterator[str]:
    if names[0] == "**":
        named = any(name.startswith(skip) for name in names)
        for path in files(fs, folder, () if named else skip):
            if _fits(path[len(folder) :].strip("/").split("/"), names, skip):
                yield path
        return
    for name, is_folder in entries(fs, folder):
        if not _is_like(name, names[0], skip):
            continue
        if len(names) == 1:
            yield join(folder, name)
        elif is_folder:
            with suppress(FileNotFoundError):  # gone meanwhile
                yield from _found(fs, join(folder, name), names[1:], skip)


def _fits(path: list[str], names: list[str], skip: tuple[str, ...]) -> bool:
    if not path or not names:
        return not path and not names
    if names[0] == "**":
        deeper = not path[0].startswith(skip) and _fits(path[1:], names, skip)
        return deeper or _fits(path, names[1:], skip)
    return _is_like(path[0], names[0], skip) and _fits(path[1:], names[1:], skip)


def _is_like(name: str, pattern: str, skip: tuple[str, ...]) -> bool:
    return fnmatchcase(name, pattern) and (pattern.startswith(skip) or not name.startswith(skip))
