"""Checking a manifest: what a run would refuse is refused, images that would fail are named, the rest is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from stylize_batch.errors import UsageError
from stylize_batch.manifest import partition
from stylize_batch.manifest.check import check
from stylize_batch.manifest.schema import ManifestError
from stylize_batch.progress import Silent
from tests.conftest import Cli, MakeManifest, Row


def test_a_sound_manifest_is_summed_up(make_manifest: MakeManifest, pairs: list[Row]) -> None:
    rows = [
        {**row, "split": "train" if index else "val", "label": index % 3} for index, row in enumerate(pairs)
    ]
    report = check(str(make_manifest(rows[:-1])), None, Silent())
    assert (report.rows, report.contents, report.styles, report.checked) == (11, 6, 2, 8)
    assert report.pairs_per_content == (1, 1.833, 2)
    assert report.splits == {"train": 10, "val": 1}
    assert report.labels == {"0": 4, "1": 4, "2": 3}
    assert report.failures == {}


def test_a_content_whose_pairs_are_read_in_parts_counts_once(
    make_manifest: MakeManifest, pairs: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "SORT_BYTES", 500)
    rows = [{**row, "alpha": step / 5} for row in pairs[:6] for step in range(5)]
    report = check(str(make_manifest(rows)), None, Silent())
    assert (report.rows, report.contents, report.pairs_per_content) == (30, 3, (10, 10.0, 10))
    assert report.checked == 3 + report.styles


def test_columns_are_told_apart_and_a_likely_misspelling_is_told_of(
    make_manifest: MakeManifest, pairs: list[Row]
) -> None:
    rows = [{**row, "alpha": 0.5, "preserve_colour": True, "masks": None, "label": 1} for row in pairs]
    report = check(str(make_manifest(rows)), 0, Silent())
    assert report.controls == ["alpha"]
    assert report.carried == ["preserve_colour", "masks", "label"]
    assert [note.rpartition("; ")[2] for note in report.notes] == [
        "did you mean 'preserve_color'?",
        "did you mean 'mask'?",
    ]


def test_images_that_a_run_could_not_use_are_named_by_kind(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "half.jpg").write_bytes(Path(pairs[0]["content"]).read_bytes()[:1500])
    rows: list[Row] = [
        pairs[0],
        {"content": "empty.jpg", "style": pairs[0]["style"]},
        {"content": "half.jpg", "style": ["absent-1.jpg", "absent-2.jpg"]},
    ]
    report = check(str(make_manifest(rows)), None, Silent())
    assert {kind: failures.count for kind, failures in report.failures.items()} == {
        "Undecodable": 2,
        "NotFound": 2,
    }
    assert sorted(report.failures["Undecodable"].examples)[0].startswith(f"{tmp_path}/empty.jpg: ")
    assert all(str(tmp_path) in example for example in report.failures["NotFound"].examples)


def test_masks_are_checked_too(make_manifest: MakeManifest, pairs: list[Row]) -> None:
    row = {**pairs[0], "style": [pairs[0]["style"][0], pairs[1]["style"][0]], "mask": ["absent-mask.png"]}
    report = check(str(make_manifest([row])), None, Silent())
    assert "absent-mask.png" in report.failures["NotFound"].examples[0]


def test_a_sample_is_bounded_and_the_same_every_time(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    rows = [{"content": f"absent-{number}.jpg", "style": styles} for number in range(40)]
    manifest = str(make_manifest(rows))
    first, second = check(manifest, 3, Silent()), check(manifest, 3, Silent())
    assert first.checked == 6
    assert first.failures["NotFound"].count == 3
    assert first == second
    shuffled = check(str(make_manifest(rows[::-1], "other.parquet")), 3, Silent())
    assert shuffled.failures == first.failures


def test_what_planning_refuses_is_refused(make_manifest: MakeManifest, pairs: list[Row]) -> None:
    with pytest.raises(ManifestError, match=r"row 1: alpha is 7"):
        check(str(make_manifest([pairs[0], {**pairs[1], "alpha": 7.0}])), 1, Silent())
    with pytest.raises(ManifestError, match="rows 0 and 1 ask for the same picture"):
        check(str(make_manifest([pairs[0], pairs[0]])), 1, Silent())


def test_the_command_exits_0_2_or_3(make_manifest: MakeManifest, pairs: list[Row], cli: Cli) -> None:
    done = cli("manifest", "check", make_manifest(pairs), "--sample", "2")
    assert done.returncode == 0, done.stderr
    assert "12 rows: 6 contents, 2 styles" in done.stderr
    assert "4 images decoded, 0 failed" in done.stderr
    assert cli("manifest", "check", "absent.parquet").returncode == 2
    done = cli("manifest", "check", make_manifest([{**pairs[0], "content": "absent.jpg"}]), "--all", "--json")
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert report["failures"]["NotFound"]["count"] == 1
    assert "failed: 1 × NotFound" in done.stderr


def test_small_images_count_by_the_size_they_have_in_the_run(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (4, 4)).save(small)
    manifest = str(make_manifest([{**pairs[0], "content": str(small)}]))
    assert set(check(manifest, None, Silent()).failures) == {"TooSmall"}
    assert not check(manifest, None, Silent(), size=32).failures
    assert set(check(manifest, None, Silent(), crop=32).failures) == {"TooSmall"}
    with pytest.raises(UsageError, match="--crop 64 is larger than --size 32"):
        check(manifest, None, Silent(), size=32, crop=64)


def test_names_that_the_runs_format_makes_one_are_refused(
    make_manifest: MakeManifest, pairs: list[Row], cli: Cli
) -> None:
    manifest = make_manifest([{**pairs[0], "output": "a"}, {**pairs[1], "output": "a.png"}])
    assert check(str(manifest), 0, Silent()).rows == 2
    done = cli("manifest", "check", manifest, "--format", "png")
    assert done.returncode == 2
    assert "same output key" in done.stderr
    with pytest.raises(UsageError, match="--format gif: give jpeg, png, webp"):
        check(str(manifest), 0, Silent(), format="gif")
