"""Encode arrays as image files."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import BinaryIO, Literal

from PIL import Image

from stylize_batch.errors import RowError
from stylize_batch.images.decode import Array

Format = Literal["jpeg", "png", "webp"]

EXTENSIONS: dict[Format, str] = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
"""The extension a format's files get."""

FORMAT_OF_EXTENSION: dict[str, Format] = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
"""The format an explicit extension asks for."""

MAX_SIDE: dict[Format, int] = {"jpeg": 65_500, "png": 2**31 - 1, "webp": 16_383}
"""Longest side a format's files can have, pixels."""

FULL_CHROMA_QUALITY = 90
"""From this JPEG quality up chroma is not subsampled (4:4:4)."""


def encode(image: Array, format: Format, quality: int) -> bytes:
    """Encode uint8 RGB [H, W, 3] as a file; `quality` (1..100) is ignored by PNG, which is lossless.

    Raises:
        RowError: `TooLarge`, when the format cannot hold so long a side; `Unencodable`.
    """
    longest = max(image.shape[:2])
    if longest > MAX_SIDE[format]:
        raise RowError("TooLarge", f"{longest} pixels a side, {format} holds {MAX_SIDE[format]}; use png")
    picture = Image.fromarray(image)
    try:
        if format == "jpeg":
            return _jpeg(picture, quality)
        buffer = io.BytesIO()
        if format == "webp":
            picture.save(buffer, "WEBP", quality=quality)
        else:
            picture.save(buffer, "PNG", compress_level=4)
    except MemoryError:
        raise RowError("OutOfMemory", f"the picture does not fit into memory as {format}") from None
    except (OSError, ValueError) as error:
        raise RowError("Unencodable", f"{format}: {error}") from None
    return buffer.getvalue()


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    # Into a file, which only memory holds: Pillow keeps Python's lock, and so all other threads waiting, while it
    # encodes into anything else.
    if file := _file_in_memory():
        # The limit of a file's size is for this one, too, and no fault of the picture.
        with suppress(OSError):
            return _jpeg_into(file, picture, quality)
    return _jpeg_into(io.BytesIO(), picture, quality)


def _jpeg_into(file: BinaryIO, picture: Image.Image, quality: int) -> bytes:
    subsampling = 0 if quality >= FULL_CHROMA_QUALITY else 2
    with file:
        picture.save(file, "JPEG", quality=quality, subsampling=subsampling)
        file.seek(0)
        return file.read()


def _file_in_memory() -> BinaryIO | None:
    """Return a file of the system's that is nowhere but in memory, where the system, this Python and its limits have one."""
    try:
        return open(os.memfd_create("picture"), "w+b", buffering=0)  # noqa: PTH123 (no path)
    except (AttributeError, OSError):
        return None
