"""What the decoder makes of the files users have."""

from __future__ import annotations

import io
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TimedOut
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from stylize_batch.errors import RowError
from stylize_batch.images import decode as module
from stylize_batch.images.decode import Array, Budget, decode, resized
from tests.images.samples import encoded, gradient, jpeg_in_scans


def kind_of(data: bytes, **options: Any) -> str:
    with pytest.raises(RowError) as caught:
        decode(data, **options)
    assert "\n" not in str(caught.value)
    return caught.value.kind


def difference(found: Array, expected: Image.Image) -> float:
    return float(np.abs(found.astype(float) - np.asarray(expected.convert("RGB"), float)).max())


def test_png_pixels_come_through_unchanged() -> None:
    assert difference(decode(encoded(gradient())), gradient()) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = gradient()
    # The stored picture is the upright one under the inverse of what the viewer must do.
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(decode(encoded(stored, exif=exif.tobytes())), upright) == 0


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 5, 10))
    found = decode(encoded(image))
    assert found[0, 0].tolist() == [0, 0, 255]
    assert found[0, 9].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    image = gradient().convert(mode)
    found = decode(encoded(image, "TIFF"))
    assert found.shape == (24, 40, 3)
    assert found.dtype == np.uint8
    assert difference(found, image.convert("RGB")) <= 1


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 40 * 24).reshape(24, 40).astype(np.uint16)
    found = decode(encoded(Image.fromarray(ramp)))
    assert np.abs(found[:, :, 0].astype(float) - ramp / 257).max() <= 0.51


def test_cmyk_jpeg_keeps_its_colours() -> None:
    found = decode(encoded(Image.new("RGB", (32, 32), (200, 40, 40)).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found.astype(int) - (200, 40, 40)).max() < 12


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (12, 12), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data)[0, 0].tolist() == [255, 0, 0]


def test_icc_profiles_are_converted_to_srgb() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert difference(decode(encoded(gradient(), icc_profile=srgb)), gradient()) <= 1
    # A profile whose red is sRGB's blue, and the reverse.
    swapped = srgb.replace(b"rXYZ", b"____").replace(b"bXYZ", b"rXYZ").replace(b"____", b"bXYZ")
    found = decode(encoded(Image.new("RGB", (8, 8), "red"), icc_profile=swapped))
    assert np.abs(found.astype(int) - (0, 0, 255)).max() <= 2


