"""Names of the pictures a manifest asks for: those of the source tree, made safe, short and distinct.

File systems may ignore case and write accents in two ways, so names that differ only so count as one.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from stylize_batch.errors import UsageError
from stylize_batch.images.decode import SUFFIXES
from stylize_batch.images.encode import EXTENSIONS, FORMAT_OF_EXTENSION

MAX_NAME, MAX_KEY = 240, 800
"""Bytes in one name of a key, and in a key: what file systems and object stores hold, extensions added."""

MARK = 17
"""Bytes that `marked` adds."""

MAX_STYLE_NAME = 64
"""Bytes of a style's name in a picture's."""

METADATA = "metadata.parquet"
"""Name of a file that a run writes beside its pictures, and so of no folder of theirs."""

_CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories no key may have characters of: controls, surrogates, line and paragraph separators."""

VERSION_MARK = "?versionId="
"""What s3fs takes for the end of an object's name, in every path."""

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\\\ud800-\udfff]|(?<=^[A-Za-z]):|\?(?=versionId=)")
"""What `checked_key` refuses in a name: controls, separators of lines, backslashes, the colon of a drive, S3's mark of a
version."""


def hashes(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return BLAKE2b-64 of each text, little-endian: equal on every machine."""
    digests = (
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def digest(text: str) -> str:
    """Return BLAKE2b-64 of a text as 16 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def checked_key(key: str) -> str:
    """Return a key for use under a root. It is taken literally: nothing in it is decoded, expanded or normalised.

    Raises:
        UsageError: it is empty, absolute, a URI, starts with a drive letter, has an empty, `.` or `..` segment, a
            backslash, a control character or S3's mark of a version, or is too long.
    """
    parts = key.split("/")
    hostile = (
        any(part in ("", ".", "..") for part in parts)
        or key.startswith("~")
        or re.match(r"[A-Za-z]:", key)
        or "\\" in key
        or VERSION_MARK in key
        or (not key.isprintable() and any(unicodedata.category(each) in _CONTROL for each in key))
    )
    if hostile:
        raise UsageError(
            f"output key {key!r} would leave the output root or is no plain path; use a relative one such as 'a/b.jpg'"
        )
    if len(key.encode()) > MAX_KEY or any(len(part.encode()) > MAX_NAME for part in parts):
        raise UsageError(
            f"output key {key[:40]!r}… is too long; at most {MAX_NAME} bytes a name, {MAX_KEY} in all"
        )
    return key


def key_below(uri: str, root: str) -> str:
    """Return an absolute URI's path below a root, or without its protocol where it lies elsewhere."""
    prefix = root.rstrip("/") + "/"
    return uri[len(prefix) :] if uri.startswith(prefix) else uri.partition("://")[2] or uri.lstrip("/")


def folded(name: str) -> str:
    """Return what is equal for names that some file system takes for one."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def safe_key(key: str, room: int = 0) -> str:
    """Return a relative path as it can stand below any root, with room for more bytes in its name.

    A path that is safe already stays as it is. Any other loses what climbs, hides or breaks a terminal, is cut to
    length, and is marked, so that it does not become the name of another.
    """
    plain = "/".join(part for part in key.split("/") if part not in ("", "."))
    folder, _, name = plain.rpartition("/")
    folder, name = _safe_folder(folder), _safe_part(name)
    safe = f"{folder}/{name}" if folder else name
    if safe == plain and len(name.encode()) + room <= MAX_NAME and len(safe.encode()) + room <= MAX_KEY:
        return safe
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 (a name, not a path of this machine)
    suffix = shortened(suffix, 16)
    name = marked(shortened(stem, MAX_NAME - room - MARK - len(suffix.encode())), suffix, key)
    while len(folder.encode()) > MAX_KEY - MAX_NAME - 1:
        folder = folder.rpartition("/")[0]
    return f"{folder}/{name}" if folder else name


def marked(stem: str, suffix: str, key: str) -> str:
    """Return a name that is no other key's: the stem, 16 hex digits of the key's hash, the suffix."""
    return f"{stem}-{digest(key)}{suffix}"


def shortened(text: str, limit: int) -> str:
    """Cut a text to so many bytes of UTF-8."""
    return text.encode()[:limit].decode("utf-8", "ignore")


def picture_stem(key: str) -> tuple[str, str]:
    """Split a safe key into stem and extension; the extension is empty where the job's format must decide it."""
    stem, suffix = os.path.splitext(key)  # noqa: PTH122
    if suffix.lower() in FORMAT_OF_EXTENSION:
        return stem, suffix
    if suffix.lower() in SUFFIXES and os.path.splitext(stem)[1].lower() not in FORMAT_OF_EXTENSION:  # noqa: PTH122
        return stem, ""
    return key, ""


def claims(stem: str, suffix: str) -> list[str]:
    """Return the names, folded, that a picture may get: one, or one for each format a job can have."""
    return [folded(stem + each) for each in ([suffix] if suffix else EXTENSIONS.values())]


def style_names(keys: Sequence[str]) -> list[str]:
    """Return a distinct short name for each style: its stem, with a hash where several have one.

    Names hold neither `-` nor `.`, so that what precedes and follows them in a picture's name is certain.
    """
    stems = [shortened(_style_stem(key), MAX_STYLE_NAME - MARK) for key in keys]
    used = Counter(map(folded, stems))
    return [
        stem if used[folded(stem)] == 1 else f"{stem}_{digest(key)}"
        for stem, key in zip(stems, keys, strict=True)
    ]


def _style_stem(key: str) -> str:
    name = key.rpartition("/")[2]
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return re.sub(r"\W+", "_", stem if suffix.lower() in SUFFIXES else name).strip("_") or "style"


@functools.lru_cache(maxsize=4096)
def _safe_folder(folder: str) -> str:
    parts = [shortened(_safe_part(part), MAX_NAME) for part in folder.split("/") if part]
    return "/".join(part.replace(".", "_") if _is_a_files(part.lower()) else part for part in parts)


def _is_a_files(name: str) -> bool:
    """Whether a folder's name could be that of a file in an output root: of a picture, or of what a run puts beside them."""
    return name.endswith(SUFFIXES) or name == METADATA


def _safe_part(part: str) -> str:
    safe = _UNSAFE.sub("_", part)
    return "_" + safe.lstrip("~.") if safe.startswith("~") or safe in ("", ".", "..") else safe
