"""Images of a tar file, and what the members beside them say of each (WebDataset)."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zlib
from typing import Any

import pyarrow as pa

from stylize_batch import parquet
from stylize_batch.images.decode import SUFFIXES
from stylize_batch.manifest import extraction
from stylize_batch.manifest.extraction import TOO_MUCH, Extraction, most_bytes


def extract_members(handle: Any, size: int | None, compressed: bool, out: Extraction) -> pa.Table:
    """Extract the images of a tar file; returns columns made of the members beside them (WebDataset).

    Members whose names agree up to the first dot are one sample: `.cls` is its label, the fields of `.json` and the
    text of `.txt` are columns.
    """
    rows: list[dict[str, Any]] = []
    sample = _Sample("")
    headers = _header_class()
    total = most_bytes(size) if compressed else None
    stream: Any = _Bounded(gzip.GzipFile(fileobj=handle) if compressed else handle, total)
    try:
        # Damaged headers are skipped and remembered: what follows them is still there.
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=headers, ignore_zeros=True) as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"].clear()  # tarfile keeps all it has seen
                stream.allow(member.size + extraction.SLACK)
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                suffix = suffix.lower()
                is_image = f".{suffix}".endswith(SUFFIXES)
                if not stem or member.isdir():
                    continue
                if not (is_image or suffix in _SIDECARS):
                    out.unused.add(member.name)
                    continue
                if not member.isfile() or member.issparse():
                    out.problem(f"{member.name} is a link, a device or sparse, and no plain file; left out")
                    continue
                if not out.fits(member.name, member.size):
                    continue
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                if f"{folder}/{stem}" != sample.base:
                    rows += sample.extract(out)
                    sample = _Sample(f"{folder}/{stem}")
                if is_image:
                    sample.images.append((member.name, data))
                    # More than memory shall hold: numbered frames, most likely, and no sample.
                    if len(sample.images) >= extraction.PUTS or sample.size > extraction.MAX_MEMBER:
                        rows += sample.extract(out)
                else:
                    sample.add_sidecar(member.name, suffix, data, out)
    except (tarfile.TarError, ValueError, EOFError, zlib.error, gzip.BadGzipFile, _TooMuchError) as error:
        out.problem(f"is damaged ({error or type(error).__name__}); what came before is kept")
    else:
        if headers.damaged:
            out.problem("is damaged inside; what could be read is kept")
        elif not headers.ended:
            out.problem("has no end mark and may be cut off; what could be read is kept")
    rows += sample.extract(out)
    return parquet.as_columns(rows)


_SIDECARS = ("cls", "json", "txt")


class _Sample:
    """Members of a tar file that belong together."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.images: list[tuple[str, bytes]] = []
        self._columns: dict[str, Any] = {}
        self._fields: dict[str, Any] = {}
        self._members: dict[str, Any] = {}
        self._sidecars: list[str] = []
        self._has_images = False

    @property
    def size(self) -> int:
        """Bytes of the images it holds."""
        return sum(len(data) for _, data in self.images)

    def add_sidecar(self, name: str, suffix: str, data: bytes, out: Extraction) -> None:
        """Read what a member says of the images beside it."""
        self._sidecars.append(name)
        try:
            text = data.decode().strip()
            if suffix == "cls":
                self._members["label"] = int(text) if re.fullmatch(r"-?\d+", text) else text
            elif suffix == "txt":
                self._members["txt"] = text
            else:
                found = json.loads(text)
                json.dumps(found, ensure_ascii=False).encode()  # or no column could hold it
                self._fields |= found if isinstance(found, dict) else {"json": found}
        except (ValueError, RecursionError) as error:
            out.problem(f"{name} cannot be read ({error}); its image is kept")
        # A member of its own wins over a field, whichever comes first.
        differing = {
            f"source_{field}": self._fields[field]
            for field, value in self._members.items()
            if self._fields.get(field) not in (None, value)
        }
        self._columns |= differing | self._fields | self._members  # in place: images handed over have it, too

    def extract(self, out: Extraction) -> list[dict[str, Any]]:
        """Hand the images over; returns the columns of each."""
        self._has_images |= bool(self.images)
        if not self._has_images:
            for name in self._sidecars:
                out.alone.add(name)
        chosen = self.images
        if self._sidecars:  # `0001.seg.png` beside `0001.jpg` says something of it, too
            chosen = [each for each in chosen if each[0].rpartition("/")[2].count(".") == 1] or chosen
        for name, data in chosen:
            out.add(name, data)
        out.beside += len(self.images) - len(chosen)
        self.images = []
        return [self._columns] * len(chosen)


def _header_class() -> Any:
    class Header(tarfile.TarInfo):
        """Remembers what tarfile passes over in silence."""

        damaged = False
        ended = False

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError:
                if buf and not any(buf):
                    cls.ended = True
                elif buf and not cls.ended:
                    cls.damaged = True
                raise

    return Header


class _TooMuchError(Exception):
    """An archive holds more than it should."""


class _Bounded:
    """A stream that gives no more than has been allowed, so that neither headers nor compression fill the memory."""

    def __init__(self, file: Any, total: int | None) -> None:
        self._file, self._total, self._left = file, total, extraction.SLACK

    def allow(self, size: int) -> None:
        """Allow so many bytes from here on."""
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """Read as a file does."""
        data = self._file.read(size)
        self._left -= len(data)
        if self._total is not None:
            self._total -= len(data)
        if self._left < 0:
            raise _TooMuchError("no readable member for a long stretch")
        if self._total is not None and self._total < 0:
            raise _TooMuchError(TOO_MUCH)
        return data
