"""Bank files: made of a source, made again of what changed, and used by runs."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import stylize_batch
from stylize_batch.engine.in_process import InProcessEngine
from stylize_batch.errors import RowError, UsageError
from stylize_batch.job import styles as job_styles
from stylize_batch.job.bank import Encoded, encode
from stylize_batch.progress import Silent
from stylize_batch.root import Root
from stylize_batch.settings import ShardReport
from stylize_batch.styles import StyleBank, StyleVector, bank_of, read_bank, read_parts
from tests.conftest import MakeManifest, Row, read_results

SIZE = 48


def encoded(source: object, output: object, **settings: Any) -> Encoded:
    fast: dict[str, Any] = {"style_size": SIZE, "device": "cpu", "observer": Silent()}
    return encode(str(source), str(output), **{**fast, **settings})


@pytest.fixture
def paintings(pictures: Path, tmp_path: Path) -> Path:
    """A folder of five styles of this test alone."""
    return Path(shutil.copytree(pictures / "style", tmp_path / "paintings"))


@pytest.fixture
def manifest(make_manifest: MakeManifest, contents: list[str], paintings: Path) -> Path:
    rows: list[Row] = [
        {"content": contents[0], "style": [f"paintings/{path.name}"]} for path in sorted(paintings.iterdir())
    ]
    return make_manifest(rows)


def run(manifest: Path, output: Path, **settings: Any) -> stylize_batch.RunSummary:
    fast: dict[str, Any] = {"in_process": True, "device": "cpu", "style_size": SIZE, "format": "png"}
    return stylize_batch.run(str(manifest), output=str(output), **{**fast, **settings})


def pictures_of(output: Path) -> dict[str, bytes]:
    return {row["pair_id"]: Path(row["output"]).read_bytes() for row in read_results(output)}


def spoil(path: Path) -> None:
    """Replace what is in a file, but neither its size nor its time."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change(path: Path) -> None:
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(path, quality=91)


def test_a_run_with_a_bank_makes_the_same_pictures_and_reads_no_style(
    manifest: Path, paintings: Path, tmp_path: Path
) -> None:
    plain = run(manifest, tmp_path / "plain")
    assert plain.styles == {"encoded": 5, "from_bank": 0, "kept": 0, "failed": 0}
    encoded(paintings, tmp_path / "bank.parquet")
    for path in paintings.iterdir():
        spoil(path)
    summary = run(manifest, tmp_path / "banked", styles=str(tmp_path / "bank.parquet"))
    assert summary.styles == {"encoded": 0, "from_bank": 5, "kept": 0, "failed": 0}
    assert summary.ok == 5
    assert pictures_of(tmp_path / "banked") == pictures_of(tmp_path / "plain")
    assert [row["style_loss"] for row in read_results(tmp_path / "banked")] == [
        row["style_loss"] for row in read_results(tmp_path / "plain")
    ]


def test_what_a_bank_gave_stays_with_the_output_and_what_it_lacks_or_has_too_old_is_encoded(
    manifest: Path, paintings: Path, tmp_path: Path
) -> None:
    missing, changed, *same = sorted(paintings.iterdir())
    aside = missing.rename(tmp_path / "aside.jpg")
    encoded(paintings, tmp_path / "bank.parquet")
    aside.rename(missing)
    change(changed)
    for path in same:
        spoil(path)
    summary = run(manifest, tmp_path / "out", styles=str(tmp_path / "bank.parquet"))
    assert summary.styles == {"encoded": 2, "from_bank": 3, "kept": 0, "failed": 0}
    for settings in ({}, {"styles": str(tmp_path / "bank.parquet")}):
        for part in (tmp_path / "out" / "results").iterdir():
            part.unlink()
        again = run(manifest, tmp_path / "out", **settings)
        assert again.styles == {"encoded": 0, "from_bank": 0, "kept": 5, "failed": 0}
        assert (again.ok, again.failed) == (5, 0)


