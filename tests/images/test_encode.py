"""The files the encoder writes."""

from __future__ import annotations

import errno
import io
import os
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from stylize_batch.errors import RowError
from stylize_batch.images.decode import decode
from stylize_batch.images.encode import Format, encode
from stylize_batch.images.sheet import contact_sheet

RED_BLUE = np.zeros((16, 16, 3), np.uint8)
RED_BLUE[:, ::2, 0] = RED_BLUE[:, 1::2, 2] = 255


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_every_format_opens_again_with_its_size(format: Format) -> None:
    with Image.open(io.BytesIO(encode(RED_BLUE[:10], format, 90))) as image:
        assert image.format == format.upper()
        assert image.size == (16, 10)


def test_png_is_lossless() -> None:
    assert np.array_equal(decode(encode(RED_BLUE, "png", 1)), RED_BLUE)


@pytest.mark.parametrize(("quality", "sampling"), [(95, 0), (90, 0), (89, 2)])
def test_high_quality_jpeg_keeps_full_chroma(quality: int, sampling: int) -> None:
    with Image.open(io.BytesIO(encode(RED_BLUE, "jpeg", quality))) as image:
        assert JpegImagePlugin.get_sampling(image) == sampling


@pytest.mark.parametrize(
    "kind", ["as here", "without the call", "with no file left", "with a limit of a file's size"]
)
def test_a_jpeg_is_the_one_that_pillow_writes_into_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "without the call":
        monkeypatch.delattr(os, "memfd_create")
    elif kind == "with no file left":
        monkeypatch.setattr(
            os, "memfd_create", Mock(side_effect=OSError(errno.EMFILE, "Too many open files"))
        )
    elif kind == "with a limit of a file's size":  # as of `ulimit -f`, which is for files in memory, too
        monkeypatch.setattr(os, "memfd_create", lambda name: os.open("/dev/full", os.O_RDWR))
    noise = np.random.default_rng(0).integers(0, 256, (300, 301, 3), np.uint8)  # larger than its buffer
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95, subsampling=0)
    assert encode(noise, "jpeg", 95) == buffer.getvalue()


@pytest.mark.parametrize(("format", "side"), [("webp", 16_400), ("jpeg", 65_600)])
def test_a_side_the_format_cannot_hold_is_the_rows_failure(format: Format, side: int) -> None:
    with pytest.raises(RowError, match=r"TooLarge: .*use png"):
        encode(np.zeros((1, side, 3), np.uint8), format, 90)


def test_contact_sheet_places_every_picture_and_leaves_gaps_white() -> None:
    sheet = contact_sheet([[RED_BLUE, None], [RED_BLUE, RED_BLUE]], cell=16, gap=2)
    assert sheet.shape == (38, 38, 3)
    assert (sheet[2:18, 20:36] == 255).all()
    assert np.array_equal(sheet[2:18, 2:18], RED_BLUE)


def test_titles_stand_above_the_columns_whatever_their_length() -> None:
    plain = contact_sheet([[RED_BLUE, RED_BLUE]], cell=16, gap=2)
    titled = contact_sheet([[RED_BLUE, RED_BLUE]], cell=16, gap=2, titles=["a", "a title far too long"])
    assert np.array_equal(titled[-16:], plain[-16:])
    above = titled[: len(titled) - len(plain)]
    assert (above < 128).any()
    assert (above[:, 17:19] > 250).all(), "a title has run into its neighbour"
