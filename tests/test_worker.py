"""The worker: one failed row for one bad image, and pixels that depend on the pair alone."""

from __future__ import annotations

import functools
import gc
import math
import shutil
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import stylize_batch
from stylize_batch import stage, worker
from stylize_batch.contents import LOOKAHEAD
from stylize_batch.errors import HandedBackError, JobFailedError, RowError
from stylize_batch.images.decode import Array, decode
from stylize_batch.job import styles as job_styles
from stylize_batch.model import checkpoint, container
from stylize_batch.model.network import ContentFeatures, Network
from stylize_batch.model.tiling import PASS_PIXELS
from stylize_batch.stage import Prepared, StylizeStage
from stylize_batch.storage import read_bytes
from stylize_batch.worker import FETCH_THREADS, Worker, peak_memory
from tests.conftest import SAMPLE, MakeManifest, Row, read_results, worker_settings
from tests.images.samples import bombs


def run(manifest: Path, output: Path, **settings: Any) -> tuple[stylize_batch.RunSummary, list[Row]]:
    summary = stylize_batch.run(
        str(manifest), output=str(output), in_process=True, device="cpu", style_size=48, **settings
    )
    return summary, read_results(output)


@contextmanager
def cores(count: int) -> Generator[None]:
    """Have a worker find so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    summary, results = run(make_manifest(rows), tmp_path / "out")
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
    _, results = run(make_manifest(rows), tmp_path / "out", size=35)
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
    summary, results = run(make_manifest(rows), tmp_path / "out", size=40, crop=32)
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
    summary, _ = run(
        make_manifest([{"content": content, "style": []} for content in contents]), tmp_path / "out"
    )
    assert summary.ok == 6
    assert summary.mean_style_loss is None
    assert not {"encode", "stylize"} & set(summary.stages)
    assert {"decode", "codec"} <= set(summary.stages)


def test_crop_gives_squares(make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path) -> None:
    _, results = run(make_manifest(pairs[:2]), tmp_path / "out", size=40, crop=32)
    assert {(row["height"], row["width"]) for row in results} == {(32, 32)}


def test_a_pairs_pixels_do_not_depend_on_its_neighbours(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    _, together = run(make_manifest(pairs), tmp_path / "all", format="png", shard_pairs=100)
    _, (alone,) = run(make_manifest(pairs[5:6], "one.parquet"), tmp_path / "one", format="png")
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
            _, results = run(manifest, output, format="png", size=40, shard_pairs=shard_pairs)
        made.append({row["pair_id"]: Path(row["output"]).read_bytes() for row in results})
    assert len(made[0]) == len(pairs)
    assert made[0] == made[1] == made[2]


def test_the_last_content_of_a_shard_keeps_all_lanes_at_work(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{"content": content, "style": [style]} for content in contents[:3] for style in styles[:4]]
    units: list[int] = []
    real = StylizeStage._stylize_unit  # pyright: ignore[reportPrivateUsage]

    def counted(self: StylizeStage, bucket: Any, encoded: Any, batches: Any) -> Any:
        units.append(len(batches))
        return real(self, bucket, encoded, batches)

    monkeypatch.setattr(StylizeStage, "_stylize_unit", counted)
    with cores(2):
        summary, _ = run(make_manifest(rows), tmp_path / "out", shard_pairs=100)
    assert summary.ok == 12
    assert sorted(units) == [2, 2, 4, 4]  # both lanes have a content each, and then halves of one


@pytest.mark.parametrize("crop", [40, None], ids=["one size", "mixed sizes"])
def test_batches_make_the_pictures_that_single_pairs_make(
    make_manifest: MakeManifest,
    pairs: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crop: int | None,
) -> None:
    _, singles = run(make_manifest(pairs), tmp_path / "singles", format="png", size=40, crop=crop)
    monkeypatch.setattr(StylizeStage, "batch_size", lambda self, shape: 4)  # what a GPU does
    _, batches = run(make_manifest(pairs), tmp_path / "batches", format="png", size=40, crop=crop)
    for one, other in zip(singles, batches, strict=True):
        assert one["pair_id"] == other["pair_id"]
        pixels = [decode(Path(row["output"]).read_bytes()).astype(int) for row in (one, other)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
        assert one["style_loss"] == pytest.approx(other["style_loss"], rel=1e-3)


def test_a_batch_that_does_not_fit_in_memory_is_halved(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Network.stylize

    def small_memory(self: Network, content: ContentFeatures, *rest: Any, **options: Any) -> Any:
        sizes.append(content.contents)
        if content.contents > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, content, *rest, **options)

    monkeypatch.setattr(StylizeStage, "batch_size", lambda self, shape: 4)
    monkeypatch.setattr(Network, "stylize", small_memory)
    with cores(1):  # on which batches follow each other
        summary, _ = run(make_manifest(pairs), tmp_path / "out", size=40, crop=40, shard_pairs=100)
    assert summary.ok == len(pairs)
    assert sizes[:7] == [4, 2, 1, 1, 2, 1, 1]


def test_few_style_images_wait_for_a_content_with_many_recoloured_pairs(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [
        {"content": contents[0], "style": [styles[step % 5]], "alpha": step / 40, "preserve_color": True}
        for step in range(1, 21)
    ]
    together: list[int] = []
    real = StylizeStage.units

    def units(self: StylizeStage, bucket: list[Prepared], parts: int) -> Any:
        together.append(sum(len(each.jobs) for each in bucket))
        return real(self, bucket, parts)

    monkeypatch.setattr(StylizeStage, "units", units)
    summary, _ = run(make_manifest(pairs), tmp_path / "out", size=40, shard_pairs=100)
    assert summary.ok == 20
    assert together == [8, 8, 4]


@pytest.mark.parametrize("what", ["encode_styles", "encode_contents", "stylize"])
def test_what_fits_in_memory_alone_fails_no_row_because_of_what_is_beside_it(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    crowded = 0
    real = getattr(Network, what)

    def small_memory(self: Network, *rest: Any, **options: Any) -> Any:
        nonlocal crowded
        if torch.get_num_threads() == 1:  # others have the other cores
            crowded += 1
            raise MemoryError
        return real(self, *rest, **options)

    monkeypatch.setattr(Network, what, small_memory)
    with cores(2):
        summary, _ = run(make_manifest(pairs), tmp_path / "out", size=40, shard_pairs=100)
    assert summary.ok == len(pairs)
    assert crowded


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
    _, results = run(make_manifest(rows), tmp_path / "out", format="png")
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
    _, plain = run(make_manifest(pairs[:2]), tmp_path / "plain", format="png", metrics=False)
    _, full = run(make_manifest(pairs[:2]), tmp_path / "full", format="png")
    for row, other in zip(plain, full, strict=True):
        assert row["content_loss"] is row["style_loss"] is row["content_distance"] is None
        assert np.isfinite([other["content_loss"], other["style_loss"], other["content_distance"]]).all()
        assert Path(row["output"]).read_bytes() == Path(other["output"]).read_bytes()


def test_outputs_that_cannot_be_written_fail_no_row_and_end_the_job(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    run(make_manifest(pairs), output)
    shutil.rmtree(output / "images")
    for part in (output / "results").iterdir():
        part.unlink()
    (output / "images").touch()  # a file where the folder must be
    with pytest.raises(JobFailedError, match="cannot use"):
        run(make_manifest(pairs), output)
    assert not list((output / "results").iterdir())
    (output / "images").unlink()
    summary, results = run(make_manifest(pairs), output)
    assert summary.ok == len(results) == len(pairs)


def save_mask(path: Path, *columns: int, size: int = 96) -> str:
    """A mask that is white in some eighths of its width."""
    mask = np.zeros((size, size), np.uint8)
    for column in columns:
        mask[:, column * size // 8 : (column + 1) * size // 8] = 255
    Image.fromarray(mask).save(path)
    return str(path)


def controlled_rows(content: str, styles: list[str], folder: Path) -> list[Row]:
    """One row for each control and for each combination of them."""
    left, right = save_mask(folder / "left.png", 0, 1, 2, 3), save_mask(folder / "right.png", 4, 5, 6, 7)
    white = save_mask(folder / "white.png", *range(8))
    variants: dict[str, Row] = {
        "plain": {"style": styles[:1]},
        "full-mask": {"style": styles[:1], "mask": [white]},
        "three-equal": {"style": [styles[0]] * 3},
        "two-white-masks": {"style": [styles[0]] * 2, "mask": [white, white]},
        "masks": {"style": styles[:2], "mask": [left, right]},
        "complement": {"style": styles[:2], "mask": [left]},
        "masks-alpha": {"style": styles[:2], "mask": [left, right], "alpha": 0.5},
        "colour": {"style": styles[:1], "preserve_color": True},
        "colour-weight-one": {"style": styles[:2], "style_weights": [1.0, 0.0], "preserve_color": True},
        "colour-full-mask": {"style": styles[:1], "mask": [white], "preserve_color": True},
        "colour-masks-alpha": {"style": styles[:2], "mask": [left], "preserve_color": True, "alpha": 0.7},
        "colour-blend": {"style": styles[:3], "preserve_color": True},
    }
    empty = {"style_weights": None, "alpha": None, "preserve_color": None, "mask": None}
    return [{"content": content, "output": name, **empty, **row} for name, row in variants.items()]


def by_name(results: list[Row]) -> tuple[dict[str, Row], dict[str, Any]]:
    rows = {Path(row["output"]).stem: row for row in results if row["output"]}
    return rows, {name: decode(Path(row["output"]).read_bytes()).astype(int) for name, row in rows.items()}


def test_every_control_works_in_one_shard_with_every_other(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    rows = controlled_rows(contents[0], styles, tmp_path)
    summary, results = run(make_manifest(rows), tmp_path / "out", format="png", shard_pairs=100)
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


def test_batches_make_the_pictures_that_single_pairs_make_with_controls_too(
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = make_manifest(controlled_rows(contents[0], styles, tmp_path))
    _, singles = run(manifest, tmp_path / "singles", format="png", shard_pairs=100)
    monkeypatch.setattr(StylizeStage, "batch_size", lambda self, shape: 8)  # what a GPU does
    sizes: list[int] = []
    stylize = Network.stylize

    def counted(
        self: Network, content: ContentFeatures, vectors: torch.Tensor, *rest: Any, **more: Any
    ) -> Any:
        sizes.append(len(vectors))
        return stylize(self, content, vectors, *rest, **more)

    monkeypatch.setattr(Network, "stylize", counted)
    with cores(1):  # on which batches follow each other
        _, batches = run(manifest, tmp_path / "batches", format="png", shard_pairs=100)
    # Pairs without masks share a batch whatever their α, weights and colours, and so do those of as many regions.
    assert sizes == [5, 2, 5]
    _, one = by_name(singles)
    _, other = by_name(batches)
    assert one.keys() == other.keys()
    for name, pixels in one.items():
        assert np.abs(pixels - other[name]).max() <= 1, name


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
    _, results = run(make_manifest(rows), tmp_path / "run", format="png", size=64, crop=64)
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
    summary, results = run(make_manifest(rows), tmp_path / "out", shard_pairs=100)
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


def test_styles_that_are_only_recoloured_are_not_encoded_for_the_bank(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    rows = [
        {"content": contents[0], "style": styles[:1], "preserve_color": False},
        {"content": contents[0], "style": styles[1:2], "preserve_color": True},
    ]
    summary, _ = run(make_manifest(rows), tmp_path / "out")
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
    summary, results = run(make_manifest(rows), tmp_path / "out")
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
            run(manifest, tmp_path / name, shard_pairs=100)
    silent()
    summary, _ = run(manifest, tmp_path / "masks", shard_pairs=100)
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
        summary, _ = run(manifest, tmp_path / "out", shard_pairs=100, retry_failed=again)
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
    summary, _ = run(manifest, tmp_path / "out", shard_pairs=1)
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
    summary, _ = run(manifest, tmp_path / "out")
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


def test_of_many_styles_only_those_about_to_be_encoded_are_in_memory(
    own_worker: Worker, styles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[weakref.ref[Array]] = []
    most = 0

    def followed(data: bytes, **options: Any) -> Array:
        nonlocal most
        image = decode(data, **options)
        decoded.append(weakref.ref(image))
        most = max(most, sum(each() is not None for each in decoded))
        return image

    monkeypatch.setattr(worker, "decode", followed)
    given = copies(styles[0], 80, tmp_path)
    found = own_worker.encode_styles(given, {})
    assert [style.uri for style in found.vectors] == given
    assert most <= LOOKAHEAD + 8  # those at the lanes as well


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
        summary, _ = run(manifest, tmp_path / "out", shard_pairs=100)
        assert (summary.ok, summary.failed) == (1, 4)
        assert not [each for each in gc.get_objects() if type(each) is RowError]
    finally:
        gc.enable()


@pytest.mark.parametrize(("bias", "kinds"), [(float("nan"), {"NotFinite": 1}), (float("inf"), {})])
def test_a_picture_of_no_numbers_fails_and_one_beyond_white_is_white(
    make_manifest: MakeManifest,
    pairs: list[Row],
    tmp_path: Path,
    bias: float,
    kinds: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = checkpoint.loads

    def broken(data: bytes) -> checkpoint.Checkpoint:
        model = load(data)
        *_, last = (each for each in model.decoder.modules() if isinstance(each, torch.nn.Conv2d))
        assert last.bias is not None
        last.bias.fill_(bias)
        return model

    monkeypatch.setattr(checkpoint, "loads", broken)
    summary, (row,) = run(make_manifest(pairs[:1]), tmp_path / "out", format="png", metrics=False)
    assert summary.kinds == kinds
    if not kinds:
        assert decode(Path(row["output"]).read_bytes()).min() == 255


def test_a_picture_too_large_for_one_pass_is_made_in_tiles_with_every_control(
    make_manifest: MakeManifest, styles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide.png"
    with Image.open(SAMPLE / "content" / "colosseum.jpg") as image:
        image.resize((400, 41)).save(wide)
    rows = [
        row
        for row in controlled_rows(str(wide), styles, tmp_path)
        if row["output"] in ("plain", "masks-alpha", "colour-masks-alpha")
    ]
    manifest = make_manifest(rows)
    _, whole = run(manifest, tmp_path / "whole", format="png")
    small = functools.partial(Network, pass_pixels=41 * 336)
    monkeypatch.setattr(stage, "Network", small)
    _, tiled = run(manifest, tmp_path / "tiled", format="png")
    rows_whole, pixels_whole = by_name(whole)
    rows_tiled, pixels_tiled = by_name(tiled)
    assert len(rows_tiled) == len(rows)
    for name, row in rows_whole.items():
        assert np.abs(pixels_whole[name] - pixels_tiled[name]).max() <= 1, name
        for loss in ("content_loss", "style_loss", "content_distance"):
            assert row[loss] == pytest.approx(rows_tiled[name][loss], rel=1e-3), (name, loss)
