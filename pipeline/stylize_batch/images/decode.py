"""Decode what users have into upright sRGB arrays: orientation, colour, transparency, size.

docs/images.md says what becomes of each kind of file.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, ImageCms

from stylize_batch.errors import RowError, counted

Array = npt.NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp")
"""File names taken for images when a folder is listed."""

BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
"""TIFF's tags that say how many gray levels there are and what they mean, and the value of the latter where they are
inverted; Pillow heeds them up to 8 bits only."""

MAX_PIXELS = 200_000_000
"""Limit, before and after resizing: refuses decompression bombs."""

MAX_SCANS = 50
"""Scans that a JPEG of the most pixels may have, and a smaller one more: each takes time, and few bytes."""

FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "GIF": ".gif", "BMP": ".bmp"}
"""Formats that are decoded, by Pillow's names, and the ending of a file that has none."""

_SRGB = ImageCms.createProfile("sRGB")
_JPEG_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xda-\xfe])(..)(.{6})", re.DOTALL)
"""Marker, length, and the bytes that say how many components a frame or a scan has."""

_LOST_DATA = re.compile(r"premature end|bad (Huffman|arithmetic) code|instead of RST", re.IGNORECASE)
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""

# What Pillow warns of or logs is either put right here or refused.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Pillow refuses twice as many pixels as this, for the whole process: 179 megapixels if left alone. It gets the limit
# that is told here rather than none, for the sake of who else uses it, and since opening a WebP takes its canvas.
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2)


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: uint8 RGB [H, W, 3], in memory of its own.
        width: before it was cropped, and upright.
        height: likewise.
    """

    pixels: Array
    width: int
    height: int


class Budget:
    """An amount that threads share; who wants more than there is waits."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._changed = threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Generator[None]:
        """Hold an amount inside the block; all of it, if more is asked for."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


pixels_at_once = Budget(MAX_PIXELS)
"""Pixels that the threads of a process decode at the same time: together as many as the largest image alone."""


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Return the size with the shorter side at `size` and the longer at int(size · long / short)."""
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    return (size, scaled) if width <= height else (scaled, size)


def crop_corner(width: int, height: int, crop: int) -> tuple[int, int]:
    """Return left and top of the square cut from the centre."""
    return (width - crop) // 2, (height - crop) // 2


def sides_of(data: bytes) -> tuple[int, int]:
    """Return an image's shorter and longer side, from the file's head alone. Which is the width, decoding tells.

    Raises:
        RowError: `Undecodable` or `TooLarge`.
    """
    with _opened(data) as image:
        return min(image.size), max(image.size)


def decode(data: bytes, *, size: int | None = None, crop: int | None = None, min_side: int = 1) -> Array:
    """Decode an image file to uint8 RGB [H, W, 3], as `decode_whole`."""
    return decode_whole(data, size=size, crop=crop, min_side=min_side).pixels


def decode_whole(
    data: bytes, *, size: int | None = None, crop: int | None = None, min_side: int = 1
) -> Decoded:
    """Decode an image file, and say how large it was before the crop.

    EXIF orientation is applied, ICC profiles are converted to sRGB, transparency is laid over white, and
    of an animation the first frame is taken.

    Args:
        data: the file's bytes.
        size: length of the shorter side afterwards, enlarging too (Pillow's BILINEAR); None keeps the size.
        crop: side of the square cut from the centre after resizing.
        min_side: refuse images with a shorter side, after resizing, than this.

    Raises:
        RowError: `Undecodable`, `TooLarge`, `TooSmall` or `OutOfMemory`.
    """
    with _opened(data) as image:
        width, height = image.size
        target = (width, height) if size is None else resized(width, height, size)
        _check_pixels(*target)
        _check_side(min(*target), max(min_side, crop or 0))
        with _loaded(data, image, target):
            if image.size == (height, width):  # loading turns a TIFF, of whose XMP its size knows nothing
                target = target[1], target[0]
            rgb = _srgb(image)
            if size is not None:
                rgb = rgb.resize(target, Image.Resampling.BILINEAR)
            rgb = _upright(rgb, image)
            width, height = rgb.size
            if crop is not None:
                left, top = crop_corner(width, height, crop)
                rgb = rgb.crop((left, top, left + crop, top + crop))
            return Decoded(np.array(rgb), width, height)


@contextmanager
def loaded(data: bytes) -> Generator[Image.Image]:
    """Give an image file's pixels as they are stored, for use inside the block, where they count as being decoded.

    Raises:
        RowError: `Undecodable`, `TooLarge` or `OutOfMemory`, also for what fails inside the block.
    """
    with _opened(data) as image, _loaded(data, image, image.size):
        yield image


