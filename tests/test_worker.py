"""The worker: one failed row for one bad image, and pixels that depend on the pair alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import stylize_batch
from stylize_batch.errors import JobFailedError
from stylize_batch.images.decode import decode
from stylize_batch.model.network import ContentFeatures, Network
from stylize_batch.worker import Worker
from tests.conftest import MakeManifest, Row, read_results


def run(manifest: Path, output: Path, **settings: Any) -> tuple[stylize_batch.RunSummary, list[Row]]:
    summary = stylize_batch.run(
        str(manifest), output=str(output), in_process=True, device="cpu", style_size=48, **settings
    )
    return summary, read_results(output)


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
    Image.new("1", (20_000, 20_000)).save(bad / "bomb.png")
    kinds = {
        "empty.jpg": "Undecodable",
        "page.jpg": "Undecodable",
        "half.jpg": "Undecodable",
        "folder.jpg": "NotFound",
        "absent.jpg": "NotFound",
        "thin.png": "TooSmall",
        "bomb.png": "TooLarge",
    }
    rows = [{"content": str(bad / name), "style": [styles[0]]} for name in kinds]
    rows.append({"content": contents[0], "style": [styles[0]]})
    rows.append({"content": contents[0], "style": [str(bad / "page.jpg")]})
    rows.append({"content": contents[0], "style": [styles[0], str(bad / "absent.jpg")]})
    summary, results = run(make_manifest(rows), tmp_path / "out")
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
    assert (summary.ok, summary.failed) == (1, 9)
    assert sum(summary.kinds.values()) == 9


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


def test_batches_make_the_pictures_that_single_pairs_make(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, singles = run(make_manifest(pairs), tmp_path / "singles", format="png", size=40, crop=40)
    monkeypatch.setattr(Worker, "_batch_size", lambda self, shape: 4)  # what a GPU does
    _, batches = run(make_manifest(pairs), tmp_path / "batches", format="png", size=40, crop=40)
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

    monkeypatch.setattr(Worker, "_batch_size", lambda self, shape: 4)
    monkeypatch.setattr(Network, "stylize", small_memory)
    summary, _ = run(make_manifest(pairs), tmp_path / "out", size=40, crop=40, shard_pairs=100)
    assert summary.ok == len(pairs)
    assert sizes[:7] == [4, 2, 1, 1, 2, 1, 1]


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
    with pytest.raises(JobFailedError, match="cannot write to"):
        run(make_manifest(pairs), output)
    assert not list((output / "results").iterdir())
    (output / "images").unlink()
    summary, results = run(make_manifest(pairs), output)
    assert summary.ok == len(results) == len(pairs)
