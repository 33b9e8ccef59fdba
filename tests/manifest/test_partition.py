"""The partition: a part of the rows is in memory at a time, and rows that contradict are found wherever they are."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stylize_batch.errors import UsageError
from stylize_batch.manifest import partition
from stylize_batch.manifest.partition import check_and_partition
from stylize_batch.manifest.source import locate
from tests.conftest import MakeManifest, Row
from tests.manifest.planned import refused

GOOD: Row = {"content": "c", "style": ["s"]}


@pytest.mark.parametrize(("name", "limit"), [("BUCKET_ROWS", 60), ("BUCKET_BYTES", 60), ("SORT_BYTES", 3000)])
def test_of_a_long_manifest_planning_holds_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    monkeypatch.setattr(partition, name, limit)
    rows = [(f"c{index % 100:02}", f"s{index // 100}") for index in range(300)]
    contents, styles = zip(*rows, strict=True)
    pq.write_table(pa.table({"content": contents, "style": styles}), tmp_path / "m.parquet")
    source = locate(str(tmp_path / "m.parquet"))
    tables = list(check_and_partition(source, tmp_path, "jpeg", None).buckets())
    assert max(map(len, tables)) < 100
    found = [(row["content"], row["style"][0]) for table in tables for row in table.to_pylist()]
    assert sorted(found) == sorted(rows)
    if name == "SORT_BYTES":  # one bucket, and so its parts follow on
        assert found == sorted(rows)


def test_a_disk_that_cannot_hold_the_buckets_is_told_of_in_one_line(
    make_manifest: MakeManifest, tmp_path: Path
) -> None:
    source = locate(str(make_manifest([GOOD])))
    with pytest.raises(UsageError, match="set TMPDIR to a disk with room"):
        check_and_partition(source, tmp_path / "absent", "jpeg", None)


def test_identical_rows_are_refused(make_manifest: MakeManifest, tmp_path: Path) -> None:
    rows = [GOOD, {"content": "d", "style": ["s"]}, {**GOOD, "alpha": 1.0}]
    assert ".parquet, rows 0 and 2 ask for the same picture" in refused(make_manifest(rows), tmp_path / "x")


def test_identical_rows_of_two_files_are_named_with_their_files_and_counted(tmp_path: Path) -> None:
    others = [{"content": "d", "style": "s"}, {"content": "e", "style": "s"}]
    (tmp_path / "m").mkdir()
    for name, rows in (("a", [{"content": "c", "style": "s"}, *others]), ("b", others)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m" / f"{name}.parquet")
    message = refused(tmp_path / "m", tmp_path / "x")
    assert re.search(
        r"a\.parquet, row (\d), and \S+b\.parquet, row (\d), ask for the same picture; keep one; 2 rows",
        message,
    )


@pytest.mark.parametrize(("first", "second"), [("k", "k"), ("k", "k.jpg")])
def test_two_rows_with_one_output_key_are_refused(
    make_manifest: MakeManifest, tmp_path: Path, first: str, second: str
) -> None:
    rows = [
        {"content": "a", "style": ["s"], "output": first},
        {"content": "b", "style": ["s"], "output": second},
    ]
    assert "the same output key 'k.jpg'" in refused(make_manifest(rows), tmp_path / "x")


def test_a_key_that_is_another_keys_folder_is_refused(make_manifest: MakeManifest, tmp_path: Path) -> None:
    rows = [{"content": "a", "style": ["s"], "output": key} for key in ("x.png", "x.png/y.png")]
    rows[1]["content"] = "b"
    assert "'x.png' is the folder of another row's" in refused(make_manifest(rows), tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        ("c", ("x.png", "y.png"), "ask for the same picture"),
        ("d", ("x.png", "x.png"), "have the same output key 'x.png'"),
        ("d", ("x.png", "x.png/y.png"), "'x.png' is the folder of another row's"),
    ],
)
def test_duplicates_are_looked_for_in_every_file_of_hashes(
    content: str, keys: tuple[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "HASHES", 1)  # a file for each row
    others = [f"other{row}" for row in range(300)]
    columns = {
        "content": ["c", *others, content],
        "style": ["s"] * 302,
        "output": [keys[0], *(f"{name}.png" for name in others), keys[1]],
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert message in refused(tmp_path / "m.parquet", tmp_path / "x")
    assert len(list((tmp_path / "x" / "spill").glob("keys-*"))) > 300