def test_a_style_that_changes_between_the_pictures_of_one_output_is_told_of(
    manifest: Path, paintings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    changed, touched, *_ = sorted(paintings.iterdir())
    run(manifest, output, shard_pairs=1)
    parts = sorted((output / "results").iterdir())
    parts[0].unlink()
    change(changed)
    os.utime(touched, (0, 0))
    (note,) = run(manifest, output, shard_pairs=1).notes
    assert f"1 style has changed since an earlier run (paintings/{changed.name}): " in note
    assert "--overwrite makes all anew" in note
    for part in parts:
        part.unlink()
    change(changed)
    assert run(manifest, output, shard_pairs=1).notes == []  # no picture shows the old one


def test_while_pictures_are_made_the_driver_holds_each_style_once(
    manifest: Path, paintings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Any]] = []
    begun: list[int] = []

    def note(vectors: Iterable[StyleVector], failures: dict[str, RowError]) -> StyleBank:
        found = list(vectors)
        held.extend(
            weakref.ref(style.vector if style.vector.base is None else style.vector.base) for style in found
        )
        return bank_of(found, failures)

    def run_shards(engine: InProcessEngine, shards: list[int], bank: StyleBank) -> Iterator[ShardReport]:
        begun.append(sum(each() is not None for each in held))
        return real(engine, shards, bank)

    real = InProcessEngine.run_shards
    monkeypatch.setattr("stylize_batch.job.run.bank_of", note)
    monkeypatch.setattr(InProcessEngine, "run_shards", run_shards)
    first = next(paintings.iterdir())
    aside = first.rename(tmp_path / "aside.jpg")
    encoded(paintings, tmp_path / "bank.parquet")
    aside.rename(first)
    summary = run(manifest, tmp_path / "out", styles=str(tmp_path / "bank.parquet"))
    assert len(held) == summary.styles["from_bank"] + summary.styles["encoded"] == 5
    assert begun == [0]