def _opened(data: bytes) -> Image.Image:
    """Read an image's head, and refuse it if it has too many pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=[*FORMATS])
    except Exception as error:
        raise _undecodable(data, error) from None
    _check_pixels(*image.size)
    return image


@contextmanager
def _loaded(data: bytes, image: Image.Image, target: tuple[int, int]) -> Generator[None]:
    """Load an opened image's pixels, of which something of the target size is made inside the block."""
    width, height = image.size
    try:
        jpeg = image.format in ("JPEG", "MPO")
        if jpeg:
            # Decode a large JPEG at 1/2, 1/4 or 1/8, but never below twice the target: BILINEAR does the rest.
            image.draft(None, (2 * target[0], 2 * target[1]))
        held = image.width * image.height
        if jpeg and not _in_one_scan(data):
            held = width * height  # libjpeg keeps all coefficients until the last scan, at any scale
            _refuse_many_scans(data, held)
        with pixels_at_once.take(max(held, target[0] * target[1])):
            if jpeg:
                _refuse_damaged_jpeg(data)
            image.load()
            yield
    except RowError:
        raise
    except Exception as error:
        raise _undecodable(data, error) from None


def _in_one_scan(data: bytes) -> bool:
    """Whether a JPEG is sequential and its first scan has all components, so that libjpeg reads no other.

    False also for one whose segments do not follow each other without a gap.
    """
    place, components = 2, None
    while segment := _JPEG_SEGMENT.match(data, place):
        marker, length, head = segment.groups()
        if marker == b"\xda":
            return head[0] == components
        if marker in (b"\xc0", b"\xc1", b"\xc9"):  # the sequential frames
            components = head[5]
        place += 2 + int.from_bytes(length, "big")
    return False


def _refuse_many_scans(data: bytes, pixels: int) -> None:
    """Raise RowError for a JPEG that would be read for minutes."""
    scans = data.count(b"\xff\xda")
    if scans * pixels > MAX_SCANS * MAX_PIXELS:
        raise RowError("Undecodable", f"{scans} scans, of which most hold nothing")


def _refuse_damaged_jpeg(data: bytes) -> None:
    """Raise RowError for a JPEG with lost data, where libjpeg only warns and fills in gray, and Pillow is silent."""
    try:
        # An eighth of each side is enough: all coded data is read whatever the scale.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:  # also for what this decoder cannot do and Pillow may
        if _LOST_DATA.search(str(error)):
            raise RowError("Undecodable", f"damaged: {error}") from None


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise RowError("TooLarge", f"{width}×{height} pixels, the limit is {MAX_PIXELS / 1e6:g} megapixels")


def _check_side(side: int, minimum: int) -> None:
    if side < minimum:
        raise RowError(
            "TooSmall", f"the shorter side is {counted(side, 'pixel')}, at least {minimum} are needed"
        )


def _undecodable(data: bytes, error: Exception) -> RowError:
    if not data:
        return RowError("Undecodable", "the file is empty")
    if isinstance(error, MemoryError):
        return RowError("OutOfMemory", "the image does not fit into memory")
    if isinstance(error, Image.DecompressionBombError):
        return RowError("TooLarge", str(error).partition(",")[0])
    if isinstance(error, Image.UnidentifiedImageError):
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF:  # telephones' own, under whatever name
            return RowError("Undecodable", "HEIC and AVIF are not read; convert it to JPEG or PNG")
        return RowError("Undecodable", "not an image in a known format")
    return RowError("Undecodable", f"{type(error).__name__}: {error}")


def to_srgb(image: Image.Image) -> Image.Image:
    """Return an image upright, in RGB: orientation applied, transparency over white, profile converted.

    Raises:
        ValueError: pixels are floating-point, signed or 32-bit, which have no defined range; or what Pillow raises for
            damage.
    """
    return _upright(_srgb(image), image)


def _upright(picture: Image.Image, image: Image.Image) -> Image.Image:
    """Turn a picture as the EXIF orientation of the image it comes from says; a broken one says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return picture
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _srgb(image: Image.Image) -> Image.Image:
    info = image.info
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(
            "floating-point, signed and 32-bit pixels have no defined range; convert them to 8 or 16 bits"
        )
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):  # deep gray, which Pillow would clip
        return _apply_profile(_eight_bits(image), info)
    if image.has_transparency_data:
        mode = "L" if image.mode in ("L", "LA") else "RGB"  # a gray profile fits gray pixels alone
        layer = image if image.mode == f"{mode}A" else image.convert(f"{mode}A")
        image = Image.new(mode, layer.size, "white")
        image.paste(layer, mask=layer)
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    return _apply_profile(image, info)


def _eight_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode == "I":
        pixels = pixels.clip(0, 65535).astype(np.uint16)
    if image.format == "TIFF":
        tags = cast("Any", image).tag_v2
        if tags.get(BITS_PER_SAMPLE) == (12,):
            pixels = pixels << 4 | pixels >> 8  # 0..4095 as 0..65535
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            pixels = 65535 - pixels
    gray = (pixels // 257).astype(np.uint8)
    gray += pixels % 257 > 128
    transparent = image.info.get("transparency")  # the one level that is
    if isinstance(transparent, int):
        gray[pixels == transparent] = 255
    return Image.fromarray(gray)


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
    return image if image.mode == "RGB" else image.convert("RGB")
