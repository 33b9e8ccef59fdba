"""Thumbnails: each image read once, one that cannot be read says why, and the page's bytes and time are bounded."""

from __future__ import annotations

import io
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylize_batch.report import thumbnails
from stylize_batch.report.thumbnails import LARGEST, SOURCE_SCALE, make_thumbnails
from stylize_batch.storage import read_bytes


def size(data: bytes | str) -> tuple[int, int]:
    assert isinstance(data, bytes), data
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "WEBP"
        return image.size


def test_every_image_is_read_once_and_fits_its_square(tmp_path: Path, contents: list[str]) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (4000, 40)).save(wide)
    seen: Counter[str] = Counter()

    def read(uri: str) -> bytes:
        seen[uri] += 1
        return read_bytes(uri)

    made = make_thumbnails([str(wide), contents[0]], [str(wide), contents[1]], read)
    assert set(seen.values()) == {1}
    assert size(made[str(wide)]) == (400, 4)
    assert LARGEST >= 400
    with Image.open(contents[1]) as image:
        assert size(made[contents[1]]) == image.size  # never enlarged
    assert max(image.size) < LARGEST * SOURCE_SCALE


def test_an_image_that_cannot_be_read_says_why_and_the_others_are_made(
    tmp_path: Path, contents: list[str]
) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(Path(contents[0]).read_bytes()[:500])
    made = make_thumbnails([contents[0]], [str(damaged), str(tmp_path / "absent.jpg")])
    assert isinstance(made[contents[0]], bytes)
    assert str(made[str(damaged)]).startswith("Undecodable: ")
    assert str(made[str(tmp_path / "absent.jpg")]).startswith("NotFound: ")


def test_images_of_the_worst_kind_do_not_fill_more_than_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "BYTES", 60_000)
    monkeypatch.setattr(thumbnails, "SMALLEST", 200)
    noise = np.random.default_rng(0).integers(0, 256, (12, 200, 200, 3), dtype=np.uint8)
    paths = [str(tmp_path / f"{place}.png") for place in range(12)]
    for path, pixels in zip(paths, noise, strict=True):
        Image.fromarray(pixels).save(path)
    made = make_thumbnails(paths, [])
    kept = [each for each in made.values() if isinstance(each, bytes)]
    assert 0 < sum(map(len, kept)) <= 60_000
    assert "left out, the page is full" in made.values()


def test_storage_that_answers_too_slowly_does_not_hold_the_run(
    contents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "SECONDS", 0.2)

    def read(uri: str) -> bytes:
        time.sleep(1)
        return read_bytes(uri)

    started = time.monotonic()
    made = make_thumbnails(contents, [], read)
    assert time.monotonic() - started < 0.9
    assert set(made.values()) == {"left out, storage answers too slowly"}