@pytest.mark.parametrize(
    ("settings", "message"), [({"style_size": 40}, "size 48, --style-size is 40"), ({}, "another model")]
)
def test_a_bank_of_another_model_or_style_size_is_refused_before_anything_is_written(
    manifest: Path, paintings: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    bank = tmp_path / "bank.parquet"
    encoded(paintings, bank)
    if not settings:
        table = pq.read_table(bank)
        other = {b"stylize_batch.bank": b"0123-48"}
        pq.write_table(table.replace_schema_metadata(other), bank)
    with pytest.raises(UsageError, match=message):
        run(manifest, tmp_path / "out", styles=str(bank), **settings)
    assert not (tmp_path / "out").exists()


def test_a_bank_holds_what_a_run_would_encode(manifest: Path, paintings: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out")
    encoded(paintings, tmp_path / "bank.parquet")
    bank = read_bank(str(tmp_path / "bank.parquet"))
    made = read_parts(Root(str(tmp_path / "out")), bank.key)
    assert bank.styles == sorted(str(path) for path in paintings.iterdir())
    for uri, style in bank.by_uri().items():
        of_run = made[os.path.relpath(uri, tmp_path)]
        assert style.version == of_run.version
        assert np.array_equal(style.vector, of_run.vector)
    assert sorted(path.name for path in tmp_path.glob("bank*")) == ["bank.parquet"]


def test_repeated_only_what_changed_is_encoded_and_only_the_sources_styles_stay(
    paintings: Path, tmp_path: Path
) -> None:
    bank = tmp_path / "bank.parquet"
    assert (encoded(paintings, bank).styles, encoded(paintings, bank).encoded) == (5, 0)
    before = read_bank(str(bank)).by_uri()
    written = bank.stat().st_mtime_ns
    encoded(paintings, bank)
    assert bank.stat().st_mtime_ns == written
    gone, changed, *same = sorted(paintings.iterdir())
    gone.unlink()
    change(changed)
    for path in same:
        spoil(path)
    again = encoded(paintings, bank)
    assert (again.styles, again.encoded, again.dropped, again.failures) == (4, 1, 1, {})
    after = read_bank(str(bank)).by_uri()
    assert list(after) == [str(changed), *map(str, same)]
    assert not np.array_equal(after[str(changed)].vector, before[str(changed)].vector)
    assert all(np.array_equal(after[str(path)].vector, before[str(path)].vector) for path in same)
    changed.unlink()
    assert (encoded(paintings, bank).encoded, read_bank(str(bank)).styles) == (0, list(map(str, same)))


def test_a_bank_of_another_model_or_style_size_is_not_replaced(paintings: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank.parquet"
    encoded(paintings, bank)
    before = bank.read_bytes()
    with pytest.raises(UsageError, match="was encoded with --style-size 48; choose another -o"):
        encoded(paintings, bank, style_size=40)
    with pytest.raises(UsageError, match="was encoded with another model; choose another -o"):
        encoded(paintings, bank, model="adain-compact")
    assert bank.read_bytes() == before


def test_an_interrupted_call_is_gone_on_with(
    paintings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(Silent):
        def advance(self, done: int, failed: int) -> None:
            if done == 4 and not encoding_done:
                raise KeyboardInterrupt

        def phase(self, name: str, *_: object, **__: object) -> None:
            encoding_done[:] = [] if name.startswith("Encoding") else [name]

    encoding_done: list[str] = []
    monkeypatch.setattr(job_styles, "STYLES_PER_PART", 2)
    bank = tmp_path / "bank.parquet"
    with pytest.raises(KeyboardInterrupt):
        encoded(paintings, bank, observer=Impatient())
    assert not bank.exists()
    assert encoded(paintings, bank).encoded == 1
    assert len(read_bank(str(bank)).styles) == 5
    assert sorted(path.name for path in tmp_path.glob("bank*")) == ["bank.parquet"]


def test_styles_that_cannot_be_encoded_are_named_and_the_rest_is_kept(
    paintings: Path, tmp_path: Path
) -> None:
    (paintings / "broken.jpg").write_bytes(b"no picture")
    made = encoded(paintings, tmp_path / "bank.parquet")
    assert made.styles == 5
    ((uri, error),) = made.failures.items()
    assert (uri, error.kind) == (str(paintings / "broken.jpg"), "Undecodable")
    assert len(read_bank(str(tmp_path / "bank.parquet")).styles) == 5


def test_banks_live_on_any_storage(paintings: Path) -> None:
    made = encoded(paintings, "memory://banks/paintings.parquet")
    assert made.styles == 5
    assert read_bank("memory://banks/paintings.parquet").styles == sorted(map(str, paintings.iterdir()))
    assert encoded(paintings, "memory://banks/paintings.parquet").encoded == 0


def test_what_is_no_bank_is_never_replaced(paintings: Path, manifest: Path, tmp_path: Path) -> None:
    before = manifest.read_bytes()
    with pytest.raises(UsageError, match="is no style bank"):
        encoded(paintings, manifest)
    assert manifest.read_bytes() == before
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        encoded(paintings, tmp_path / "folder.parquet")


def test_a_list_may_name_only_what_a_manifest_may(tmp_path: Path) -> None:
    listed = tmp_path / "styles.csv"
    listed.write_text("path\nmemory://a/b.jpg\nhttp://127.0.0.1:9/c.jpg\n")
    Root("memory://a").put("b.jpg", b"")
    with pytest.raises(UsageError, match="http"):
        encoded(listed, tmp_path / "bank.parquet")


def test_a_source_without_a_single_good_style_is_refused(tmp_path: Path) -> None:
    (tmp_path / "paintings").mkdir()
    (tmp_path / "paintings" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="no style of"):
        encoded(tmp_path / "paintings", tmp_path / "bank.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["paintings"]
