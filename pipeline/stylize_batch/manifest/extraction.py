"""Images on their way out of an archive: under distinct safe names, some at a time, within what an archive may hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from stylize_batch.manifest.items import LeftOut
from stylize_batch.manifest.naming import MARK, folded, marked, safe_key
from stylize_batch.root import Root
from stylize_batch.storage import join

MAX_MEMBER = 256 << 20
"""Bytes of one member; a larger one is left out."""

SLACK = 64 << 20
"""Bytes a tar file may hold between two members: headers, or what is left of a damaged member."""

MAX_EXPANSION, LEAST = 200, 1 << 30
"""A compressed archive may hold so many times its own bytes (and a gigabyte in any case)."""

PUT_THREADS = 16
PUTS = 64
"""Images in memory at once."""

TOO_MUCH = "it expands to too many times its size"


def most_bytes(size: int | None) -> int:
    """Return the bytes that a compressed archive of a size may hold."""
    return max(LEAST, MAX_EXPANSION * (size or 0))


class Extraction:
    """Writes images under distinct safe names, some at a time, and keeps count of them."""

    def __init__(self, root: Root, folder: str, archive: str) -> None:
        self.keys: list[str] = []
        self.objects: list[str] = []
        self.beside = 0
        self.unused, self.alone = LeftOut(), LeftOut()
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._root, self._folder, self._archive = root, folder, archive
        self._seen: set[int] = set()
        self._pending: list[tuple[str, bytes]] = []

    def note(self, what: str) -> None:
        """Remember a line for the user."""
        self.notes.append(f"{self._archive}: {what}")

    def problem(self, what: str) -> None:
        """Remember what could not be unpacked."""
        self.problems.append(f"{self._archive}: {what}")

    def fits(self, what: str, size: int) -> bool:
        """Whether so many bytes may be taken; if not, they are a problem."""
        if size > MAX_MEMBER:
            self.problem(f"{what} has {size} bytes, the limit is {MAX_MEMBER}; left out")
        return size <= MAX_MEMBER

    def add(self, name: str, data: bytes) -> None:
        """Take an image."""
        key = safe_key(name, room=MARK)
        if hash(folded(key)) in self._seen:
            stem, dot, suffix = key.rpartition(".")
            key = marked(stem or suffix, dot + suffix if stem else "", f"{name}\0{len(self.keys)}")
        self._seen.add(hash(folded(key)))
        self.keys.append(key)
        self.objects.append(join(self._folder, key))
        self._pending.append((self.objects[-1], data))
        if len(self._pending) >= PUTS or sum(len(each) for _, each in self._pending) > SLACK:
            self.put()

    def put(self) -> None:
        """Write what has been taken."""
        with ThreadPoolExecutor(PUT_THREADS) as threads:
            list(threads.map(self._root.put, *zip(*self._pending, strict=True)))
        self._pending.clear()