def gray_profile(gamma: float) -> bytes:
    """A gray ICC profile with its two tags: the white point, D50, and the curve."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
    head = struct.pack(">I4sI12s", 192, b"\0\0\0\0", 0x02100000, b"mntrGRAYXYZ ")
    return (head + bytes(12) + b"acsp" + bytes(28) + white[8:]).ljust(128, b"\0") + tags + white + curve


def test_a_gray_icc_profile_counts_beside_transparency_too() -> None:
    profile, gray = gray_profile(1.0), Image.new("L", (8, 8), 100)
    opaque = decode(encoded(gray, icc_profile=profile))
    assert opaque[0, 0].tolist() == [168, 168, 168]  # linear
    for data in (
        encoded(gray.convert("LA"), icc_profile=profile),
        encoded(gray, icc_profile=profile, transparency=7),
    ):
        assert decode(data).tolist() == opaque.tolist()
    clear = Image.new("LA", (8, 8), (100, 0))
    assert decode(encoded(clear, icc_profile=profile))[0, 0].tolist() == [255, 255, 255]


def test_a_broken_icc_profile_does_not_lose_the_picture() -> None:
    assert difference(decode(encoded(gradient(), icc_profile=b"nonsense")), gradient()) == 0


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1024))
def test_resizing_sets_the_shorter_side_and_floors_the_longer(width: int, height: int, size: int) -> None:
    new_width, new_height = resized(width, height, size)
    assert min(new_width, new_height) == size
    assert max(new_width, new_height) == int(size * max(width, height) / min(width, height))
    assert new_width == new_height or (width < height) == (new_width < new_height)


@pytest.mark.parametrize(("size", "shape"), [(12, (12, 20, 3)), (48, (48, 80, 3))])
def test_size_reduces_and_enlarges(size: int, shape: tuple[int, ...]) -> None:
    assert decode(encoded(gradient()), size=size).shape == shape


def test_crop_takes_the_centre() -> None:
    image = Image.new("RGB", (30, 20), "black")
    image.paste((255, 255, 255), (10, 5, 20, 15))
    assert decode(encoded(image), crop=10).min() == 255


@pytest.mark.parametrize(("width", "height"), [(2003, 1500), (1500, 2003), (1601, 1199)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_get_the_same_size_as_other_files(width: int, height: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = gradient(width, height)
    jpeg = decode(encoded(image, "JPEG", exif=exif.tobytes()), size=256)
    assert jpeg.shape == decode(encoded(image, exif=exif.tobytes()), size=256).shape
    assert sorted(jpeg.shape[:2]) == [256, int(256 * max(width, height) / min(width, height))]


def test_reduced_jpeg_decoding_stays_close_to_the_exact_resize() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    large = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.NEAREST)
    data = encoded(large, "JPEG", quality=95)
    exact = np.asarray(Image.open(io.BytesIO(data)).resize((133, 100), Image.Resampling.BILINEAR), float)
    # Decoded at half the target instead of twice, the mean difference is over 20.
    assert np.abs(decode(data, size=100) - exact).mean() < 6


def test_truncated_files_fail_and_are_never_half_gray() -> None:
    data = encoded(gradient(400, 300), "JPEG")
    assert kind_of(data[: len(data) // 2]) == "Undecodable"


@pytest.mark.parametrize("brand", [b"heic", b"avif", b"mif1"])
def test_a_telephones_picture_says_what_to_do_whatever_its_name(brand: bytes) -> None:
    with pytest.raises(RowError, match="Undecodable: HEIC and AVIF are not read; convert it to JPEG"):
        decode(b"\0\0\0\x24ftyp" + brand + b"\0\0\0\0mif1heic")


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_images_are_undecodable(data: bytes) -> None:
    assert kind_of(data) == "Undecodable"


@given(st.binary(max_size=300), st.integers(0, 400))
def test_damaged_files_never_raise_anything_but_a_row_error(noise: bytes, position: int) -> None:
    data = encoded(gradient(16, 16), "JPEG")
    damaged = data[:position] + noise + data[position + len(noise) :]
    try:
        with patch.object(module, "MAX_PIXELS", 1_000_000):
            found = decode(damaged)
    except RowError:
        return
    assert found.dtype == np.uint8
    assert found.ndim == 3


def test_decompression_bombs_are_refused_before_they_are_decoded() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    assert kind_of(bomb) == "TooLarge"


def test_threads_share_a_budget_and_the_largest_share_is_all_of_it() -> None:
    budget = Budget(100)
    together = threading.Barrier(2)
    most: list[int] = []
    held = 0

    def hold(amount: int) -> None:
        nonlocal held
        with budget.take(amount):
            held += min(amount, 100)
            most.append(held)
            if amount == 50:
                together.wait(timeout=30)  # breaks unless both are there
            held -= min(amount, 100)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(hold, [50, 50, 70, 1000, 60]))
    assert max(most) <= 100


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_images_wait_until_the_pixels_that_are_decoded_leave_room_for_theirs(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "pixels_at_once", Budget(400 * 300))
    data = encoded(gradient(400, 300), format)
    with ThreadPoolExecutor(1) as threads:
        with module.pixels_at_once.take(400 * 300 // 2):
            whole = threads.submit(decode, data, size=150)
            with pytest.raises(TimedOut):
                whole.result(0.2)
            # A JPEG that is reduced as it is decoded takes no more than what is made of it.
            assert format == "PNG" or decode(data, size=75).shape == (75, 100, 3)
        assert whole.result(30).shape == (150, 200, 3)


@pytest.mark.parametrize(
    "data",
    [
        encoded(gradient(400, 300), "JPEG", progressive=True),
        jpeg_in_scans(gradient(400, 300)),
        jpeg_in_scans(gradient(400, 300)).partition(b"\xff\xda\0\x08\1\2")[0] + b"\xff\xd9",
    ],
    ids=["progressive", "sequential", "first scan alone"],
)
def test_a_jpeg_of_several_scans_takes_all_its_pixels_however_far_it_is_reduced(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "pixels_at_once", Budget(400 * 300))
    with ThreadPoolExecutor(1) as threads:
        with module.pixels_at_once.take(1):
            whole = threads.submit(decode, data, size=75)
            with pytest.raises(TimedOut):
                whole.result(0.2)
        assert whole.result(30).shape == (75, 100, 3)


def test_what_looks_like_a_scan_in_a_jpegs_thumbnail_or_comment_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SCANS", 0)
    monkeypatch.setattr(module, "pixels_at_once", Budget(400 * 300))
    scans = b"\xff\xda" * 100
    for options in ({"exif": b"Exif\0\0" + scans}, {"comment": scans}, {"icc_profile": scans * 1000}):
        data = encoded(gradient(400, 300), "JPEG", **options)
        with module.pixels_at_once.take(400 * 300 // 2), ThreadPoolExecutor(1) as threads:
            assert threads.submit(decode, data, size=75).result(30).shape == (75, 100, 3)


def test_enlarging_beyond_the_limit_is_refused() -> None:
    assert kind_of(encoded(gradient(2000, 10)), size=1100) == "TooLarge"


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_pixels_that_cannot_be_copied_for_want_of_memory_are_an_error_of_the_image(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "np", Mock(wraps=np, array=Mock(side_effect=MemoryError)))
    assert kind_of(encoded(gradient(), format)) == "OutOfMemory"


def test_sides_below_the_minimum_are_refused() -> None:
    assert kind_of(encoded(gradient(100, 8)), min_side=9) == "TooSmall"
    assert kind_of(encoded(gradient(100, 20)), crop=32) == "TooSmall"
