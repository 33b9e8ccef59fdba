"""The output root: a folder or prefix, on any storage, that results are put under, each whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from stylize_batch.listing import files
from stylize_batch.storage import absolute, filesystem, join, kind, read_whole

RECORD, LEASE = "run.json", "lease.json"
"""Keys of what the root of a run says of itself, and of who is at work there."""

FOLDERS = ("results", "plan", "styles", "images")
"""What a run writes under its root, beside single files."""

TEMPORARY = ".tmp"
"""Folder under a local root that holds unfinished files only."""

PUT_ATTEMPTS = 10
"""Times a local object is written when its temporary file vanishes meanwhile."""

DELETED_AT_ONCE = 10_000
"""Objects whose deletion waits in threads: each takes 2 KB."""


class Root:
    """A folder or prefix that results are put under, each object whole or not at all.

    Locally a put writes a temporary file under `.tmp/<run>/` and renames it; on object stores it is one
    request (a streamed upload could publish half an object).
    """

    def __init__(self, uri: str, run: str | None = None) -> None:
        self.uri = absolute(uri)
        self._fs, self._path = filesystem(self.uri)
        self.local = isinstance(self._fs, LocalFileSystem)
        """Whether the root lies on this machine's own file system."""
        self._real = os.path.realpath(self._path) if self.local else ""
        self._temporary = Path(self._path) / TEMPORARY / (run or f"run-{os.getpid()}")

    def uri_of(self, key: str) -> str:
        """Return the absolute path or URI of a key."""
        if self.local:
            return join(self._path, key)
        return join(self.uri, key)

    @contextmanager
    def locked(self) -> Generator[bool]:
        """Keep out whoever else asks for this, and say whether that can be: object stores and NFS have no such locks."""
        if not self.local:
            yield False
            return
        Path(self._path).mkdir(parents=True, exist_ok=True)
        folder, locked = os.open(self._path, os.O_RDONLY), False
        try:
            with suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
                locked = True
            yield locked
        finally:
            os.close(folder)

    def put(self, key: str, data: bytes) -> None:
        """Write one object atomically, replacing what was there.

        Raises:
            OSError: storage refused or did not answer, after the retries inside, or the key leads out of the root.
        """
        if self.local:
            self._put_locally(key, lambda file: file.write(data))
        else:
            with _os_errors():
                self._fs.pipe_file(join(self._path, key), data)

    def put_large(self, key: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write one object atomically, as `put` does, without holding it in memory.

        Args:
            key: of the object.
            write: writes its bytes to a local file; called again should that file be lost.

        Raises:
            OSError: as `put`, or the local disk cannot hold the file.
        """
        if self.local:
            self._put_locally(key, write)
            return
        with tempfile.NamedTemporaryFile() as file:
            write(file.file)
            file.flush()
            with _os_errors():  # large files go up in parts, which become an object only when all are there
                self._fs.put_file(file.name, join(self._path, key))

    def spool(self) -> IO[bytes]:
        """Open a nameless local file for what is to be put later; it is gone when it is closed or its process ends.

        For a local root it lies on the root's own disk, which has to hold the object anyway.
        """
        if not self.local:
            return tempfile.TemporaryFile()
        folder = self._inside(str(self._temporary / "spool")).parent
        for _ in range(PUT_ATTEMPTS):
            with suppress(FileNotFoundError, FileExistsError):  # cleared meanwhile, as in `_put_locally`
                folder.mkdir(parents=True, exist_ok=True)
                return tempfile.TemporaryFile(dir=folder)
        raise FileNotFoundError(errno.ENOENT, f"{folder} vanishes")

    def _put_locally(self, key: str, write: Callable[[IO[bytes]], object]) -> None:
        target = self._inside(key)
        for attempt in range(PUT_ATTEMPTS):
            temporary = self._inside(str(self._temporary / uuid.uuid4().hex))
            try:
                temporary.parent.mkdir(parents=True, exist_ok=True)
                _write_to_disk(temporary, write)
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(target)
            except (FileNotFoundError, FileExistsError):
                # Another run that begins or ends has cleared the temporaries; even `mkdir` may fall over that.
                temporary.unlink(missing_ok=True)
                if attempt == PUT_ATTEMPTS - 1:
                    raise
            except BaseException:
                temporary.unlink(missing_ok=True)  # on a full disk half a file is in the way of a smaller one
                raise
            else:
                return

    def _inside(self, key: str) -> Path:
        """Return a local object's path, unless its folder, links followed, lies outside the root."""
        path = Path(self._path) / key
        if not Path(os.path.realpath(path.parent)).is_relative_to(self._real):
            raise PermissionError(
                errno.EACCES, f"{path.parent} is a link that leads out of the output root; remove it"
            )
        return path

    def read(self, key: str) -> bytes:
        """Read one object.

        Raises:
            FileNotFoundError: there is none under this key.
            OSError: storage refused or did not answer.
        """
        with _os_errors():
            return read_whole(self._fs, join(self._path, key))

    def exists(self, key: str) -> bool:
        """Whether an object is under this key."""
        with _os_errors():
            return kind(self._fs, join(self._path, key)) == "file"

    def modified(self, key: str) -> float:
        """Return when an object was last written, in seconds since 1970 by the storage's clock.

        Raises:
            FileNotFoundError: there is none under this key.
            OSError: storage refused or did not answer.
        """
        with _os_errors():
            return float(self._fs.modified(join(self._path, key)).timestamp())

    def list(self, prefix: str) -> list[str]:
        """List the keys below a prefix (a folder; empty: the root), sorted."""
        return sorted(self.walk(prefix))

    def walk(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix (a folder; empty: the root), in any order. On a disk and on S3 they are not in
        memory at once. Links to folders are keys, and are not followed.

        Raises:
            OSError: storage refused or did not answer; a folder that cannot be listed is not taken for an empty one.
        """
        base, below = len(self._path.rstrip("/")), prefix and f"{prefix}/"
        with suppress(FileNotFoundError), _os_errors():
            for name in files(self._fs, join(self._path, prefix), links=False):
                key = name[base:].lstrip("/")
                # Some stores list a folder as long as it lasts, even when it is empty.
                if key.startswith(below):
                    yield key

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of each object below a prefix (a folder)."""
        if self.local:
            return {key: (Path(self._path) / key).stat().st_size for key in self.walk(prefix)}
        with _os_errors():
            found: dict[str, Any] = self._fs.find(join(self._path, prefix), detail=True)
        keys = {name[len(self._path.rstrip("/")) :].lstrip("/"): info["size"] for name, info in found.items()}
        return {key: size for key, size in keys.items() if key.startswith(f"{prefix}/")}

    def empty(self, but: tuple[str, ...] = ()) -> bool:
        """Whether nothing lies under the root, but for temporaries and the given names."""
        try:
            with _os_errors():
                found: list[str] = self._fs.ls(self._path, detail=False)
        except FileNotFoundError:
            return True
        return all(name.rstrip("/").rsplit("/", 1)[-1] in (TEMPORARY, *but) for name in found)

    def delete(self, keys: list[str]) -> None:
        """Delete objects, missing ones too."""
        if self.local:
            for key in keys:
                self._inside(key).unlink(missing_ok=True)
            return

        def remove(key: str) -> None:
            with suppress(FileNotFoundError):  # which S3 does not raise
                self._fs.rm_file(join(self._path, key))  # `rm` would take names for patterns

        with _os_errors(), ThreadPoolExecutor(16) as threads:
            for start in range(0, len(keys), DELETED_AT_ONCE):
                list(threads.map(remove, keys[start : start + DELETED_AT_ONCE]))

    def clear(self, prefix: str) -> None:
        """Delete all objects below a prefix, with some thousands of their names in memory, and the folders they leave."""
        keys = self.walk(prefix)
        while some := list(islice(keys, DELETED_AT_ONCE)):
            self.delete(some)
        self.drop_folders(prefix)

    def drop_folders(self, prefix: str) -> None:
        """Remove the empty folders below a prefix, which may stand where the next run puts a file. Object stores have none."""
        if self.local:
            top = self._inside(f"{prefix}/any").parent
            for folder, _, _ in os.walk(top, topdown=False):
                with suppress(OSError):  # a link, or not empty
                    os.rmdir(folder)  # noqa: PTH106 (of `os.walk`)

    def clear_temporaries(self) -> None:
        """Remove what killed runs left unfinished. Object stores have nothing to remove."""
        if self.local:
            # An actor that has outlived its driver may still be writing there.
            shutil.rmtree(Path(self._path) / TEMPORARY, ignore_errors=True)

    def drop_temporaries(self) -> None:
        """Remove the folder of this object's own temporaries, and the one around it unless others use it."""
        if self.local:
            with suppress(OSError):
                self._temporary.rmdir()
                self._temporary.parent.rmdir()


@contextmanager
def replacing(uri: str) -> Generator[Path]:
    """Yield a local path to write a large file to; when that is done, it is put under `uri`, whole or not at all.

    Raises:
        OSError: storage refused or did not answer, after the retries inside.
    """
    fs, path = filesystem(absolute(uri))
    local = isinstance(fs, LocalFileSystem)
    folder = Path(path).parent if local else Path(tempfile.mkdtemp(prefix="stylize-batch-"))
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
        if local:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # as in `_write_to_disk`
            temporary.replace(path)
        else:
            with _os_errors():
                fs.put_file(str(temporary), path)
    finally:
        temporary.unlink(missing_ok=True)
        if not local:
            folder.rmdir()


def _write_to_disk(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    # Without the wait, a power cut may leave the name of a file without its bytes.
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _os_errors() -> Generator[None]:
    """Turn what storage libraries raise (missing credentials, unreachable hosts) into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
