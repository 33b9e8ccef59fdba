"""A run from start to end in this process: resume, retry, refusals, and other storage."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import ANY, Mock, call

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.core import url_to_fs
from PIL import Image

import stylize_batch
from stylize_batch import results
from stylize_batch.annotations import write_annotations
from stylize_batch.errors import GaveUpError, JobFailedError, SystemicError, UsageError
from stylize_batch.job import run as job_run
from stylize_batch.job.run import execute
from stylize_batch.job.spec import FIXED, make_spec
from stylize_batch.job.styles import STYLES_PER_PART
from stylize_batch.layout.container import unnamed
from stylize_batch.manifest.check import check
from stylize_batch.manifest.shards import read_shard
from stylize_batch.manifest.spill import TEMPORARY_PREFIX, temporary_folder
from stylize_batch.model import container
from stylize_batch.process import place_digest
from stylize_batch.progress import Silent
from stylize_batch.root import Root
from stylize_batch.storage import read_bytes
from tests.conftest import MakeManifest, Row, read_results
from tests.controls import save_mask


def run(manifest: Path | str, output: Path | str, **settings: Any) -> stylize_batch.RunSummary:
    settings = {"style_size": 48, "device": "cpu", **settings}
    return stylize_batch.run(manifest, output=output, in_process=True, **settings)


@pytest.fixture
def manifest(make_manifest: MakeManifest, pairs: list[Row]) -> Path:
    return make_manifest([{**row, "label": index} for index, row in enumerate(pairs)])


def test_every_row_is_in_the_results_once_with_its_picture_and_finite_losses(
    manifest: Path, tmp_path: Path
) -> None:
    summary = run(manifest, tmp_path / "out")
    results = read_results(tmp_path / "out")
    assert sorted(row["label"] for row in results) == list(range(12))
    assert len({row["pair_id"] for row in results}) == 12
    for row in results:
        assert row["status"] == "ok"
        assert row["error"] is None
        assert all(math.isfinite(row[key]) for key in ("content_loss", "style_loss", "content_distance"))
        with Image.open(row["output"]) as image:
            image.load()
    assert (summary.pairs, summary.ok, summary.failed, summary.skipped) == (12, 12, 0, 0)
    losses = [row["style_loss"] for row in results]
    assert summary.mean_style_loss == pytest.approx(sum(losses) / 12, rel=1e-5)


def test_the_largest_shards_are_begun_first(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    told: list[int] = []

    class Listening(Silent):
        def advance(self, done: int, failed: int) -> None:
            told.append(done)

    few, many = contents[:2]
    rows = [{"content": few, "style": styles[:1]}, *({"content": many, "style": [style]} for style in styles)]
    settings = {"output": str(tmp_path / "out"), "in_process": True, "device": "cpu", "style_size": 48}
    execute(make_spec({"manifest": str(make_manifest(rows)), **settings, "shard_pairs": 1}), Listening())
    assert told[-2:] == [len(styles), len(styles) + 1]


@pytest.mark.parametrize(
    ("layout", "labelled", "reads"), [("files", False, 3), ("webdataset", False, 4), ("files", True, 5)]
)
def test_each_part_is_put_once_and_read_as_often_as_docs_scaling_md_counts(
    make_manifest: MakeManifest,
    pairs: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    labelled: bool,
    reads: int,
) -> None:
    asked: Counter[tuple[str, str]] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        true: Callable[..., Any] = getattr(Root, name)

        def count(root: Root, key: str, *data: bytes) -> Any:
            asked[name, key.partition("/")[0]] += 1
            return true(root, key, *data)

        return count

    for name in ("read", "put"):
        monkeypatch.setattr(Root, name, counted(name))
    labels = [{"output": f"train/{number}", "label": 1} if labelled else {} for number in range(len(pairs))]
    manifest = make_manifest([{**row, **label} for row, label in zip(pairs, labels, strict=True)])
    run(manifest, tmp_path / "out", shard_pairs=4, layout=layout)
    shards = len(list((tmp_path / "out/results").iterdir()))
    assert shards > 1
    assert asked["put", "plan"] == asked["read", "plan"] == shards + 1  # and the list of styles
    assert asked["put", "results"] == shards
    # The files layout asks the first part whether it carries anything.
    assert asked["read", "results"] == reads * shards + (layout == "files")


def test_the_output_root_holds_what_the_contract_lists_and_nothing_else(
    manifest: Path, tmp_path: Path
) -> None:
    run(manifest, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "images", "plan", "report.html", "results", "run.json", "styles",
    ]  # fmt: skip
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["state"] == "finished"
    assert record["totals"]["ok"] == 12
    assert record["chroma_subsampling"] == "4:4:4"


def test_the_time_of_every_stage_is_told_and_no_second_of_a_lane_counts_twice(
    manifest: Path, tmp_path: Path
) -> None:
    lanes = torch.get_num_threads()
    for metrics in (True, False):
        summary = run(manifest, tmp_path / f"{metrics}", metrics=metrics)
        stages = {"fetch", "decode", "encode", "stylize", "codec", "put", "wait"}
        assert set(summary.stages) == (stages | {"metrics"} if metrics else stages)
        counted = sum(summary.stages.get(stage, 0.0) for stage in ("encode", "stylize", "metrics", "wait"))
        assert counted <= lanes * summary.seconds


def test_encoding_the_styles_counts_among_the_stages(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    photos = make_manifest([{"content": uri, "style": []} for uri in contents[:1]], "photos.parquet")
    assert "encode" not in run(photos, tmp_path / "photos").stages
    mixed = make_manifest([{"content": contents[0], "style": []}, {"content": "no.jpg", "style": styles[:1]}])
    assert "encode" in run(mixed, tmp_path / "mixed").stages


def test_repeating_a_finished_run_does_nothing(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").rglob("*.jpg")}
    totals = json.loads((tmp_path / "out" / "run.json").read_text())["totals"]
    summary = run(manifest, tmp_path / "out")
    assert (summary.ok, summary.skipped, summary.images_per_second) == (12, 12, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").rglob("*.jpg")} == before
    # Of how long the work took, the run that did it knows.
    assert json.loads((tmp_path / "out" / "run.json").read_text())["totals"] == totals


def test_a_run_continues_with_the_shards_that_have_no_results_and_makes_the_same_pictures(
    manifest: Path, tmp_path: Path
) -> None:
    run(manifest, tmp_path / "out", shard_pairs=2)
    images = tmp_path / "out" / "images"
    before = {path: path.read_bytes() for path in images.rglob("*.jpg")}
    parts = sorted((tmp_path / "out" / "results").iterdir())
    for part in parts[::2]:
        for row in pq.read_table(part).to_pylist():
            Path(row["output"]).unlink()
        part.unlink()
    summary = run(manifest, tmp_path / "out", shard_pairs=2)
    assert summary.skipped == 2 * len(parts[1::2])
    assert {path: path.read_bytes() for path in images.rglob("*.jpg")} == before
    assert sorted(row["label"] for row in read_results(tmp_path / "out")) == list(range(12))


def test_a_run_killed_while_planning_plans_again_and_loses_no_picture(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    record["state"] = "planning"  # as while a plan that had lost files is made again
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    summary = run(manifest, tmp_path / "out")
    assert (summary.ok, summary.skipped) == (12, 12)
    assert len(read_results(tmp_path / "out")) == 12


def test_a_run_killed_before_run_json_was_there_is_begun_anew(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".tmp" / "run").mkdir(parents=True)
    (tmp_path / "out" / ".tmp" / "run" / "half").write_text("{")
    (tmp_path / "out" / "lease.json").write_text("{")
    with pytest.raises(UsageError, match="CUDA"):
        run(manifest, tmp_path / "out", device="cuda")
    assert not (tmp_path / "out" / ".tmp" / "run").exists()  # what fills a disk goes before the work
    assert run(manifest, tmp_path / "out").ok == 12


def test_results_that_lack_a_part_at_the_end_are_an_error(manifest: Path, tmp_path: Path) -> None:
    class Saboteur(Silent):
        def advance(self, done: int, failed: int) -> None:
            if done == 12:
                (tmp_path / "out" / "results" / "part-000000.parquet").unlink(missing_ok=True)

    settings = {
        "manifest": str(manifest),
        "output": str(tmp_path / "out"),
        "in_process": True,
        "device": "cpu",
    }
    spec = make_spec({**settings, "style_size": 48, "shard_pairs": 4})
    with pytest.raises(JobFailedError, match="hold 8 of 12 rows and 2 of 3 parts"):
        execute(spec, Saboteur())
    assert execute(spec, Silent()).ok == len(read_results(tmp_path / "out")) == 12


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("layout", ["files", "webdataset"])
@pytest.mark.parametrize("damage", ["deleted", "emptied", "not listed"])
def test_a_part_that_is_lost_when_a_run_ends_takes_no_container_and_no_annotation_with_it(
    layout: str, damage: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, parts = tmp_path / "out" / "images", tmp_path / "out" / "results"
    run(manifest, tmp_path / "out", shard_pairs=4, layout=layout)
    before = sorted(images.iterdir())
    (images / "metadata.parquet").unlink(missing_ok=True)

    def lose(*arguments: Any) -> Any:
        if damage == "deleted":
            (parts / "part-000001.parquet").unlink()
        elif damage == "emptied":
            (parts / "part-000001.parquet").write_bytes(b"")
        else:
            monkeypatch.setattr(results, "listed_shards", lambda _: set[int]())
        return (write_annotations if layout == "files" else unnamed)(*arguments)

    monkeypatch.setattr(job_run, "write_annotations" if layout == "files" else "unnamed", lose)
    if damage == "not listed":
        run(manifest, tmp_path / "out", shard_pairs=4, layout=layout)
    else:
        with pytest.raises(JobFailedError, match=r"part-000001\.parquet is gone or damaged; run again"):
            run(manifest, tmp_path / "out", shard_pairs=4, layout=layout)
        assert not (images / "metadata.parquet").exists()
        monkeypatch.undo()
        run(manifest, tmp_path / "out", shard_pairs=4, layout=layout)
    assert sorted(images.iterdir()) == before


def test_too_many_failures_in_what_is_stored_end_the_run_whatever_was_reported(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    """As of a shard that two workers were at, of which the last could not read its photographs any more."""
    part = tmp_path / "out" / "results" / "part-000000.parquet"

    class Saboteur(Silent):
        def advance(self, done: int, failed: int) -> None:
            if part.exists():
                table = pq.ParquetFile(part).read()
                failures = pa.array(["failed"] * len(table), table.schema.field("status").type)
                at = table.schema.get_field_index("status")
                pq.write_table(table.set_column(at, table.schema.field(at), failures), part)

    settings = {"output": str(tmp_path / "out"), "in_process": True, "device": "cpu", "style_size": 48}
    spec = make_spec({"manifest": str(make_manifest(pairs[:1])), **settings, "max_failed": "0"})
    with pytest.raises(GaveUpError, match="1 row failed"):
        execute(spec, Saboteur())


def test_results_with_fewer_or_more_rows_than_the_manifest_are_an_error(
    manifest: Path, tmp_path: Path
) -> None:
    run(manifest, tmp_path / "out", shard_pairs=4)
    part = tmp_path / "out" / "results" / "part-000000.parquet"
    pq.write_table(pq.ParquetFile(part).read().slice(1), part)
    with pytest.raises(JobFailedError, match="hold 11 of 12 rows"):
        run(manifest, tmp_path / "out", shard_pairs=4)
    part.unlink()
    assert run(manifest, tmp_path / "out", shard_pairs=4).ok == 12
    shutil.copy(part, part.with_name("part-000009.parquet"))
    with pytest.raises(JobFailedError, match="hold 16 of 12 rows and 4 of 3 parts"):
        run(manifest, tmp_path / "out", shard_pairs=4)


def test_a_link_out_of_the_root_ends_the_job_and_nothing_is_written_or_deleted_there(
    manifest: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    run(manifest, tmp_path / "out")
    (tmp_path / "out" / "images").rename(outside)
    (tmp_path / "out" / "images").symlink_to(outside)
    for part in (tmp_path / "out" / "results").iterdir():
        part.unlink()
    before = {path: path.stat().st_mtime_ns for path in outside.iterdir()}
    with pytest.raises(JobFailedError, match="leads out of the output root"):
        run(manifest, tmp_path / "out")
    with pytest.raises(UsageError, match="leads out of the output root"):
        run(manifest, tmp_path / "out", overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in outside.iterdir()} == before
    assert not list((tmp_path / "out").glob("results/*"))


def test_what_a_run_killed_while_planning_left_in_the_temporary_folder_goes(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    ended = subprocess.Popen(["true"])
    ended.wait()
    killed = folder / f"{TEMPORARY_PREFIX}{place_digest()}-{ended.pid}-x"
    # Only another machine can tell that these are of no living process, until they are old.
    elsewhere, old = (folder / f"{TEMPORARY_PREFIX}0-{number}-x" for number in (ended.pid, 1))
    for each in (killed, elsewhere, old):
        each.mkdir(parents=True)
        (each / "bucket-00000.arrow").write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * 86_400))
    with temporary_folder() as living:
        run(manifest, tmp_path / "out")
        assert set(folder.iterdir()) == {Path(living), elsewhere}


def test_results_of_another_run_do_not_count(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "a")
    run(manifest, tmp_path / "b")
    foreign = next((tmp_path / "a" / "results").iterdir())
    (tmp_path / "b" / "results" / foreign.name).write_bytes(foreign.read_bytes())
    summary = run(manifest, tmp_path / "b")
    assert summary.skipped < 12
    assert summary.ok == 12


def test_a_root_that_was_moved_is_not_continued_under_two_names(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out", limit=3)
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=f"name their pictures at {tmp_path}/out/; move them back"):
        run(manifest, tmp_path / "moved", limit=3)
    assert run(manifest, tmp_path / "moved", limit=3, overwrite=True).ok == 3


def test_an_equal_manifest_beside_other_images_does_not_get_the_first_ones_pictures(
    manifest: Path, tmp_path: Path
) -> None:
    run(manifest, tmp_path / "out", limit=3)
    (tmp_path / "link").symlink_to(manifest.parent)
    assert run(tmp_path / "link" / manifest.name, tmp_path / "out", limit=3).skipped == 3
    other = tmp_path / "other" / manifest.name
    other.parent.mkdir()
    shutil.copy(manifest, other)
    with pytest.raises(UsageError, match=f"now start from {other.parent}; move it back"):
        run(other, tmp_path / "out", limit=3)


def test_styles_are_not_encoded_again(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out")
    parts = set((tmp_path / "out" / "styles").iterdir())
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 2
    next((tmp_path / "out" / "results").iterdir()).unlink()
    run(manifest, tmp_path / "out")
    assert set((tmp_path / "out" / "styles").iterdir()) == parts


CHANGES: dict[str, Any] = {
    "size": 64, "crop": 32, "style_size": 64, "format": "png", "quality": 80, "layout": "parquet", "metrics": False, "precision": "bf16",
    "limit": 3, "shard_pairs": 5,
}  # fmt: skip


def test_no_setting_the_root_keeps_for_good_can_change(
    manifest: Path, make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    assert {*CHANGES, "model"} == set(FIXED)
    run(manifest, tmp_path / "out", shard_pairs=3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def refused(manifest: Path = manifest, **changes: Any) -> str:
        with pytest.raises(UsageError) as caught:
            run(manifest, tmp_path / "out", **{"shard_pairs": 3, **changes})
        assert "start anew with --overwrite" in str(caught.value)
        return str(caught.value)

    for name, value in CHANGES.items():
        word = "--no-metrics" if name == "metrics" else name
        assert refused(**{name: value}).startswith(f"{word} was ")
    other = tmp_path / "other.safetensors"
    other.write_bytes(changed_model())
    assert refused(model=str(other)).startswith("model was adain-vgg16 for this output root")
    assert refused(make_manifest(pairs[:4])).startswith("the manifest has changed")
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()
    }


def changed_model() -> bytes:
    """Return the shipped model with one weight changed."""
    data = bytearray(container.builtin_bytes(container.DEFAULT))
    data[-1] ^= 1
    return bytes(data)


def test_free_settings_may_change(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out")
    run(manifest, tmp_path / "out", max_failed="3", batch_size=2, retry_failed=True)


def test_overwrite_starts_anew_and_deletes_only_its_own(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out", format="png")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "annotations.json").write_text("{}")  # of a COCO dataset, which this one is not
    summary = run(manifest, tmp_path / "out", overwrite=True)
    assert summary.skipped == 0
    assert (summary.styles["encoded"], summary.styles["kept"]) == (2, 0)
    assert not (tmp_path / "out" / "annotations.json").exists()
    assert not list((tmp_path / "out" / "images").rglob("*.png"))
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_an_earlier_runs_folder_does_not_stand_in_the_way_of_a_picture(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    run(make_manifest([{**pairs[0], "output": "a.jpg/b.jpg"}]), tmp_path / "out")
    flat = make_manifest([{**pairs[0], "output": "a.jpg"}], "flat.parquet")
    assert run(flat, tmp_path / "out", overwrite=True).ok == 1


def test_a_plan_of_which_nothing_was_made_fixes_nothing(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CUDA"):
        run(manifest, tmp_path / "out", size=64, device="cuda")
    assert run(manifest, tmp_path / "out", size=48, format="png").ok == 12
    with pytest.raises(UsageError, match="size was 48"):
        run(manifest, tmp_path / "out", size=64, format="png")


@pytest.mark.parametrize("moment", ["workers start", "pictures are made", "annotations are written"])
def test_a_run_that_another_has_begun_anew_over_ends_and_leaves_it_alone(
    moment: str,
    make_manifest: MakeManifest,
    pairs: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = tmp_path / "out" / "run.json"
    theirs: list[str] = []

    def begin_anew() -> None:
        shutil.rmtree(tmp_path / "out" / "results", ignore_errors=True)
        theirs.append(json.dumps({**json.loads(record.read_text()), "run": "theirs"}))
        record.write_text(theirs[0])

    class Suspended(Silent):
        def phase(self, name: str, *_: object, **__: object) -> None:
            if moment == "workers start" and name == "Starting workers":
                begin_anew()

        def advance(self, done: int, failed: int) -> None:
            if moment == "pictures are made" and done == 2:
                begin_anew()

    def annotate(*arguments: Any) -> Any:
        if moment == "annotations are written":
            begin_anew()
        return write_annotations(*arguments)

    monkeypatch.setattr(job_run, "write_annotations", annotate)
    manifest = make_manifest([pairs[0], pairs[2]])  # with one style
    spec = make_spec(
        {"manifest": str(manifest), "output": str(tmp_path / "out"), "in_process": True, "device": "cpu"}
    )
    with pytest.raises(JobFailedError, match="another run has begun anew"):
        execute(spec, Suspended())
    assert [record.read_text()] == theirs


def test_a_run_suspended_in_its_last_steps_deletes_nothing_of_the_one_that_began_anew(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"

    def suspended(root: Root, identity: str, shards: int) -> list[str]:
        monkeypatch.setattr(job_run, "unnamed", unnamed)
        (output / "lease.json").unlink()
        assert run(manifest, output, layout="webdataset", size=64, overwrite=True).ok == 12
        return unnamed(root, identity, shards)

    monkeypatch.setattr(job_run, "unnamed", suspended)
    with pytest.raises(JobFailedError, match="another run has begun anew"):
        run(manifest, output, layout="webdataset")
    assert json.loads((output / "run.json").read_text())["settings"]["size"] == 64
    assert len(list((output / "images").glob("*.tar"))) == len(list((output / "results").iterdir()))


def test_a_shard_of_another_runs_plan_is_not_worked_on(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out", shard_pairs=12)
    with pytest.raises(SystemicError, match="another run has begun anew"):
        read_shard(Root(str(tmp_path / "out")), 0, "mine")


def test_a_column_that_may_be_a_misspelling_is_told_of_before_the_work(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    told: list[str] = []

    class Listening(Silent):
        def phase(self, name: str, *_: object, **__: object) -> None:
            told.append(name)

        def note(self, line: str) -> None:
            told.append(line)

    manifest = make_manifest([{**pairs[0], "aplha": 0.5, "label": 3}])
    spec = make_spec(
        {"manifest": str(manifest), "output": str(tmp_path / "out"), "in_process": True, "device": "cpu"}
    )
    execute(spec, Listening())
    assert "'aplha'" in told[0]
    assert "did you mean 'alpha'" in told[0]
    assert told[1:] == ["Checking the manifest", "Starting workers", "Encoding styles", "Stylizing"]


def test_overwrite_with_a_bad_manifest_deletes_nothing(
    manifest: Path, make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    run(manifest, tmp_path / "out")
    bad = make_manifest([{**pairs[0], "alpha": 7.0}], "bad.parquet")
    with pytest.raises(UsageError, match="alpha is 7"):
        run(bad, tmp_path / "out", overwrite=True)
    assert run(manifest, tmp_path / "out").skipped == 12


def test_a_run_killed_while_overwriting_is_begun_anew(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out", format="png")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps({**record, "run": "new", "state": "erasing"}))
    (tmp_path / "out" / "images" / "old.jpg").touch()
    for picture in (tmp_path / "out" / "images").rglob("*.png"):
        picture.unlink()
    summary = run(manifest, tmp_path / "out", format="png")
    assert (summary.ok, summary.skipped) == (12, 0)
    assert not (tmp_path / "out" / "images" / "old.jpg").exists()
    assert all(Path(row["output"]).exists() for row in read_results(tmp_path / "out"))


def test_damaged_parts_of_the_results_and_the_style_bank_are_made_again(
    manifest: Path, tmp_path: Path
) -> None:
    run(manifest, tmp_path / "out")
    for folder in ("results", "styles"):
        next((tmp_path / "out" / folder).iterdir()).write_bytes(b"")
    summary = run(manifest, tmp_path / "out")
    assert summary.ok == len(read_results(tmp_path / "out")) == 12
    assert summary.skipped < 12
    parts = (tmp_path / "out" / "styles").iterdir()
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 2


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(b""), Path.unlink], ids=["empty", "missing"]
)
@pytest.mark.parametrize("name", ["shard-000000.parquet", "styles.parquet"])
def test_a_plan_that_has_lost_a_file_ends_a_run_with_its_name_and_is_made_again_by_the_next(
    name: str, damage: Callable[[Path], object], manifest: Path, tmp_path: Path
) -> None:
    run(manifest, tmp_path / "out", shard_pairs=4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "plan").iterdir()}
    (tmp_path / "out" / "results" / "part-000000.parquet").unlink()
    damage(tmp_path / "out" / "plan" / name)
    with pytest.raises(JobFailedError, match=f"plan/{name} is damaged or missing: .*repeated command"):
        run(manifest, tmp_path / "out")
    summary = run(manifest, tmp_path / "out")
    assert (summary.ok, summary.skipped) == (12, 8)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "plan").iterdir()} == before


@pytest.mark.parametrize("name", ["shard-000000.parquet", "styles.parquet"])
def test_a_plan_that_two_runs_have_mixed_is_made_again(name: str, manifest: Path, tmp_path: Path) -> None:
    for output in ("out", "theirs"):
        run(manifest, tmp_path / output, shard_pairs=4)
    plan, record = tmp_path / "out" / "plan", tmp_path / "out" / "run.json"
    before = {path.name: path.read_bytes() for path in plan.iterdir()}
    (plan / name).write_bytes((tmp_path / "theirs" / "plan" / name).read_bytes())
    (tmp_path / "out" / "results" / "part-000000.parquet").unlink()
    record.write_text(json.dumps({**json.loads(record.read_text()), "state": "running"}))
    summary = run(manifest, tmp_path / "out")
    assert (summary.ok, summary.skipped) == (12, 8)
    assert {path.name: path.read_bytes() for path in plan.iterdir()} == before


def test_a_folder_of_manifests_may_hold_the_output_root(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    make_manifest(pairs[:2])
    first = run(tmp_path, tmp_path / "out")
    assert (first.pairs, run(tmp_path, (tmp_path / "out").as_uri()).skipped) == (2, 2)
    assert check(str(tmp_path), 1, Silent()).rows == 2


@pytest.mark.parametrize("given", ["link", "link/../link", "file:link/../link"])
def test_a_folder_of_manifests_that_holds_the_output_root_may_be_named_through_a_link(
    given: str, make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_manifest(pairs[:2], "real/pairs.parquet")
    named = given.replace("link", f"{tmp_path}/link", 1).replace("file:", "file://")
    for skipped in (0, 2):
        assert run(named, tmp_path / "real" / "out").skipped == skipped


def test_a_path_that_can_never_be_read_is_a_failed_row_even_alone(
    make_manifest: MakeManifest, pairs: list[Row], contents: list[str], tmp_path: Path
) -> None:
    rows = [
        pairs[0],
        {**pairs[0], "content": f"{contents[0]}/below-a-file.jpg"},
        {**pairs[0], "content": "n" * 300},
    ]
    summary = run(make_manifest(rows), tmp_path / "out", shard_pairs=1)
    assert (summary.ok, summary.kinds) == (1, {"NotFound": 1, "Unreadable": 1})


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_someone_else_is_never_touched(manifest: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "home" / "images").mkdir(parents=True)
    (tmp_path / "home" / "images" / "holiday.jpg").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(manifest, tmp_path / "home", overwrite=overwrite)
    assert (tmp_path / "home" / "images" / "holiday.jpg").read_text() == "mine"


def test_failed_rows_are_retried_when_asked(
    make_manifest: MakeManifest, pairs: list[Row], contents: list[str], tmp_path: Path
) -> None:
    late = tmp_path / "late.jpg"
    manifest = make_manifest([*pairs, {"content": str(late), "style": pairs[0]["style"]}])
    assert run(manifest, tmp_path / "out", shard_pairs=13).failed == 1
    late.write_bytes(Path(contents[0]).read_bytes())
    assert run(manifest, tmp_path / "out", shard_pairs=13).failed == 1
    observer = Mock()
    same = {
        "output": str(tmp_path / "out"),
        "style_size": 48,
        "device": "cpu",
        "in_process": True,
        "shard_pairs": 13,
    }
    summary = execute(make_spec({"manifest": str(manifest), **same, "retry_failed": True}), observer)
    assert (summary.ok, summary.failed, summary.skipped) == (13, 0, 12)
    observer.phase.assert_called_with("Stylizing", 13, 12, ANY)
    assert observer.advance.call_args_list[-1] == call(13, 0)
    assert len({row["pair_id"] for row in read_results(tmp_path / "out")}) == 13


def test_shards_without_failed_rows_are_not_made_again_when_others_are_retried(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    manifest = make_manifest([pairs[0], {**pairs[0], "content": str(tmp_path / "absent.jpg")}])
    written: list[dict[str, int]] = []
    for again in (False, True):
        assert run(manifest, tmp_path / "out", shard_pairs=1, retry_failed=again).failed == 1
        parts = (tmp_path / "out" / "results").iterdir()
        written.append({pq.read_table(part)["status"][0].as_py(): part.stat().st_mtime_ns for part in parts})
    assert written[0]["ok"] == written[1]["ok"]
    assert written[0]["failed"] < written[1]["failed"]


def test_a_style_that_fails_fails_its_pairs_once_by_its_name_and_is_retried_when_asked(
    make_manifest: MakeManifest, pairs: list[Row], styles: list[str], tmp_path: Path
) -> None:
    late = tmp_path / "late.jpg"
    content = pairs[0]["content"]
    rows = [
        pairs[0],
        {"content": content, "style": [str(late)]},
        {"content": content, "style": [styles[0], str(late), str(late)]},
        {"content": content, "style": [str(late), str(tmp_path / "absent.jpg")]},
    ]
    manifest = make_manifest(rows)
    assert run(manifest, tmp_path / "out").kinds == {"NotFound": 3}
    failed = [row for row in read_results(tmp_path / "out") if row["status"] == "failed"]
    assert {row["error"] for row in failed} == {f"NotFound: style {late} does not exist"}
    late.write_bytes(Path(styles[1]).read_bytes())
    summary = run(manifest, tmp_path / "out", retry_failed=True)
    assert (summary.ok, summary.failed, summary.skipped) == (3, 1, 1)


def test_a_crash_while_styles_are_encoded_loses_at_most_one_part_of_the_bank(
    make_manifest: MakeManifest, tmp_path: Path
) -> None:
    for index in range(2 * STYLES_PER_PART + 1):
        Image.new("RGB", (9, 9), (index, 0, 0)).save(tmp_path / f"style{index:03}.png")
    styles = sorted(map(str, tmp_path.glob("style*.png")))
    manifest = make_manifest([{"content": styles[0], "style": [style]} for style in styles])
    program = """
