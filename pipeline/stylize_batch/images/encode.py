"""Encode arrays as image files."""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image

from stylize_batch.images.decode import Array

Format = Literal["jpeg", "png", "webp"]

EXTENSIONS: dict[Format, str] = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
"""The extension a format's files get."""

FORMAT_OF_EXTENSION: dict[str, Format] = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
"""The format an explicit extension asks for."""

FULL_CHROMA_QUALITY = 90
"""From this JPEG quality up chroma is not subsampled (4:4:4)."""


def encode(image: Array, format: Format, quality: int) -> bytes:
    """Encode uint8 RGB [H, W, 3] as a file; `quality` (1..100) is ignored by PNG, which is lossless."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    if format == "jpeg":
        picture.save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= FULL_CHROMA_QUALITY else 2)
    elif format == "webp":
        picture.save(buffer, "WEBP", quality=quality)
    else:
        picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
