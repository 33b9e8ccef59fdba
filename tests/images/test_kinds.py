"""What becomes of every kind of file, as docs/images.md says: a right picture or a reason, never a wrong picture."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

import stylize_batch
from stylize_batch.errors import RowError
from stylize_batch.images.decode import decode, decode_whole, sides_of
from tests.conftest import MakeManifest, read_results
from tests.images.samples import (
    bombs,
    encoded,
    gradient,
    gray_tiff,
    interlaced_png,
    jpeg_in_scans,
    noise,
    png,
    samples,
)

SAMPLES = samples()
END_OF_IMAGE = b"\xff\xd9"


def error_of(data: bytes) -> str:
    with pytest.raises(RowError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lossless(image: Image.Image, **options: object) -> dict[str, bytes]:
    """Return an image in every format that keeps its pixels."""
    return {
        "PNG": encoded(image, "PNG", **options),
        "TIFF": encoded(image, "TIFF", **options),
        "WEBP": encoded(image, "WEBP", lossless=True, **options),
        "BMP": encoded(image, "BMP"),
    }


@pytest.mark.parametrize("name", sorted(set(SAMPLES) - {"tiff-float"}))
def test_every_kind_that_is_read_gives_its_first_frame(name: str) -> None:
    found = decode(SAMPLES[name])
    image = gradient(48, 36) if name == "jpeg-420" else noise(48, 36)
    if name == "jpeg-420":
        image = image.transpose(Image.Transpose.ROTATE_270)
    assert found.dtype == np.uint8
    assert found.shape == (image.height, image.width, 3)
    if name in (
        "png",
        "png-rgba",
        "png-interlaced",
        "png-animated",
        "webp-lossless",
        "bmp",
        "tiff",
        "tiff-tiff_lzw",
    ):
        assert np.array_equal(found, np.asarray(image))


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_no_kind_of_file_cut_anywhere_gives_a_picture_with_a_part_missing(name: str) -> None:
    data = SAMPLES[name]
    whole = None if name == "tiff-float" else decode(data)
    for kept in range(0, len(data), max(1, len(data) // 60)):
        try:
            found = decode(data[:kept])
        except RowError:
            continue
        # What was lost are later frames, or what follows the pixels.
        assert whole is not None
        assert np.array_equal(found, whole)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.startswith("jpeg")])
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
def test_a_jpeg_cut_short_fails_with_an_end_marker_appended_too(name: str, kept: float) -> None:
    data = SAMPLES[name]
    scan = data.index(b"\xff\xda") + 14
    cut = data[: scan + int((len(data) - scan) * kept)] + END_OF_IMAGE
    with Image.open(io.BytesIO(cut)) as image:
        image.load()  # Pillow takes it for whole
    assert error_of(cut).startswith("Undecodable: damaged: ")


def test_a_reduced_jpeg_is_checked_to_its_end_as_well() -> None:
    data = encoded(noise(1600, 1200), "JPEG")
    with pytest.raises(RowError, match="damaged"):
        decode(data[: len(data) * 9 // 10] + END_OF_IMAGE, size=64)


def test_a_jpeg_with_harmless_padding_before_its_end_is_a_picture() -> None:
    data = SAMPLES["jpeg"]
    padded = data.removesuffix(END_OF_IMAGE) + bytes(20) + END_OF_IMAGE
    assert np.array_equal(decode(padded), decode(data))
    assert np.array_equal(decode(data + b"trailing bytes" * 9), decode(data))


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_very_many_scans_is_refused_before_it_takes_minutes(progressive: bool) -> None:
    image = Image.new("L", (3000, 3000))
    data = encoded(image, "JPEG", progressive=True) if progressive else jpeg_in_scans(image)
    scan = data.rindex(b"\xff\xda")
    end = -2 if progressive else scan + 10  # without data libjpeg takes as long
    bomb = data[:scan] + data[scan:end] * 2000 + data[scan:]
    assert len(bomb) < 20_000_000
    assert "scans" in error_of(bomb)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("size", [None, 12])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_format_with_and_without_a_size(
    format: str, size: int | None, orientation: int
) -> None:
    upright = gradient(64, 40)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # what the camera did
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if format in ("JPEG", "WEBP") else {}
    found = decode(encoded(stored, format, exif=exif, **options), size=size)
    expected = decode(encoded(upright), size=size)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < (3 if format in ("JPEG", "WEBP") else 0.5)


def oriented() -> dict[str, bytes]:
    """Return 40 × 24 stored pixels, with what says, or does not say, how they are to be turned, in every place."""
    files: dict[str, bytes] = {}
    for orientation in (*range(10), 65_535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for format in ("JPEG", "PNG", "TIFF", "WEBP"):
            files[f"{format} {orientation}"] = encoded(gradient(), format, exif=exif)
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        files[f"PNG {orientation} at its end"] = encoded(gradient())[:-12] + chunk + encoded(gradient())[-12:]
        xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
        files[f"TIFF {orientation} in XMP"] = encoded(gradient(), "TIFF", tiffinfo={700: xmp})
        files[f"JPEG {orientation} in XMP"] = encoded(gradient(), "JPEG", xmp=xmp)
    word = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHI4sI", 1, 0x0112, 2, 4, b"top\0", 0)
    for broken in (word, b"nonsense"):
        for format in ("JPEG", "PNG", "WEBP"):
            files[f"{format} {broken!r}"] = encoded(gradient(), format, exif=broken)
    return files


WHOLE = {**SAMPLES, **oriented()}


@pytest.mark.parametrize("name", sorted(set(WHOLE) - {"tiff-float"}))
def test_the_size_told_beside_a_cut_picture_is_that_of_the_upright_whole(name: str) -> None:
    data = WHOLE[name]
    height, width, _ = decode(data).shape
    turned = name.split()[1:2] in ([str(orientation)] for orientation in range(5, 9))
    assert (width > height) == (not turned and name != "jpeg-420")
    for size, expected in ((None, (width, height)), (12, (width // 2, height // 2))):
        if name in SAMPLES and size:
            continue
        found = decode_whole(data, size=size, crop=10)
        assert found.pixels.shape == (10, 10, 3)
        assert (found.width, found.height) == expected
        assert decode(data, size=size).shape[:2] == (expected[1], expected[0])
    assert sides_of(data) == (min(width, height), max(width, height))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_broken_exif_does_not_lose_the_picture(exif: bytes) -> None:
    data = encoded(gradient(), "JPEG", quality=95)
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert np.array_equal(decode(data[:2] + segment + data[2:]), decode(data))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png_is_what_its_colours_are(mode: str) -> None:
    image = gradient().convert(mode)
    assert np.array_equal(decode(encoded(image)), np.asarray(image.convert("RGB")))


def test_interlaced_png_is_the_same_picture() -> None:
    pixels = np.asarray(gradient(37, 23))
    assert np.array_equal(decode(interlaced_png(pixels)), pixels)


def test_sixteen_bit_colour_keeps_its_upper_eight() -> None:
    row = b"\0" + struct.pack(">6H", 0, 65535, 32768, 257, 511, 65280)
    assert decode(png(2, 1, 16, 2, row)).tolist() == [[[0, 255, 128], [1, 1, 255]]]


def test_the_transparent_level_of_gray_and_colour_png_is_white() -> None:
    gray = b"\0" + bytes((7, 9))
    assert decode(png(2, 1, 8, 0, gray, extra=[(b"tRNS", b"\0\x07")]))[0, :, 0].tolist() == [255, 9]
    colour = b"\0" + bytes((1, 2, 3, 4, 5, 6))
    assert decode(png(2, 1, 8, 2, colour, extra=[(b"tRNS", b"\0\1\0\2\0\3")]))[0].tolist() == [
        [255] * 3,
        [4, 5, 6],
    ]
    deep = b"\0" + struct.pack(">2H", 1000, 60000)
    assert decode(png(2, 1, 16, 0, deep, extra=[(b"tRNS", b"\x03\xe8")]))[0, :, 0].tolist() == [255, 233]


def test_half_transparent_pixels_are_half_white() -> None:
    for format, data in lossless(Image.new("RGBA", (4, 4), (255, 0, 0, 128))).items():
        if format != "BMP":
            assert np.abs(decode(data)[0, 0].astype(int) - (255, 127, 127)).max() <= 1


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_gray_tiff_is_scaled_in_either_byte_order(order: str) -> None:
    ramp = np.linspace(0, 65535, 400).reshape(20, 20).astype(order)
    found = decode(encoded(Image.fromarray(ramp), "TIFF"))
    assert np.abs(found[..., 0] - ramp.astype(float) / 257).max() <= 0.51


def test_twelve_bit_gray_tiff_is_as_light_as_it_says() -> None:
    levels = (0, 256, 2048, 4095)
    packed = int("".join(f"{level:012b}" for level in levels), 2).to_bytes(6, "big")
    assert decode(gray_tiff(packed, len(levels), bits=12))[0, :, 0].tolist() == [0, 16, 128, 255]


@pytest.mark.parametrize(("bits", "order"), [(10, "<"), (14, "<"), (12, ">")])
def test_gray_tiff_of_depths_that_are_not_read_is_refused(bits: int, order: str) -> None:
    assert error_of(gray_tiff(bytes(bits), 8, bits=bits, order=order)).startswith("Undecodable: ")


@pytest.mark.parametrize(("bits", "sample"), [(32, 3), (32, 1), (32, 2), (16, 2)])
def test_pixels_without_a_range_of_their_own_are_refused_with_the_reason(bits: int, sample: int) -> None:
    assert error_of(gray_tiff(bytes(bits), 8, bits=bits, sample=sample)) == (
        "Undecodable: ValueError: floating-point, signed and 32-bit pixels have no defined range; "
        "convert them to 8 or 16 bits"
    )


def test_of_a_file_of_several_photographs_the_first_is_taken_and_checked() -> None:
    data = encoded(noise(64, 48), "MPO", save_all=True, append_images=[noise(64, 48).rotate(180)])
    assert np.array_equal(decode(data), decode(encoded(noise(64, 48), "JPEG")))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_no_negative(kind: type[np.unsignedinteger[Any]]) -> None:
    most = np.iinfo(kind).max
    levels = np.array([[0, most // 3, most]], kind)
    data = encoded(Image.fromarray(levels), "TIFF")
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert data.count(entry) == 1
    inverted = data.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    assert decode(data)[0, :, 0].tolist() == [0, 85, 255]
    assert decode(inverted)[0, :, 0].tolist() == [255, 170, 0]


def test_a_tiled_tiff_is_one_picture() -> None:
    pixels = np.asarray(noise(32, 32))
    tiles = [pixels[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16)]
    body = b"".join(tiles)
    after = 8 + len(body)
    tags = [
        (256, 4, 1, 32), (257, 4, 1, 32), (258, 3, 3, after), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 3),
        (322, 3, 1, 16), (323, 3, 1, 16), (324, 4, 4, after + 6), (325, 4, 4, after + 22),
    ]  # fmt: skip
    offsets = [8 + index * len(tiles[0]) for index in range(4)]
    values = (
        struct.pack("<3H", 8, 8, 8) + struct.pack("<4I", *offsets) + struct.pack("<4I", *[len(tiles[0])] * 4)
    )
    entries = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + (struct.pack("<HH", value, 0) if kind == 3 and count == 1 else struct.pack("<I", value))
        for tag, kind, count, value in tags
    )
    directory = after + len(values)
    data = (
        b"II*\0"
        + struct.pack("<I", directory)
        + body
        + values
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )
    assert np.array_equal(decode(data), pixels)


def test_lab_tiff_becomes_the_colour_it_describes() -> None:
    red = Image.new("LAB", (9, 9), (137, 208, 195))  # L = 54, a = 80, b = 67
    assert np.abs(decode(encoded(red, "TIFF"))[0, 0].astype(int) - (255, 0, 0)).max() < 12


def test_cmyk_jpeg_is_read_as_photoshop_writes_it() -> None:
    image = Image.new("RGB", (32, 32), (200, 40, 40)).convert("CMYK")
    data = encoded(image, "JPEG", quality=95)
    assert b"Adobe" in data  # which says that the inks are stored inverted
    assert np.abs(decode(data).astype(int) - (200, 40, 40)).max() < 12


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_a_profile_for_another_colour_space_is_left_aside(mode: str) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = gradient().convert(mode)
    assert np.array_equal(decode(encoded(image, "TIFF", icc_profile=lab)), decode(encoded(image, "TIFF")))


@given(st.data())
def test_a_damaged_profile_never_loses_the_picture(data: st.DataObject) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for _ in range(data.draw(st.integers(1, 8))):
        profile[data.draw(st.integers(0, len(profile) - 1))] = data.draw(st.integers(0, 255))
    found = decode(encoded(gradient(8, 6), "TIFF", icc_profile=bytes(profile)))
    assert found.shape == (6, 8, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (30_000, 20), (20, 30_000)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "GIF", "BMP"])
def test_extreme_shapes_are_decoded_and_resized(width: int, height: int, format: str) -> None:
    data = encoded(gradient(width, height), format)
    assert decode(data).shape == (height, width, 3)
    assert (
        min(decode(data, size=16).shape[:2]) == 16 if max(width, height) < 5000 * min(width, height) else True
    )


def test_too_thin_and_too_large_after_resizing_are_told_apart() -> None:
    with pytest.raises(RowError, match=r"TooSmall: the shorter side is 1 pixel"):
        decode(encoded(gradient(1, 5000)), min_side=9)
    with pytest.raises(RowError, match=r"TooLarge: 512×2560000 pixels"):
        decode(encoded(gradient(1, 5000)), size=512)


BOMBS = bombs()


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs_of_every_format_are_refused_by_their_size(name: str) -> None:
    assert len(BOMBS[name]) < 1_000_000
    assert error_of(BOMBS[name]).startswith("TooLarge: ")
    with pytest.raises(RowError, match="TooLarge"):
        sides_of(BOMBS[name])


def test_the_limit_is_200_megapixels_whoever_decodes() -> None:
    assert sides_of(png(20_000, 10_000, 1, 0, b"")) == (10_000, 20_000)
    assert (
        Image.MAX_IMAGE_PIXELS == 100_000_000
    )  # others in the process still have a limit: Pillow's is twice that


def test_decoding_prints_nothing_and_holds_one_copy_of_the_pixels(tmp_path: Path) -> None:
    """In a process of its own: peak memory and what C libraries print belong to the process."""
    Image.effect_noise((4000, 3000), 50).convert("RGB").save(tmp_path / "large.png", compress_level=1)
    Image.effect_noise((4000, 3000), 50).convert("RGB").save(tmp_path / "large.jpg", quality=50)
    for name, data in SAMPLES.items():
        (tmp_path / f"cut-{name}").write_bytes(data[: len(data) * 2 // 3])
    code = """
