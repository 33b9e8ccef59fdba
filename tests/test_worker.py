"""The worker: one failed row for one bad image, and pixels that depend on the pair alone."""

from __future__ import annotations

import functools
import gc
import math
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stylize_batch import stage, worker
from stylize_batch.contents import LOOKAHEAD
from stylize_batch.errors import HandedBackError, JobFailedError, RowError
from stylize_batch.images.decode import Array, decode
from stylize_batch.images.encode import encode
from stylize_batch.job import styles as job_styles
from stylize_batch.manifest.shards import Shard
from stylize_batch.model import container
from stylize_batch.model.network import Network
from stylize_batch.model.tiling import PASS_PIXELS
from stylize_batch.process import peak_memory
from stylize_batch.stage import Picture, Prepared, StylizeStage
from stylize_batch.storage import read_bytes
from stylize_batch.styles import StyleVector, Vectors, bank_of
from stylize_batch.worker import (
    FETCH_THREADS,
    PENDING_WRITES,
    WINDOW_BATCHES,
    WRITE_THREADS,
    Worker,
)
from tests.conftest import MakeManifest, Row, cores, run_in_process, worker_settings
from tests.controls import by_name, controlled_rows, save_mask
from tests.images.samples import bombs


def test_bad_images_fail_their_own_rows_with_the_reason(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "empty.jpg").touch()
    (bad / "page.jpg").write_text("<html>")
    (bad / "half.jpg").write_bytes(Path(contents[0]).read_bytes()[:800])
    (bad / "folder.jpg").mkdir()
    Image.new("RGB", (40, 8)).save(bad / "thin.png")
    (bad / "bomb.png").write_bytes(bombs()["PNG"])
    (bad / "bomb.gif").write_bytes(bombs()["GIF frame"])
    kinds = {
        "empty.jpg": "Undecodable",
        "page.jpg": "Undecodable",
        "half.jpg": "Undecodable",
        "folder.jpg": "NotFound",
        "absent.jpg": "NotFound",
        "thin.png": "TooSmall",
        "bomb.png": "TooLarge",
        "bomb.gif": "TooLarge",
    }
    rows = [{"content": str(bad / name), "style": [styles[0]]} for name in kinds]
    rows.append({"content": contents[0], "style": [styles[0]]})
    rows.append({"content": contents[0], "style": [str(bad / "page.jpg")]})
    rows.append({"content": contents[0], "style": [styles[0], str(bad / "absent.jpg")]})
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux counts the peak from here
    before = peak_memory()
    summary, results = run_in_process(make_manifest(rows), tmp_path / "out")
    assert peak_memory() - before < 400e6  # the bombs are of 900 and 4,295 megapixels
    found = {(Path(row["content"]).name, Path(row["style"][-1]).name): row for row in results}
    for name, kind in kinds.items():
        row = found[name, Path(styles[0]).name]
        assert row["status"] == "failed"
        assert row["error"].startswith(f"{kind}: ")
        assert "\n" not in row["error"]
        assert row["output"] is row["content_loss"] is row["height"] is None
    content = Path(contents[0]).name
    assert found[content, Path(styles[0]).name]["status"] == "ok"
    assert found[content, "page.jpg"]["error"].startswith("Undecodable: style ")
    assert found[content, "absent.jpg"]["error"].startswith("NotFound: style ")
    assert (summary.ok, summary.failed) == (1, 10)
    assert sum(summary.kinds.values()) == 10