import os, sys
import stylize_batch
from stylize_batch import worker
real = worker.read_bytes
worker.read_bytes = lambda path: os.kill(os.getpid(), 9) if path.endswith("128.png") else real(path)
stylize_batch.run(sys.argv[1], output=sys.argv[2], in_process=True, device="cpu", style_size=9)
"""
    killed = subprocess.run(
        [sys.executable, "-c", program, str(manifest), str(tmp_path / "out")], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "styles").iterdir()}
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 2 * len(styles) // 3
    assert run(manifest, tmp_path / "out", style_size=9).ok == len(styles)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "styles").iterdir()}
    assert sum(pq.read_metadata(part).num_rows for part in after) == len(styles)
    assert parts.items() <= after.items()


def test_too_many_failures_end_the_run_and_keep_what_is_done(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    rows = [{**row, "content": str(tmp_path / f"absent{index}.jpg")} for index, row in enumerate(pairs[:4])]
    manifest = make_manifest([*pairs, *rows])
    with pytest.raises(GaveUpError, match="NotFound"):
        run(manifest, tmp_path / "out", max_failed="10%", shard_pairs=2)
    summary = run(manifest, tmp_path / "out", max_failed="25%", shard_pairs=2)
    assert (summary.ok, summary.failed) == (12, 4)


def test_a_run_with_too_many_failures_ends_at_once_and_repeated_does_no_work(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    rows = [{**row, "content": str(tmp_path / f"absent{index}.jpg")} for index, row in enumerate(pairs)]
    manifest = make_manifest(rows)
    for _ in range(2):
        with pytest.raises(GaveUpError, match="1 row failed"):
            run(manifest, tmp_path / "out", max_failed="0", shard_pairs=1)
        assert len(list((tmp_path / "out" / "results").iterdir())) == 1


@pytest.mark.parametrize("mount_point", [False, True])
@pytest.mark.parametrize(
    ("folder", "recolored"), [("photos", False), ("paintings", False), ("paintings", True), ("masks", False)]
)
def test_a_folder_of_images_that_is_gone_fails_no_row(
    make_manifest: MakeManifest,
    pictures: Path,
    tmp_path: Path,
    folder: str,
    recolored: bool,
    mount_point: bool,
) -> None:
    photos = Path(shutil.copytree(pictures / "content", tmp_path / "photos" / "class"))
    style = Path(shutil.copytree(pictures / "style", tmp_path / "paintings" / "class")) / "tapa-cloth.jpg"
    (tmp_path / "masks" / "class").mkdir(parents=True)
    row = {
        "style": [str(style)],
        "mask": [save_mask(tmp_path / "masks" / "class" / "left.png", 0, 1, 2, 3)],
        "preserve_color": recolored,
    }
    manifest = make_manifest([{"content": str(path), **row} for path in photos.iterdir()])
    aside = (tmp_path / folder).rename(tmp_path / "aside")
    if mount_point:
        (tmp_path / folder / "class").mkdir(parents=True)
    with pytest.raises(
        JobFailedError, match=f"the folder .*/{folder}/class of the images is missing or empty"
    ):
        run(manifest, tmp_path / "out", shard_pairs=4)
    if mount_point:
        shutil.rmtree(tmp_path / folder)
    aside.rename(tmp_path / folder)
    summary = run(manifest, tmp_path / "out", shard_pairs=4)
    assert (summary.ok, summary.failed) == (summary.pairs, 0)


def test_a_folder_that_vanishes_half_way_through_a_shard_fails_no_row(
    make_manifest: MakeManifest,
    pictures: Path,
    styles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos = Path(shutil.copytree(pictures / "content", tmp_path / "photos"))
    manifest = make_manifest([{"content": str(path), "style": styles[:1]} for path in photos.iterdir()])
    reads: list[str] = []
    one_by_one = threading.Lock()

    def read(uri: str) -> bytes:
        with one_by_one:
            reads.append(uri)
            if len(reads) == 3:
                photos.rename(tmp_path / "aside")
            return read_bytes(uri)

    with monkeypatch.context() as patched:
        patched.setattr("stylize_batch.contents.read_bytes", read)
        with pytest.raises(JobFailedError, match=r"the folder .*/photos of the images is missing"):
            run(manifest, tmp_path / "out", shard_pairs=100)
    (tmp_path / "aside").rename(photos)
    summary = run(manifest, tmp_path / "out", shard_pairs=100)
    assert (summary.ok, summary.failed) == (summary.pairs, 0)


def test_rows_with_a_wrong_folder_fail_while_others_are_there(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    wrong = [{**pairs[0], "content": str(tmp_path / "absent" / f"{index}.jpg")} for index in range(3)]
    summary = run(make_manifest([*pairs[:3], *wrong]), tmp_path / "out", shard_pairs=1)
    assert (summary.ok, summary.kinds) == (3, {"NotFound": 3})


@pytest.mark.parametrize("wrong", [{"mask": ["absent/mask.png"]}, {"style": ["absent/style.png"]}])
def test_a_row_that_alone_needs_a_mask_or_a_style_to_recolor_and_names_a_wrong_folder_fails(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, wrong: Row
) -> None:
    plain = {**pairs[0], "mask": None, "preserve_color": False, "label": os.urandom(9999).hex()}
    lone = {**pairs[-1], "mask": None, "preserve_color": "style" in wrong, "label": "", **wrong}
    # The larger shard is begun first, so that nothing is left to be finished while the other is tried again.
    summary = run(make_manifest([plain, lone]), tmp_path / "out", shard_pairs=1)
    assert (summary.ok, summary.kinds) == (1, {"NotFound": 1})


def test_a_row_with_a_wrong_folder_fails_also_when_it_is_tried_again_without_the_others_of_its_shard(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    masks = [save_mask(tmp_path / "mask.png", 1), str(tmp_path / "absent" / "mask.png")]
    rows = [{**row, "mask": [mask]} for row, mask in zip(pairs, masks, strict=False)]
    manifest = make_manifest(rows)
    for again in (False, True):
        summary = run(manifest, tmp_path / "out", shard_pairs=100, retry_failed=again)
        assert (summary.ok, summary.kinds) == (1, {"NotFound": 1})


def test_an_output_root_that_cannot_be_written_is_refused(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to the output root"):
        run(manifest, tmp_path / "file" / "out")


def test_relative_paths_start_from_the_manifest(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    for name, source in (("c.jpg", contents[0]), ("s.jpg", styles[0])):
        (tmp_path / name).write_bytes(Path(source).read_bytes())
    run(make_manifest([{"content": "c.jpg", "style": ["s.jpg"]}]), tmp_path / "out")
    (row,) = read_results(tmp_path / "out")
    assert (row["status"], row["content"], row["style"]) == ("ok", "c.jpg", ["s.jpg"])


@pytest.mark.parametrize("manifest", ["in/m.parquet", "", "in/*.parquet"], ids=["file", "folder", "glob"])
@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_manifest_pictures_model_and_output_may_lie_on_any_fsspec_storage(
    pair_of_bytes: dict[str, bytes], make_manifest: MakeManifest, tmp_path: Path, protocol: str, manifest: str
) -> None:
    base = f"{protocol}://{tmp_path}/x"
    fs, path = url_to_fs(base)
    rows = [{"content": "c.jpg", "style": [f"{base}/in/s.jpg"]}]
    if not manifest:  # relative paths start from the folder given
        rows[0]["content"] = "in/c.jpg"
    fs.makedirs(f"{path}/in")
    for name, data in {**pair_of_bytes, "m.parquet": make_manifest(rows).read_bytes()}.items():
        fs.pipe_file(f"{path}/in/{name}", data)
    settings = {"model": f"{base}/in/m.safetensors"}
    assert run(f"{base}/{manifest}", f"{base}/out", **settings).ok == 1
    with fs.open(f"{path}/out/results/part-000000.parquet") as file:
        (row,) = pq.read_table(file).to_pylist()
    with fs.open(row["output"]) as file:
        Image.open(file).load()
    assert run(f"{base}/{manifest}", f"{base}/out", **settings).skipped == 1


def test_a_manifest_may_lie_at_the_top_of_memory(
    pair_of_bytes: dict[str, bytes], make_manifest: MakeManifest
) -> None:
    memory = fsspec.filesystem("memory")
    for name, data in pair_of_bytes.items():
        memory.pipe_file(name, data)
    memory.pipe_file("m.parquet", make_manifest([{"content": "c.jpg", "style": ["s.jpg"]}]).read_bytes())
    assert run("memory://m.parquet", "memory://top-out").ok == 1


@pytest.fixture
def pair_of_bytes(contents: list[str], styles: list[str]) -> dict[str, bytes]:
    """A content, a style and a model, by name."""
    return {
        "c.jpg": Path(contents[0]).read_bytes(),
        "s.jpg": Path(styles[0]).read_bytes(),
        "m.safetensors": container.builtin_bytes(container.DEFAULT),
    }


def test_names_with_spaces_percent_and_unicode_are_just_names(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "a b%20c [x] ü#?"
    folder.mkdir()
    content, style = folder / "c*d.jpg", folder / "s t.jpg"
    content.write_bytes(Path(contents[0]).read_bytes())
    style.write_bytes(Path(styles[0]).read_bytes())
    run(make_manifest([{"content": str(content), "style": [str(style)]}]), tmp_path / "out ü")
    (row,) = read_results(tmp_path / "out ü")
    assert row["status"] == "ok", row["error"]
    assert Path(row["output"]).exists()
    assert "a b%20c" not in row["output"]


def test_very_long_names_fit_into_the_default_key(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    content, style = tmp_path / f"{'漢' * 80}.jpg", tmp_path / f"{'字' * 80}.jpg"
    content.write_bytes(Path(contents[0]).read_bytes())
    style.write_bytes(Path(styles[0]).read_bytes())
    assert run(make_manifest([{"content": str(content), "style": [str(style)]}]), tmp_path / "out").ok == 1


def test_a_run_in_one_process_needs_no_ray(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version

    def without_ray(package: str) -> str:
        if package == "ray":
            raise metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(metadata, "version", without_ray)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(manifest, tmp_path / "out").ok == 12
    versions = json.loads((tmp_path / "out" / "run.json").read_text())["versions"]
    assert "torch" in versions
    assert "ray" not in versions
