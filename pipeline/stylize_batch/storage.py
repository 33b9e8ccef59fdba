"""Local paths and any fsspec URI: reading, listing, and atomic puts under one root.

Endpoints, profiles and other storage settings come from fsspec's own configuration and the environment
(`FSSPEC_S3_ENDPOINT_URL`, `AWS_PROFILE`, …), never from options of ours.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import fsspec.config
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from stylize_batch.errors import RowError, UsageError

TEMPORARY = ".tmp"
"""Folder under a local root that holds unfinished files only."""

S3_DEFAULTS: dict[str, Any] = {
    # Listings cached by a long run would hide what other actors and earlier runs wrote.
    "use_listings_cache": False,
    # Measured against 30 % errors and a 9 s outage: 3 attempts fail, 8 pass; `adaptive` is 25× slower.
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": 8},
        "connect_timeout": 5,
        "read_timeout": 60,
        "max_pool_connections": 64,
    },
}


class File(NamedTuple):
    """One listed file: its absolute URI, and size in bytes."""

    uri: str
    size: int


def is_uri(path: str) -> bool:
    """Whether a path names its protocol (`s3://…`, `file://…`, `memory://…`)."""
    return "://" in path


def absolute(path: str, base: str | None = None) -> str:
    """Make a path absolute: URIs stay as they are, others are taken relative to `base` (or the cwd)."""
    if is_uri(path):
        return path
    if base is not None and is_uri(base) and not path.startswith("/"):
        return join(base, path)
    return os.path.abspath(Path(base) / path if base is not None else path)  # noqa: PTH100 (keeps symlinks)


def join(root: str, key: str) -> str:
    """Append a relative key to a root URI or path."""
    return f"{root.rstrip('/')}/{key}"


def parent(uri: str) -> str:
    """Return the folder a file lies in."""
    return uri.rsplit("/", 1)[0] or "/"


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system (whose own types are too loose to use) of a URI, and the path inside it.

    Raises:
        UsageError: the protocol is unknown or its package is not installed.
    """
    protocol = uri.split("://", 1)[0] if is_uri(uri) else "file"
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        _bound_s3fs_retries()
        options = {**S3_DEFAULTS, **fsspec.config.conf.get("s3", {})}
    try:
        return url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise UsageError(f"cannot open {uri}: {error}") from None


def _bound_s3fs_retries() -> None:
    # s3fs retries around botocore's own retries; the two multiply.
    import s3fs

    s3fs.S3FileSystem.retries = 2