def test_every_picture_has_the_resized_contents_size_and_the_recorded_one(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    odd = tmp_path / "odd.png"
    Image.new("RGB", (61, 33), "teal").save(odd)
    rows = [{"content": uri, "style": [styles[0]]} for uri in (*contents[:2], str(odd))]
    _, results = run_in_process(make_manifest(rows), tmp_path / "out", size=35)
    for row in results:
        with Image.open(row["content"]) as image:
            short, long = sorted(image.size)
        with Image.open(row["output"]) as image:
            assert sorted(image.size) == [35, int(35 * long / short)]
            assert (image.height, image.width) == (row["height"], row["width"])


def test_a_row_without_styles_is_the_content_as_its_siblings_are_cut(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    turned = tmp_path / "turned.jpg"
    with Image.open(contents[0]) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(turned, exif=exif)
    rows = [
        {"content": str(turned), "style": [], "preserve_color": None, "output": "original.png"},
        {"content": str(turned), "style": styles[:1], "preserve_color": None, "output": "stylized.png"},
        {"content": str(turned), "style": styles[:1], "preserve_color": True, "output": "colour.png"},
        {
            "content": str(tmp_path / "absent.jpg"),
            "style": [],
            "preserve_color": None,
            "output": "absent.png",
        },
    ]
    summary, results = run_in_process(make_manifest(rows), tmp_path / "out", size=40, crop=32)
    assert (summary.ok, summary.kinds) == (3, {"NotFound": 1})
    found = {Path(row["output"] or "").name: row for row in results}
    original = found["original.png"]
    pixels = decode(Path(original["output"]).read_bytes())
    assert np.array_equal(pixels, decode(turned.read_bytes(), size=40, crop=32))
    assert (original["status"], original["height"], original["width"]) == ("ok", 32, 32)
    assert original["style"] == []
    for name in ("alpha", "content_loss", "style_loss", "content_distance"):
        assert original[name] is None
        assert found["stylized.png"][name] is not None
    assert summary.mean_style_loss == pytest.approx(
        (found["stylized.png"]["style_loss"] + found["colour.png"]["style_loss"]) / 2, rel=1e-5
    )


def test_contents_that_are_only_kept_never_meet_the_network(
    make_manifest: MakeManifest, contents: list[str], tmp_path: Path
) -> None:
    summary, _ = run_in_process(
        make_manifest([{"content": content, "style": []} for content in contents]), tmp_path / "out"
    )
    assert summary.ok == 6
    assert summary.mean_style_loss is None
    assert not {"encode", "stylize"} & set(summary.stages)
    assert {"decode", "codec"} <= set(summary.stages)


def test_crop_gives_squares(make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path) -> None:
    _, results = run_in_process(make_manifest(pairs[:2]), tmp_path / "out", size=40, crop=32)
    assert {(row["height"], row["width"]) for row in results} == {(32, 32)}


def test_a_pairs_pixels_do_not_depend_on_its_neighbours(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    _, together = run_in_process(make_manifest(pairs), tmp_path / "all", format="png", shard_pairs=100)
    _, (alone,) = run_in_process(make_manifest(pairs[5:6], "one.parquet"), tmp_path / "one", format="png")
    match = next(row for row in together if row["pair_id"] == alone["pair_id"])
    assert Path(match["output"]).read_bytes() == Path(alone["output"]).read_bytes()
    assert match["style_loss"] == alone["style_loss"]


def test_neither_cores_nor_shards_change_a_pixel(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest(pairs)
    made: list[dict[str, bytes]] = []
    # Side by side on cores of their own; one after the other; most cores for each picture.
    for count, pass_pixels, shard_pairs in ((4, PASS_PIXELS, 100), (1, PASS_PIXELS, 1), (4, 4000, 3)):
        network = functools.partial(Network, pass_pixels=pass_pixels)
        monkeypatch.setattr(stage, "Network", network)
        output = tmp_path / f"{count}-{pass_pixels}"
        with cores(count):
            _, results = run_in_process(manifest, output, format="png", size=40, shard_pairs=shard_pairs)
        made.append({row["pair_id"]: Path(row["output"]).read_bytes() for row in results})
    assert len(made[0]) == len(pairs)
    assert made[0] == made[1] == made[2]


def test_alpha_and_interpolation_act_as_the_paper_says(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    base = {"content": contents[0]}
    rows = [
        {**base, "style": styles[:1], "output": "one"},
        {**base, "style": styles[:1], "alpha": 0.0, "output": "zero"},
        {**base, "style": styles[:1], "alpha": 0.5, "output": "half"},
        {**base, "style": styles[:2], "style_weights": [1.0, 0.0], "output": "all-first"},
        {**base, "style": styles[:2], "style_weights": [2.0, 2.0], "output": "blend"},
        {**base, "style": styles[1:2], "output": "two"},
    ]
    _, results = run_in_process(make_manifest(rows), tmp_path / "out", format="png")
    found = {Path(row["output"]).stem: row for row in results}
    pixels = {name: decode(Path(row["output"]).read_bytes()).astype(float) for name, row in found.items()}
    assert np.abs(pixels["all-first"] - pixels["one"]).max() <= 1
    assert found["zero"]["content_loss"] == pytest.approx(found["zero"]["content_distance"])
    assert found["one"]["style_loss"] < found["half"]["style_loss"] < found["zero"]["style_loss"]
    assert np.abs(pixels["blend"] - pixels["one"]).mean() > 1
    assert np.abs(pixels["blend"] - pixels["two"]).mean() > 1


def test_no_metrics_leaves_the_losses_empty_and_the_pixels_as_they_are(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    _, plain = run_in_process(make_manifest(pairs[:2]), tmp_path / "plain", format="png", metrics=False)
    _, full = run_in_process(make_manifest(pairs[:2]), tmp_path / "full", format="png")
    for row, other in zip(plain, full, strict=True):
        assert row["content_loss"] is row["style_loss"] is row["content_distance"] is None
        assert np.isfinite([other["content_loss"], other["style_loss"], other["content_distance"]]).all()
        assert Path(row["output"]).read_bytes() == Path(other["output"]).read_bytes()


def test_outputs_that_cannot_be_written_fail_no_row_and_end_the_job(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    run_in_process(make_manifest(pairs), output)
    shutil.rmtree(output / "images")
    for part in (output / "results").iterdir():
        part.unlink()
    (output / "images").touch()  # a file where the folder must be
    with pytest.raises(JobFailedError, match="cannot use"):
        run_in_process(make_manifest(pairs), output)
    assert not list((output / "results").iterdir())
    (output / "images").unlink()
    summary, results = run_in_process(make_manifest(pairs), output)
    assert summary.ok == len(results) == len(pairs)


def test_every_control_works_in_one_shard_with_every_other(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    rows = controlled_rows(contents[0], styles, tmp_path)
    summary, results = run_in_process(make_manifest(rows), tmp_path / "out", format="png", shard_pairs=100)
    assert summary.ok == len(rows)
    found, pixels = by_name(results)
    for name, same in [
        ("full-mask", "plain"),
        ("three-equal", "plain"),
        ("two-white-masks", "plain"),
        ("complement", "masks"),
        ("colour-weight-one", "colour"),
        ("colour-full-mask", "colour"),
    ]:
        assert np.abs(pixels[name] - pixels[same]).max() <= 1, (name, same)
        for loss in ("content_loss", "style_loss", "content_distance"):
            assert found[name][loss] == pytest.approx(found[same][loss], rel=0.01), (name, loss)
    distinct = ["plain", "masks", "masks-alpha", "colour", "colour-masks-alpha", "colour-blend"]
    for index, name in enumerate(distinct):
        for other in distinct[:index]:
            assert np.abs(pixels[name] - pixels[other]).mean() > 1, (name, other)
    content = decode(Path(contents[0]).read_bytes()).astype(int)

    def color_shift(name: str) -> float:
        return float(np.abs(pixels[name].mean((0, 1)) - content.mean((0, 1))).max())

    assert color_shift("colour") < color_shift("plain")


@pytest.mark.parametrize(("suffix", "orientation"), [("png", 1), ("png", 6), ("png", 9), ("tif", 6)])
def test_a_mask_covers_the_same_part_of_a_cropped_content(
    make_manifest: MakeManifest, styles: list[str], tmp_path: Path, suffix: str, orientation: int
) -> None:
    content = tmp_path / f"wide.{suffix}"
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 256, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (wide.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else wide).save(content, exif=exif)
    inside, outside = save_mask(tmp_path / "in.png", 3), save_mask(tmp_path / "out.png", 0, 1, 2, 5, 6, 7)
    rows = [
        {"content": str(content), "style": styles[:1], "mask": [inside], "output": "inside"},
        {"content": str(content), "style": styles[:1], "mask": [outside], "output": "outside"},
        {"content": str(content), "style": styles[:1], "alpha": 0.0, "output": "unstylized"},
    ]
    _, results = run_in_process(make_manifest(rows), tmp_path / "run", format="png", size=64, crop=64)
    _, pixels = by_name(results)
    change = np.abs(pixels["inside"] - pixels["unstylized"]).mean((0, 2))
    # The eighth from 96 to 128 of 256 columns is the left half of the 64 in the middle; decoding spreads it.
    assert change[:32].mean() > 10 * change[56:].mean()
    failed = [row["error"] for row in results if row["error"]]
    assert failed == ["BadMask: a mask is black all over the picture; its style would go nowhere"]


def test_masks_and_recoloured_styles_that_cannot_be_read_fail_their_rows(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.png"
    page.write_text("<html>")
    white = save_mask(tmp_path / "white.png", *range(8))
    plain = {"content": contents[0], "style": styles[:1], "mask": None, "preserve_color": None}
    rows = [
        plain,
        {**plain, "mask": [str(page)]},
        {**plain, "mask": [str(tmp_path / "absent.png")]},
        {**plain, "style": styles[:2], "mask": [white]},
        {**plain, "style": [str(page)], "preserve_color": True},
        {**plain, "style": [styles[0], str(tmp_path / "absent.png")], "preserve_color": True},
    ]
    summary, results = run_in_process(make_manifest(rows), tmp_path / "out", shard_pairs=100)
    assert summary.ok == 1
    errors = [row["error"] for row in results]
    assert errors[0] is None
    for error, expected in zip(
        errors[1:],
        [
            f"Undecodable: mask {page}: not an image in a known format",
            f"NotFound: mask {tmp_path / 'absent.png'} does not exist",
            "BadMask: the mask is white all over the picture; the second style would go nowhere",
            f"Undecodable: style {page}: not an image in a known format",
            f"NotFound: style {tmp_path / 'absent.png'} does not exist",
        ],
        strict=True,
    ):
        assert error == expected


def test_a_recoloured_style_whose_colours_do_not_fit_into_memory_fails_its_row(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "colors_of", Mock(side_effect=RowError("OutOfMemory", "no memory")))
    rows = [{"content": contents[0], "style": styles[:1], "preserve_color": keep} for keep in (True, False)]
    summary, _ = run_in_process(make_manifest(rows), tmp_path / "out")
    assert (summary.ok, summary.kinds) == (1, {"OutOfMemory": 1})


def test_styles_that_are_only_recoloured_are_not_encoded_for_the_bank(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    rows = [
        {"content": contents[0], "style": styles[:1], "preserve_color": False},
        {"content": contents[0], "style": styles[1:2], "preserve_color": True},
    ]
    summary, _ = run_in_process(make_manifest(rows), tmp_path / "out")
    assert summary.ok == 2
    assert pq.read_table(tmp_path / "out" / "styles")["style"].to_pylist() == styles[:1]


def test_gray_and_tiny_images_can_be_recoloured_and_masked(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    gray, teal, dot = (str(tmp_path / name) for name in ("gray.png", "teal.png", "dot.png"))
    with Image.open(contents[0]) as image:
        image.convert("L").save(gray)
    Image.new("RGB", (20, 20), "teal").save(teal)
    Image.new("1", (1, 1), 1).save(dot)
    rows = [
        {"content": content, "style": [style], "preserve_color": True, "mask": [dot]}
        for content, style in [(gray, styles[0]), (contents[0], teal), (teal, gray)]
    ]
    summary, results = run_in_process(make_manifest(rows), tmp_path / "out")
    assert summary.ok == 3
    assert np.isfinite([row["style_loss"] for row in results]).all()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have storage not answer for some files, until it is told others."""

    def call(*uris: str) -> None:
        def read(uri: str) -> bytes:
            if uri in uris:
                raise RowError("StorageError", f"reading {uri} failed", transient=True)
            return read_bytes(uri)

        monkeypatch.setattr("stylize_batch.contents.read_bytes", read)
        monkeypatch.setattr("stylize_batch.worker.read_bytes", read)

    return call


def test_a_storage_that_answers_for_no_row_fails_none(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    silent: Callable[..., None],
) -> None:
    masks = [save_mask(tmp_path / f"{column}.png", column) for column in (1, 2)]
    rows = [
        {"content": content, "style": styles[:1], "mask": [mask]}
        for content, mask in zip(contents[:2], masks, strict=True)
    ]
    rows.append({**rows[0], "style": styles[1:2]})
    manifest = make_manifest(rows)
    for name, images in (("masks", masks), ("contents", contents), ("styles", styles)):
        silent(*images)
        with pytest.raises(JobFailedError, match="storage does not answer"):
            run_in_process(manifest, tmp_path / name, shard_pairs=100)
    silent()
    summary, _ = run_in_process(manifest, tmp_path / "masks", shard_pairs=100)
    assert summary.ok == 3


def test_images_that_storage_never_gives_fail_their_rows_also_when_these_are_tried_again_alone(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    silent: Callable[..., None],
) -> None:
    silent(contents[0], contents[1])
    manifest = make_manifest([{"content": content, "style": styles[:1]} for content in contents])
    for again in (False, True):
        summary, _ = run_in_process(manifest, tmp_path / "out", shard_pairs=100, retry_failed=again)
        assert (summary.ok, summary.kinds) == (4, {"StorageError": 2})


def test_a_shard_whose_images_storage_never_gives_fails_its_rows_and_does_not_keep_the_run_from_its_end(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    silent: Callable[..., None],
) -> None:
    silent(contents[0], contents[2])
    manifest = make_manifest([{"content": content, "style": styles[:1]} for content in contents])
    summary, _ = run_in_process(manifest, tmp_path / "out", shard_pairs=1)
    assert (summary.ok, summary.kinds) == (4, {"StorageError": 2})


def test_the_last_style_that_storage_never_gives_is_not_taken_for_a_storage_that_does_not_answer(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    silent: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_styles, "STYLES_PER_PART", 4)
    paintings = copies(styles[0], 5, tmp_path)
    silent(paintings[-1])
    manifest = make_manifest([{"content": contents[0], "style": [style]} for style in paintings])
    summary, _ = run_in_process(manifest, tmp_path / "out")
    assert (summary.ok, summary.kinds) == (4, {"StorageError": 1})


@pytest.fixture
def own_worker(tmp_path: Path) -> Iterator[Worker]:
    """A worker without a job around it."""
    with closing(
        Worker(worker_settings(tmp_path, threads=2), container.builtin_bytes(container.DEFAULT))
    ) as worker:
        yield worker


def copies(uri: str, count: int, folder: Path) -> list[str]:
    paths = [folder / f"copy-{place}.jpg" for place in range(count)]
    for path in paths:
        shutil.copy(uri, path)
    return [str(path) for path in paths]


def half(uri: str, folder: Path) -> str:
    """Return the path of a picture with a sound head that breaks off."""
    path = folder / "half.jpg"
    data = Path(uri).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return str(path)


def test_styles_that_fill_the_memory_are_decoded_when_the_last_is_encoded(
    own_worker: Worker, styles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def noted(data: bytes, **options: Any) -> Array:
        steps.append("decode")
        return decode(data, **options)

    def encode_style(*_: Any) -> Vectors:
        time.sleep(0.02)  # time for others
        steps.append("encode")
        return np.zeros(1, np.float32)

    monkeypatch.setattr(worker, "decode", noted)
    monkeypatch.setattr(StylizeStage, "encode_style", encode_style)
    monkeypatch.setattr(StylizeStage, "large", lambda self, shape: True)
    found = own_worker.encode_styles([half(styles[0], tmp_path), *styles], {})
    assert [style.uri for style in found.vectors] == styles
    assert [error.kind for error in found.failures.values()] == ["Undecodable"]
    assert steps == ["decode", *["decode", "encode"] * len(styles)]


def follow_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count, as each style is decoded, how many are in memory."""
    decoded: list[weakref.ref[Array]] = []
    held: list[int] = []

    def followed(data: bytes, **options: Any) -> Array:
        image = decode(data, **options)
        decoded.append(weakref.ref(image))
        held.append(sum(each() is not None for each in decoded))
        return image

    monkeypatch.setattr(worker, "decode", followed)
    return held


def test_recoloured_styles_that_fill_the_memory_are_not_kept_decoded(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = follow_decoded(monkeypatch)
    given = [*copies(styles[0], 7, tmp_path), half(styles[0], tmp_path)]
    rows = [
        {"content": content, "style": [style], "preserve_color": True}
        for content, style in zip(contents[:4] * 2, given, strict=True)
    ]
    monkeypatch.setattr(StylizeStage, "large", lambda self, shape: True)
    _, results = run_in_process(make_manifest(rows), tmp_path / "out", shard_pairs=100)
    (failed,) = (row["error"] for row in results if row["error"])
    assert failed.startswith(f"Undecodable: style {given[-1]}: ")
    assert max(held) <= 4  # two rows of the content in hand, and of the one before


def test_of_many_styles_only_those_about_to_be_encoded_are_in_memory(
    own_worker: Worker, styles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = follow_decoded(monkeypatch)
    given = copies(styles[0], 80, tmp_path)
    found = own_worker.encode_styles(given, {})
    assert [style.uri for style in found.vectors] == given
    assert max(held) <= LOOKAHEAD + 8  # those at the lanes as well


def test_what_a_worker_hands_back_is_not_loaded(
    own_worker: Worker, styles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    handed_back = threading.Event()

    def slow(uri: str) -> bytes:
        read.append(uri)
        handed_back.wait(30)
        return read_bytes(uri)

    monkeypatch.setattr(worker, "read_bytes", slow)
    own_worker.leave_by = 0
    with pytest.raises(HandedBackError):
        own_worker.encode_styles(copies(styles[0], 80, tmp_path), {})
    handed_back.set()
    own_worker.leave_by = math.inf
    own_worker.encode_styles(styles[:1], {})  # comes after whatever was left to be loaded
    assert len(read) <= FETCH_THREADS + 1


def planned(contents: list[str], styles: list[str]) -> pa.Table:
    """Return a plan of one row for each content, with all styles."""
    return pa.table(
        {
            "pair_id": [str(row) for row in range(len(contents))],
            "content": contents,
            "style": pa.array([styles] * len(contents), pa.list_(pa.string())),
            "alpha": pa.array([1.0 if styles else None] * len(contents), pa.float32()),
            "output": [f"{row}.png" for row in range(len(contents))],
        }
    )


SHARD = Shard(0, 200)
NO_STYLES = bank_of([], {})


@pytest.mark.parametrize(
    ("large", "rows", "limit"),
    [(False, 80, PENDING_WRITES * WRITE_THREADS + 1), (True, 10, 1)],
    ids=["small", "large"],
)
def test_pictures_that_are_made_faster_than_written_do_not_fill_the_memory(
    own_worker: Worker,
    contents: list[str],
    monkeypatch: pytest.MonkeyPatch,
    large: bool,
    rows: int,
    limit: int,
) -> None:
    made = most = 0
    written: list[bytes] = []

    def make(pixels: Array) -> Picture:
        nonlocal made, most
        made += 1
        most = max(most, made - len(written))
        return Picture(pixels)

    def write(*arguments: Any) -> bytes:
        time.sleep(0.002)
        written.append(encode(*arguments))
        return written[-1]

    monkeypatch.setattr(StylizeStage, "large", lambda self, shape: large)
    monkeypatch.setattr(worker, "Picture", make)
    monkeypatch.setattr(worker, "encode", write)
    results = own_worker.stylize(SHARD, planned(contents[:1] * rows, []), NO_STYLES)
    assert results["status"].to_pylist() == ["ok"] * rows
    assert most <= limit


def test_of_pictures_that_fill_the_memory_the_next_is_made_when_the_last_is_written(
    own_worker: Worker, contents: list[str], styles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Semaphore(0)

    def make(*arguments: Any) -> Picture:
        together.release()
        return Picture(*arguments)

    def write(*arguments: Any) -> bytes:
        assert together.acquire(blocking=False)
        assert not together.acquire(timeout=0.1)  # time for another
        return encode(*arguments)

    bank = bank_of(own_worker.encode_styles(styles[:1], {}).vectors, {})
    monkeypatch.setattr(StylizeStage, "large", lambda self, shape: True)
    monkeypatch.setattr(stage, "Picture", make)
    monkeypatch.setattr(worker, "encode", write)
    results = own_worker.stylize(SHARD, planned(contents[:3], styles[:1]), bank)
    assert results["status"].to_pylist() == ["ok"] * 3


def test_contents_of_many_sizes_do_not_all_wait_for_others_of_theirs(
    tmp_path: Path, styles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = (20, 24, 25, 30, 32, 40, 48, 50, 60, 75, 80, 96, 100, 120)
    for height in sides:
        Image.new("RGB", (2400 // height, height)).save(tmp_path / f"{height}.png")
    waiting = most = 0

    def prepared(*arguments: Any) -> Prepared:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        return Prepared(*arguments)

    def units(_: StylizeStage, bucket: list[Prepared], parts: int) -> Iterator[Callable[[], Any]]:
        nonlocal waiting
        waiting -= len(bucket)
        yield lambda: [(each.jobs[0].pair, Picture(each.image)) for each in bucket]

    monkeypatch.setattr(stage, "Network", functools.partial(Network, pass_pixels=2400))
    monkeypatch.setattr(StylizeStage, "batch_size", lambda self, shape: 4)  # what a GPU does
    monkeypatch.setattr(StylizeStage, "units", units)
    monkeypatch.setattr(worker, "Prepared", prepared)
    plan = planned([str(tmp_path / f"{height}.png") for height in sides], styles[:1])
    bank = bank_of([StyleVector(styles[0], "", np.zeros(1, np.float32))], {})
    with closing(
        Worker(worker_settings(tmp_path), container.builtin_bytes(container.DEFAULT))
    ) as small_memory:
        results = small_memory.stylize(SHARD, plan, bank)
    assert results["height"].to_pylist() == list(sides)
    assert most == WINDOW_BATCHES


def test_what_a_worker_hands_back_is_not_written(
    own_worker: Worker, contents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_back = threading.Event()
    begun: list[threading.Thread] = []
    made = 0

    def make(pixels: Array) -> Picture:
        nonlocal made
        made += 1
        if made == 3 * WRITE_THREADS:
            own_worker.leave_by = 0
        return Picture(pixels)

    def write(*arguments: Any) -> bytes:
        begun.append(threading.current_thread())
        handed_back.wait(5)
        return encode(*arguments)

    monkeypatch.setattr(worker, "Picture", make)
    monkeypatch.setattr(worker, "encode", write)
    with pytest.raises(HandedBackError):
        own_worker.stylize(SHARD, planned(contents[:1] * 4 * WRITE_THREADS, []), NO_STYLES)
    handed_back.set()
    own_worker.leave_by = math.inf
    own_worker.stylize(
        SHARD, planned(contents[:1], []), NO_STYLES
    )  # comes after whatever was left to be written
    assert len(begun) <= WRITE_THREADS + 1


@pytest.mark.parametrize("masked", [False, True])
def test_rows_of_a_style_that_storage_did_not_give_fail_and_say_nothing_of_the_storage_now(
    own_worker: Worker, contents: list[str], styles: list[str], tmp_path: Path, masked: bool
) -> None:
    bank = bank_of([], {styles[0]: RowError("StorageError", "no answer", transient=True)})
    plan = planned(contents[:2], styles[:1])
    if masked:
        plan = plan.append_column("mask", pa.array([save_mask(tmp_path / "mask.png", 1)] * 2))
    results = own_worker.stylize(SHARD, plan, bank)
    assert results["error"].to_pylist() == [f"StorageError: style {styles[0]}: no answer"] * 2


def test_failures_keep_no_image_alive(
    own_worker: Worker,
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
) -> None:
    page, absent = tmp_path / "page.png", str(tmp_path / "absent.png")
    page.write_text("<html>")
    failures = own_worker.encode_styles([str(page), absent], {}).failures
    assert [error.kind for error in failures.values()] == ["Undecodable", "NotFound"]
    assert all(error.__traceback__ is error.__context__ is None for error in failures.values())
    del failures

    plain = {"content": contents[0], "style": styles[:1], "mask": None, "preserve_color": None}
    rows = [
        plain,
        {**plain, "content": str(page)},
        {**plain, "content": absent},
        {**plain, "mask": [absent]},
        {**plain, "style": [absent], "preserve_color": True},
    ]
    manifest = make_manifest([{**row, "output": f"{place}.png"} for place, row in enumerate(rows)])
    gc.collect()
    gc.disable()  # nothing is to wait for it
    try:
        summary, _ = run_in_process(manifest, tmp_path / "out", shard_pairs=100)
        assert (summary.ok, summary.failed) == (1, 4)
        assert not [each for each in gc.get_objects() if type(each) is RowError]
    finally:
        gc.enable()
