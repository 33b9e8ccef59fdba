"""Decode what users have into upright sRGB arrays: orientation, colour, transparency, size."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps

from stylize_batch.errors import RowError

Array = npt.NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp")
"""File names taken for images when a folder is listed."""

MAX_PIXELS = 200_000_000
"""Default limit, before and after resizing: refuses decompression bombs."""

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
_SRGB = ImageCms.createProfile("sRGB")


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Return the size with the shorter side at `size` and the longer at int(size · long / short)."""
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    return (size, scaled) if width <= height else (scaled, size)


def decoded_size(data: bytes, size: int | None = None) -> tuple[int, int]:
    """Return the upright width and height `decode` gives an image before it crops, from the file's head alone.

    Raises:
        RowError: `Undecodable`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # stored on its side
                width, height = height, width
    except Exception as error:
        raise _undecodable(data, error) from None
    return (width, height) if size is None else resized(width, height, size)


def decode(
    data: bytes,
    *,
    size: int | None = None,
    crop: int | None = None,
    min_side: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> Array:
    """Decode an image file to uint8 RGB [H, W, 3].

    EXIF orientation is applied, ICC profiles are converted to sRGB, transparency is laid over white, and
    of an animation the first frame is taken.

    Args:
        data: the file's bytes.
        size: length of the shorter side afterwards, enlarging too (Pillow's BILINEAR); None keeps the size.
        crop: side of the square cut from the centre after resizing.
        min_side: refuse images with a shorter side, after resizing, than this.
        max_pixels: refuse images with more pixels, before or after resizing.

    Raises:
        RowError: `Undecodable`, `TooLarge` or `TooSmall`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:
        raise _undecodable(data, error) from None
    with image:
        width, height = image.size
        _check_pixels(width, height, max_pixels)
        target = (width, height) if size is None else resized(width, height, size)
        _check_pixels(*target, max_pixels)
        _check_side(min(*target), max(min_side, crop or 0))
        try:
            # Decode a large JPEG at 1/2, 1/4 or 1/8, but never below twice the target: BILINEAR does the rest.
            image.draft(None, (2 * target[0], 2 * target[1]))
            if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # stored on its side
                target = (target[1], target[0])
            rgb = to_srgb(image)
            if size is not None:
                rgb = rgb.resize(target, Image.Resampling.BILINEAR)
        except Exception as error:
            raise _undecodable(data, error) from None
    if crop is not None:
        left, top = (rgb.width - crop) // 2, (rgb.height - crop) // 2
        rgb = rgb.crop((left, top, left + crop, top + crop))
    return np.asarray(rgb)


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise RowError("TooLarge", f"{width}×{height} pixels, the limit is {limit / 1e6:g} megapixels")


def _check_side(side: int, minimum: int) -> None:
    if side < minimum:
        raise RowError("TooSmall", f"the shorter side is {side} pixels, at least {minimum} are needed")


def _undecodable(data: bytes, error: Exception) -> RowError:
    if not data:
        return RowError("Undecodable", "the file is empty")
    if isinstance(error, Image.DecompressionBombError):
        return RowError("TooLarge", str(error))
    if isinstance(error, Image.UnidentifiedImageError):
        return RowError("Undecodable", "not an image in a known format")
    return RowError("Undecodable", f"{type(error).__name__}: {error}")


def to_srgb(image: Image.Image) -> Image.Image:
    """Return an image upright, in RGB: orientation applied, transparency over white, profile converted.

    Raises:
        ValueError: pixels are floating-point, which have no defined range; or what Pillow raises for damage.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):  # 16-bit gray, which Pillow would clip
        gray = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray((gray / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return _apply_profile(Image.alpha_composite(white, image).convert("RGB"), image.info)
    if image.mode in ("P", "1", "LA", "PA"):
        image = image.convert("RGB")
    return _apply_profile(image, image.info)


def _apply_profile(image: Image.Image, info: dict[Any, Any]) -> Image.Image:
    profile = info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            converted = None  # a broken or foreign profile: the pixels are still an image
        if converted is not None:
            return converted
    return image.convert("RGB")