def row_error(error: Exception, uri: str) -> RowError:
    """Translate what a file system raised into the failure of a row."""
    if isinstance(error, RowError):
        return error
    if isinstance(error, FileNotFoundError):
        return RowError("NotFound", f"{uri} does not exist")
    if isinstance(error, PermissionError):
        return RowError("AccessDenied", f"no permission to read {uri}")
    if isinstance(error, IsADirectoryError):
        return RowError("NotFound", f"{uri} is a folder, not a file")
    if isinstance(error, UsageError):
        return RowError("NotFound", str(error))
    detail = str(error).splitlines()[0] if str(error) else ""
    return RowError(
        "StorageError", f"reading {uri} failed: {type(error).__name__} {detail}".strip(), transient=True
    )


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        RowError: `NotFound`, `AccessDenied`, or a transient `StorageError` after the retries inside.
    """
    try:
        fs, path = filesystem(uri)
        data = fs.cat_file(path)
    except Exception as error:
        raise row_error(error, uri) from None
    return bytes(data)


def fingerprint(uri: str) -> str:
    """Return a file's ETag, or its size and modification time: equal means the bytes are the same.

    Raises:
        RowError: as `read_bytes`.
    """
    try:
        fs, path = filesystem(uri)
        info: dict[str, Any] = fs.info(path)
    except Exception as error:
        raise row_error(error, uri) from None
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    changed = info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return f"{info.get('size')}-{changed}"


def list_files(folder: str, suffixes: tuple[str, ...] = ()) -> list[File]:
    """List the files below a folder, recursively and sorted; a missing folder is an empty one.

    Args:
        folder: URI or path.
        suffixes: keep names that end so, whatever the case; all when empty.
    """
    fs, path = filesystem(folder)
    try:
        found: dict[str, dict[str, Any]] = fs.find(path, detail=True)
    except FileNotFoundError:
        return []
    files = [
        File(fs.unstrip_protocol(name) if is_uri(folder) else name, int(info.get("size") or 0))
        for name, info in found.items()
        if not suffixes or name.lower().endswith(suffixes)
    ]
    return sorted(files)


class Root:
    """A folder or prefix that results are put under, each object whole or not at all.

    Locally a put writes a temporary file under `.tmp/<run>/` and renames it; on object stores it is one
    request (a streamed upload could publish half an object).
    """

    def __init__(self, uri: str, run: str | None = None) -> None:
        self.uri = absolute(uri)
        self._fs, self._path = filesystem(self.uri)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._temporary = Path(self._path) / TEMPORARY / (run or f"run-{os.getpid()}")

    @property
    def local(self) -> bool:
        """Whether the root lies on this machine's own file system."""
        return self._local

    def uri_of(self, key: str) -> str:
        """Return the absolute path or URI of a key."""
        if self._local:
            return join(self._path, key)
        return join(self.uri, key)

    def put(self, key: str, data: bytes) -> None:
        """Write one object atomically, replacing what was there.

        Raises:
            OSError: storage refused or did not answer, after the retries inside.
        """
        if not self._local:
            self._fs.pipe_file(join(self._path, key), data)
            return
        target = Path(self._path) / key
        temporary = self._temporary / uuid.uuid4().hex
        try:
            temporary.write_bytes(data)
        except FileNotFoundError:
            self._temporary.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
        try:
            temporary.replace(target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)

    def read(self, key: str) -> bytes:
        """Read one object.

        Raises:
            FileNotFoundError: there is none under this key.
        """
        return bytes(self._fs.cat_file(join(self._path, key)))

    def exists(self, key: str) -> bool:
        """Whether an object is under this key."""
        return bool(self._fs.isfile(join(self._path, key)))

    def list(self, prefix: str) -> list[str]:
        """List the keys below a prefix (a folder), sorted."""
        base = self._path.rstrip("/")
        try:
            found: list[str] = self._fs.find(join(self._path, prefix))
        except FileNotFoundError:
            return []
        return sorted(name[len(base) :].lstrip("/") for name in found)

    def empty(self) -> bool:
        """Whether nothing at all lies under the root."""
        try:
            return not self._fs.find(self._path, maxdepth=None)
        except FileNotFoundError:
            return True

    def delete(self, keys: list[str]) -> None:
        """Delete objects, missing ones too."""
        if self._local:
            for key in keys:
                (Path(self._path) / key).unlink(missing_ok=True)
        elif keys:
            self._fs.rm([join(self._path, key) for key in keys])

    def clear_temporaries(self) -> None:
        """Remove what killed runs left unfinished. Object stores have nothing to remove."""
        folder = Path(self._path) / TEMPORARY
        if self._local and folder.is_dir():
            self._fs.rm(str(folder), recursive=True)


def checked_key(key: str) -> str:
    """Return a key for use under a root.

    Raises:
        UsageError: it is empty, absolute, a URI, or climbs out of the root.
    """
    parts = PurePosixPath(key).parts
    hostile = (
        not parts
        or key.endswith("/")
        or key.startswith(("/", "~"))
        or "\\" in key
        or is_uri(key)
        or ".." in parts
        or any(ord(character) < 32 for character in key)
    )
    if hostile:
        raise UsageError(f"output key {key!r} would leave the output root; use a relative path without '..'")
    return str(PurePosixPath(key))
