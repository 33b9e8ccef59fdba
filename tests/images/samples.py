"""Image files made by code: what cameras, scanners and editors write, and what broken ones do."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from stylize_batch.images.decode import Array


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    """Return an image every pixel of which says where it is."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], 2)
    return Image.fromarray(pixels.astype(np.uint8))


def noise(width: int = 160, height: int = 120) -> Image.Image:
    """Return an image without any gray area."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    data: bytes,
    *,
    interlaced: bool = False,
    extra: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return a PNG file of scanlines as they are, filter bytes included; `colour` 0 is gray, 2 RGB, 3 palette, 4 LA."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def interlaced_png(pixels: Array) -> bytes:
    """Return uint8 RGB [H, W, 3] as a PNG in seven passes (Adam7)."""
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    data = b"".join(
        b"\0" + row.tobytes()
        for x, y, step_x, step_y in passes
        for row in pixels[y::step_y, x::step_x]
        if row.size
    )
    height, width = pixels.shape[:2]
    return png(width, height, 8, 2, data, interlaced=True)


def gray_tiff(data: bytes, width: int, *, bits: int, sample: int = 1, order: str = "<") -> bytes:
    """Return a TIFF file of one row; its samples are 1 unsigned, 2 signed, 3 floating-point."""
    values = [
        (256, width), (257, 1), (258, bits), (259, 1), (262, 1), (273, 122), (277, 1), (279, len(data)), (339, sample),
    ]  # fmt: skip
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in values)
    head = struct.pack(f"{order}HIH", 42, 8, len(values))
    return (b"II" if order == "<" else b"MM") + head + entries + bytes(4) + data


def jpeg_in_scans(image: Image.Image) -> bytes:
    """Return a gray image as a sequential JPEG of three components that are alike, each in a scan of its own."""
    data = encoded(image.convert("L"), "JPEG")
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    components = b"".join(bytes([name, 0x11, 0]) for name in (1, 2, 3))
    coded = data[scan + 10 : -2]
    return (
        data[:frame]
        + struct.pack(">HHB", 0xFFC0, 17, 8)
        + data[frame + 5 : frame + 9]  # height and width
        + b"\3"
        + components
        + data[frame + 13 : scan]
        + b"".join(struct.pack(">HH6B", 0xFFDA, 8, 1, name, 0, 0, 63, 0) + coded for name in (1, 2, 3))
        + b"\xff\xd9"
    )


def samples() -> dict[str, bytes]:
    """Return a small sound file of every kind that is read."""
    image, blurred = noise(48, 36), gradient(48, 36)
    frames: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(90)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "jpeg": encoded(image, "JPEG"),
        "jpeg-420": encoded(blurred, "JPEG", subsampling=2, exif=exif.tobytes()),
        "jpeg-progressive": encoded(image, "JPEG", progressive=True),
        "jpeg-in-scans": jpeg_in_scans(image),
        "jpeg-gray": encoded(image.convert("L"), "JPEG"),
        "jpeg-cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "jpeg-restarts": encoded(image, "JPEG", restart_marker_rows=1),
        "png": encoded(image),
        "png-palette": encoded(image.quantize(16), transparency=3),
        "png-16-bit": encoded(Image.fromarray(np.arange(48 * 36, dtype=np.uint16).reshape(36, 48) * 30)),
        "png-1-bit": encoded(image.convert("1")),
        "png-rgba": encoded(image.convert("RGBA")),
        "png-interlaced": interlaced_png(np.asarray(image)),
        "png-animated": encoded(image, **frames),
        "gif": encoded(image, "GIF", **frames),
        "webp": encoded(image, "WEBP"),
        "webp-lossless": encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "webp-animated": encoded(image, "WEBP", **frames),
        "bmp": encoded(image, "BMP"),
        "bmp-palette": encoded(image.quantize(16), "BMP"),
        "tiff": encoded(image, "TIFF", **frames),
        "tiff-float": encoded(Image.fromarray(np.ones((36, 48), np.float32)), "TIFF"),
    }
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        files[f"tiff-{compression}"] = encoded(image, "TIFF", compression=compression)
    files["tiff-fax"] = encoded(image.convert("1"), "TIFF", compression="group4")
    return files


def bombs() -> dict[str, bytes]:
    """Return small files of very many pixels."""
    huge = Image.new("1", (30_000, 30_000))
    files = {"PNG": encoded(huge), "TIFF": encoded(huge, "TIFF", compression="group4")}
    gif = bytearray(encoded(Image.new("P", (10, 10)), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)  # the canvas
    frame = bytearray(encoded(Image.new("P", (10, 10)), "GIF"))
    place = frame.index(b"\x2c\0\0\0\0\x0a\0\x0a\0")
    frame[place + 5 : place + 9] = struct.pack("<HH", 65_535, 65_535)  # a frame beyond its canvas
    webp = bytearray(encoded(Image.new("RGB", (10, 10)), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    bmp = bytearray(encoded(Image.new("1", (10, 10)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 2_000_000_000, 2_000_000_000)
    return {**files, "GIF": bytes(gif), "GIF frame": bytes(frame), "WEBP": bytes(webp), "BMP": bytes(bmp)}
