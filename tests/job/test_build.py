"""A run that builds its manifest: from a dataset to pictures in one command that can be repeated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

import stylize_batch
from stylize_batch.errors import UsageError
from stylize_batch.job.build import ensure_manifest
from stylize_batch.manifest.build import build
from stylize_batch.manifest.built import read_settings
from stylize_batch.manifest.pairing import Pairing
from stylize_batch.progress import Silent
from tests.conftest import Cli, MakeManifest, Row, read_results

FAST: dict[str, Any] = {"in_process": True, "device": "cpu", "size": 48, "style_size": 48, "metrics": False}


@pytest.fixture
def photos(pictures: Path, tmp_path: Path) -> Path:
    """Two photographs in two classes."""
    for name, label in (("cat", "animal"), ("colosseum", "landmark")):
        target = tmp_path / "photos" / label
        target.mkdir(parents=True)
        shutil.copy(pictures / "content" / f"{name}.jpg", target)
    return tmp_path / "photos"


@pytest.fixture
def source(photos: Path, pictures: Path) -> dict[str, Any]:
    return {"content": str(photos), "style": str(pictures / "style")}


def ensure(folder: Path, source: dict[str, Any], *, anew: bool = False, **settings: Any) -> list[Row]:
    manifest = folder / "built.parquet"
    ensure_manifest(str(manifest), **source, pairing=Pairing(**settings), observer=Silent(), anew=anew)
    return pq.read_table(manifest).to_pylist()


def test_a_repeated_run_takes_the_manifest_that_is_there_and_goes_on(
    source: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {**FAST, "output": str(tmp_path / "out"), "build": {"keep_originals": True}}
    first = stylize_batch.run(**source, **settings)
    assert (first.pairs, first.ok, first.skipped) == (4, 4, 0)
    assert {row["label"] for row in read_results(tmp_path / "out")} == {"animal", "landmark"}
    shutil.copy(photos / "animal" / "cat.jpg", photos / "animal" / "later.jpg")
    (tmp_path / "out" / "results" / "part-000000.parquet").unlink()
    again = stylize_batch.run(**source, **settings)
    assert again.pairs == 4
    assert 0 < again.skipped < 4
    anew = stylize_batch.run(**source, **settings, overwrite=True)
    assert (anew.pairs, anew.ok, anew.skipped) == (6, 6, 0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1}, "seed was 0"),
        ({"alpha": "0.5..1"}, "alpha was not given when"),
        ({"keep_originals": True}, "keep_originals was False"),
        ({"styles_per_content": 2}, "styles_per_content was 1"),
        ({"all_pairs": True}, "styles_per_content was 1"),
    ],
)
def test_a_manifest_built_with_other_settings_is_not_taken_for_this_one(
    source: dict[str, Any], tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    before = ensure(tmp_path, source)
    with pytest.raises(
        UsageError, match=rf"^{name} .* choose another --output, or start anew with --overwrite$"
    ):
        ensure(tmp_path, source, **changes)
    assert pq.read_table(tmp_path / "built.parquet").to_pylist() == before
    assert ensure(tmp_path, source, styles_per_content=1) == before  # the default, written out
    assert ensure(tmp_path, source, **changes, anew=True) != before


def test_a_manifest_of_which_nothing_was_made_is_built_anew(
    source: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**FAST, "output": str(tmp_path / "out")}
    monkeypatch.setenv("STYLIZE_BATCH_SCHEMES", "s3")
    with pytest.raises(UsageError, match="uses plain paths"):
        stylize_batch.run(**source, **settings)
    monkeypatch.delenv("STYLIZE_BATCH_SCHEMES")
    assert (tmp_path / "out.parquet").exists()
    with pytest.raises(UsageError, match="CUDA"):  # now there is a plan, but nothing made of it
        stylize_batch.run(**source, **{**settings, "device": "cuda"})
    other = {**source, "style": str(pictures / "content")}
    summary = stylize_batch.run(**other, **settings)
    assert (summary.ok, summary.notes) == (2, [f"{tmp_path}/out.parquet was there and has been built anew"])
    with pytest.raises(UsageError, match=r"^style was "):
        stylize_batch.run(**source, **settings)


def test_other_sources_are_other_settings(source: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    ensure(tmp_path, source)
    with pytest.raises(UsageError, match=r"^content was "):
        ensure(tmp_path, {**source, "content": str(photos / "animal")})


@pytest.mark.parametrize("anew", [False, True])
def test_a_file_that_was_not_built_is_never_replaced(
    source: dict[str, Any], make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, anew: bool
) -> None:
    by_hand = make_manifest(pairs, "built.parquet").read_bytes()
    with pytest.raises(UsageError, match="is no manifest that was built; move it or choose another --output"):
        ensure(tmp_path, source, anew=anew)
    assert (tmp_path / "built.parquet").read_bytes() == by_hand
    (tmp_path / "built.parquet").write_text("content,style\n")
    with pytest.raises(UsageError, match="is no manifest that was built"):
        ensure(tmp_path, source, anew=anew)


def test_a_runs_own_pictures_are_neither_its_sources_nor_deleted_for_a_run_of_them(
    source: dict[str, Any], pictures: Path, make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings: dict[str, Any] = {**FAST, "output": str(out)}
    stylize_batch.run(**source, **settings)
    shutil.copy(pictures / "content" / "cat.jpg", out / "images" / "mine.jpg")
    build(str(out / "images"), source["style"], str(tmp_path / "own.parquet"), Pairing(), observer=Silent())
    by_hand = shutil.copy(make_manifest(pairs), out / "images" / "by_hand.parquet")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for own in (
        {**source, "content": str(out / "images")},
        {**source, "style": str(out / "images")},
        {"manifest": str(tmp_path / "own.parquet")},
        {"manifest": str(by_hand)},
    ):
        with pytest.raises(UsageError, match="lies in the output root, where the run replaces"):
            stylize_batch.run(**own, **settings, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_nothing_is_built_for_an_output_root_of_someone_else(source: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(UsageError, match=r"is not empty and holds no run\.json"):
        stylize_batch.run(**source, **FAST, output=str(tmp_path / "out"))
    assert not (tmp_path / "out.parquet").exists()


def test_sources_manifest_and_output_may_be_on_object_storage(source: dict[str, Any], tmp_path: Path) -> None:
    bucket = f"memory://run-{tmp_path.name}"
    fs = fsspec.filesystem("memory")
    for role, folder in source.items():
        fs.put(f"{folder}/", f"/run-{tmp_path.name}/{role}/", recursive=True)
    summary = stylize_batch.run(
        content=f"{bucket}/content", style=f"{bucket}/style", output=f"{bucket}/out", **FAST
    )
    assert summary.ok == 2
    settings = read_settings(f"{bucket}/out.parquet")
    assert settings is not None
    assert settings["content"] == f"{bucket}/content"
    assert fs.exists(f"/run-{tmp_path.name}/out/images/animal/cat.jpg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pairs.parquet", "--content", "photos", "--style", "styles"), "exclude each other"),
        (("--job", "recipe.yaml"), "build: these settings make a manifest of --content and --style"),
        (("--content", "absent", "--style", "photos"), "there is no content source absent"),
        (("--content", "photos", "--style", "photos", "--job", "unknown.yaml"), "unknown setting 'build.alfa'; known: "),
        (("--content", "photos", "--style", "photos", "--job", "reversed.yaml"), "error: build.alpha 1..0.5 is reversed"),
        (("--content", "photos", "--style", "photos", "--job", "many.yaml"), "3 styles per content are asked for"),
        (("--content", "list.csv", "--style", "photos"), "say where its paths start: build.content-root (`build` is a sec"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_exits_2_with_one_line_and_writes_nothing(
    photos: Path, cli: Cli, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    for name, section in (
        ("recipe", "{seed: 1}\nmanifest: pairs.parquet"), ("unknown", "{alfa: 1}"), ("reversed", "{alpha: 1..0.5}"),
        ("many", "{styles-per-content: 3}"),
    ):  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(f"build: {section}\n")
    (tmp_path / "list.csv").write_text("path\nabsent.jpg\n")
    before = sorted(tmp_path.rglob("*"))
    done = cli("run", *arguments, "--in-process")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Listing ")]
    assert len(lines) == 1
    assert sorted(tmp_path.rglob("*")) == before