import pathlib, resource, sys
from stylize_batch.errors import RowError
from stylize_batch.images.decode import decode
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("cut-*")):
    try:
        decode(path.read_bytes())
    except RowError:
        pass
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for name in ("large.jpg", "large.png"):
    data = (folder / name).read_bytes()
    before = peak()
    decode(data, size=256)
    print(name, peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert not done.stderr
    used = {name: float(megabytes) for name, megabytes in map(str.split, done.stdout.splitlines())}
    pixels = 4000 * 3000 * 4 / 2**20  # Pillow keeps four bytes for a pixel of RGB
    assert used["large.jpg"] < 0.3 * pixels  # decoded at an eighth
    assert used["large.png"] < 1.4 * pixels


NAMES = [
    "with space.jpg", "ünï çödé.jpg", "日本語.jpg", "cafe\u0301.jpg", "100%.jpg", "a%20b%2Fc.jpg", "a#b?c&d=e.jpg",
    "[1]*{x}.jpg", "it's \"quoted\".jpg", "-dash.jpg", "~tilde.jpg", "comma,semi;colon:.jpg", "back\\slash.jpg",
    "new\nline.jpg", "no-extension", ".hidden.jpg",
]  # fmt: skip


def test_files_of_any_name_are_stylized_and_folders_and_pages_fail_with_their_kind(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(Path(contents[0]).read_bytes())
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "page.jpg").write_text("<!doctype html><title>404</title>")
    (tmp_path / "empty.jpg").touch()
    bad = {
        "folder.jpg": "NotFound",
        "page.jpg": "Undecodable",
        "empty.jpg": "Undecodable",
        "gone é%20.jpg": "NotFound",
    }
    manifest = make_manifest([{"content": name, "style": styles[:1]} for name in (*NAMES, *bad)])
    stylize_batch.run(
        str(manifest), output=str(tmp_path / "out"), in_process=True, device="cpu", style_size=48
    )
    found = {row["content"]: row for row in read_results(tmp_path / "out")}
    assert {name: found[name]["error"] for name in NAMES} == dict.fromkeys(NAMES)
    for name in NAMES:
        with Image.open(found[name]["output"]) as image:
            image.load()
    assert {name: found[name]["error"].partition(":")[0] for name in bad} == bad
