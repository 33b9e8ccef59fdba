"""Reading manifests: whatever lies there is read in full, or refused in one line that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stylize_batch
from stylize_batch.errors import UsageError
from stylize_batch.manifest import partition
from stylize_batch.manifest import source as reading
from stylize_batch.manifest.partition import check_and_partition
from stylize_batch.manifest.schema import ManifestError
from stylize_batch.manifest.source import (
    columns_of,
    fingerprint,
    locate,
    read_batches,
    size_of,
    unread_partitions,
)
from tests.manifest.planned import planned, refused

ROWS = pa.table({"content": [f"c{row}" for row in range(100)], "style": ["s"] * 100})


def read(manifest: str) -> list[str]:
    """Return the contents of all rows, in order."""
    batches = read_batches(locate(manifest))
    return [content for _, _, batch in batches for content in batch["content"].to_pylist()]


@pytest.mark.parametrize("group", [1, 7, 100])
@pytest.mark.parametrize("whole", [True, False])
def test_row_groups_of_any_size_are_read_in_order(
    group: int, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_ROWS", 9)
    monkeypatch.setattr(reading, "READ_ROWS", 2)
    if not whole:
        monkeypatch.setattr(reading, "SMALL_FILE", 0)
    pq.write_table(ROWS, tmp_path / "m.parquet", row_group_size=group)
    assert read(str(tmp_path / "m.parquet")) == ROWS["content"].to_pylist()


def test_wide_rows_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH_BYTES", 100_000)
    noise = np.random.default_rng(0).bytes(100 * 10_000)
    wide = pa.array([noise[row * 10_000 : (row + 1) * 10_000] for row in range(100)])
    pq.write_table(ROWS.append_column("embedding", wide), tmp_path / "m.parquet")
    batches = [batch for _, _, batch in read_batches(locate(str(tmp_path / "m.parquet")))]
    assert sum(batch.num_rows for batch in batches) == 100
    assert max(batch.nbytes for batch in batches) < 200_000


@pytest.mark.parametrize("arrow", [True, False])
def test_a_text_that_a_file_holds_once_is_not_in_memory_once_for_every_row(
    arrow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_BYTES", 1_000_000)
    monkeypatch.setattr(partition, "SORT_BYTES", 1_000_000)
    rows, contents = 10_000, [f"c{row % 5}" for row in range(10_000)]
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 2_000]))
    styles = pa.array([f"s{row}" for row in range(rows)])
    table = pa.table({"content": contents, "style": styles, "prompt": texts})
    pq.write_table(table, tmp_path / "m.parquet", store_schema=arrow)
    assert (tmp_path / "m.parquet").stat().st_size < 200_000
    source = locate(str(tmp_path / "m.parquet"))
    batches = [batch for _, _, batch in read_batches(source)]
    spread = check_and_partition(source, tmp_path, "jpeg", None)
    for parts in (batches, list(spread.buckets())):
        assert max(part.nbytes for part in parts) < 4_000_000
        assert sum(part.num_rows for part in parts) == rows
    # Still in one order, so that each content's rows share their shards.
    assert pa.concat_tables(spread.buckets())["content"].to_pylist() == sorted(contents)


def test_thousands_of_small_files_are_one_manifest(tmp_path: Path) -> None:
    for index in range(2000):
        folder = tmp_path / "many" / f"{index % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"content": [f"c{index}"], "style": ["s"]}), folder / f"{index}.parquet")
    source = locate(str(tmp_path / "many"))
    assert size_of(source).rows == 2000
    assert len(set(read(str(tmp_path / "many")))) == 2000
    before = fingerprint(source)
    assert fingerprint(source) == before
    pq.write_table(pa.table({"content": ["other"], "style": ["s"]}), tmp_path / "many" / "0" / "0.parquet")
    assert fingerprint(source) != before


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a"]),
        ("**/*.parquet", ["a", "b", "c"]),
        ("x/**/*.parquet", ["b", "c"]),
        ("x/*/*.parquet", ["c"]),
        ("[ab].parquet", ["a"]),
        ("?.parquet", ["a"]),
        ("", ["a", "b", "c"]),
    ],
)
def test_globs_find_what_a_shell_finds(pattern: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    for place in ("a", "x/b", "x/y/c", "x/_skipped", ".hidden"):
        table = pa.table({"content": [place.rpartition("/")[2]], "style": ["s"]})
        pq.write_table(table, tmp_path / f"{place}.parquet")
    (tmp_path / "x" / "notes.txt").write_text("no manifest")
    assert sorted(read(f"{tmp_path}/{pattern}")) == expected


@settings(max_examples=30)
@given(
    contents=st.lists(
        st.text(min_size=1).filter(lambda text: "://" not in text), min_size=1, max_size=20, unique=True
    ),
    kind=st.sampled_from(
        [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    ),
)
def test_text_of_any_script_and_type_is_planned_as_written(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str], kind: pa.DataType
) -> None:
    folder = tmp_path_factory.mktemp("text")
    table = pa.table(
        {"content": pa.array(contents).cast(kind), "style": pa.array(["s"] * len(contents)).cast(kind)}
    )
    pq.write_table(table, folder / "m.parquet")
    _, shards = planned(folder / "m.parquet", folder / "x")
    assert sorted(text for shard in shards for text in shard["content"].to_pylist()) == sorted(contents)


def test_decimals_are_numbers_as_duckdb_writes_them(tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    row = "'c' AS content, ['s', 't'] AS style, 0.8 AS alpha, [0.5, 1.5] AS style_weights"
    duckdb.sql(f"COPY (SELECT {row}) TO '{manifest}' (FORMAT parquet)")
    (row,) = planned(manifest, tmp_path)[1][0].to_pylist()
    assert row["alpha"] == pytest.approx(0.8)
    assert row["style_weights"] == [0.5, 1.5]


def test_columns_that_only_folders_name_are_told_of(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "pairs" / f"split={split}").mkdir(parents=True)
        pq.write_table(
            pa.table({"content": [split], "style": ["s"]}), tmp_path / f"pairs/split={split}/a.parquet"
        )
    source = locate(str(tmp_path / "pairs"))
    (note,) = unread_partitions(source, columns_of(source))
    assert "'split' stands in the names" in note


def test_files_that_are_not_alike_are_refused_with_the_column_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["c"], "style": ["s"], "label": [1]}), tmp_path / "a.parquet")
    for other, difference in (
        ({}, "'label' is missing here and int64 there"),
        ({"label": ["1"]}, "'label' is string here"),
    ):
        pq.write_table(pa.table({"content": ["d"], "style": ["s"], **other}), tmp_path / "b.parquet")
        with pytest.raises(ManifestError, match=difference):
            planned(tmp_path, tmp_path / str(len(other)))


def hostile_tables() -> dict[str, tuple[pa.Table, str]]:
    good: dict[str, Any] = {"content": ["c", "d"], "style": ["s", "s"]}
    nested = pa.array([[["s"]], [["t"]]], pa.list_(pa.list_(pa.string())))
    struct = pa.array([{"uri": "s"}, {"uri": "t"}])
    return {
        "style lists of lists": (pa.table({**good, "style": nested}), "column 'style' is list<"),
        "style structs": (pa.table({**good, "style": struct}), "column 'style' is struct<"),
        "content bytes": (pa.table({**good, "content": [b"c", b"d"]}), "column 'content' is binary"),
        "content null type": (pa.table({**good, "content": pa.nulls(2)}), "row 0: 'content' is empty"),
        "style null type": (pa.table({**good, "style": pa.nulls(2)}), "row 0: 'style' is empty"),
        "alpha NaN": (pa.table({**good, "alpha": [0.5, float("nan")]}), "row 1: alpha is nan"),
        "alpha infinite": (pa.table({**good, "alpha": [0.5, float("inf")]}), "row 1: alpha is inf"),
        "alpha bool": (pa.table({**good, "alpha": [True, False]}), "column 'alpha' is bool"),
        "weights of one row null inside": (
            pa.table({**good, "style_weights": [[1.0], [None]]}), "row 1: style_weights must be numbers",
        ),
        "weights that only float64 holds": (
            pa.table({**good, "style_weights": [[1.0], [1e300]]}), "row 1: style_weights must be numbers",
        ),
        "the same column twice": (
            pa.Table.from_arrays([pa.array(["c"])] * 2 + [pa.array(["s"])], ["content", "content", "style"]),
            "has the column 'content' twice",
        ),
        "no columns": (pa.table({}), "has no column 'content'"),
        "a name that would break the line": (pa.table({"\r\x1b[2J\ncontent": ["c"]}), "has no column 'content'"),
        "a name that would fill the screen": (pa.table({"n" * 100_000: ["c"]}), "has no column 'content'"),
        "a huge key": (pa.table({**good, "output": ["k", "k" * 10_000_000]}), "row 1: output key"),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(hostile_tables()))
def test_what_breaks_the_contract_is_refused_by_column_or_row(name: str, tmp_path: Path) -> None:
    table, message = hostile_tables()[name]
    pq.write_table(table, tmp_path / "m.parquet")
    found = refused(tmp_path / "m.parquet", tmp_path / "x")
    assert message in found
    assert "m.parquet" in found
    assert found.isprintable()
    assert len(found) < 1100


def test_a_huge_string_is_a_row_like_any_other(tmp_path: Path) -> None:
    table = pa.table({"content": ["c" * 20_000_000, "d"], "style": ["s", "s"]})
    pq.write_table(table, tmp_path / "m.parquet")
    assert planned(tmp_path / "m.parquet", tmp_path / "x")[0].pairs == 2


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1PAR1", b"content,style\na,b\n", b"PAR1\xff\xff\xff\x7fPAR1"]
)
def test_what_is_not_parquet_is_refused_by_name_also_among_sound_files(data: bytes, tmp_path: Path) -> None:
    pq.write_table(ROWS, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(data)
    with pytest.raises(ManifestError, match=r"b\.parquet is not a Parquet file"):
        size_of(locate(str(tmp_path)))


def test_a_file_damaged_in_its_middle_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(ROWS, path, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[60:200] = bytes(140)
    path.write_bytes(bytes(data))
    assert "m.parquet" in refused(path, tmp_path / "x")


def test_a_folder_and_a_glob_are_read_as_one_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "many" / "nested"
    folder.mkdir(parents=True)
    for name, content in (("b", "x"), ("a", "y")):
        pq.write_table(pa.table({"content": [content], "style": ["s"]}), folder / f"{name}.parquet")
    (folder / "_SUCCESS").touch()
    whole, globbed = (
        locate(str(tmp_path / "many")),
        locate(str(tmp_path / "many" / "nes*" / "*.parquet")),
    )
    assert whole.base == globbed.base == str(tmp_path / "many")
    assert whole.files == globbed.files
    assert fingerprint(whole) == fingerprint(globbed)
    assert planned(tmp_path / "many", tmp_path / "x")[0].pairs == 2


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    csv = tmp_path / "m.parquet"
    csv.write_text("content,style\n")
    assert "is not a Parquet file" in refused(csv, tmp_path / "x")
    assert "there is no manifest" in refused(tmp_path / "absent.parquet", tmp_path / "y")


def test_pictures_in_place_of_a_manifest_are_sent_to_the_options_that_take_them(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "list.csv").write_text("content,style\n")
    for name in ("photos", "list.csv"):
        assert "give it with --content, and --style" in refused(tmp_path / name, tmp_path / f"of-{name}")


@pytest.mark.parametrize("pattern", ["", "**/*.parquet"])
def test_what_runs_have_written_is_no_part_of_a_manifest(pattern: str, tmp_path: Path) -> None:
    kept = ["a.parquet", "images/b.parquet", "plan/c.parquet", "some/run/d.parquet"]
    made = [f"some/out/{folder}/x/y.parquet" for folder in ("plan", "results", "styles", "images")]
    for name in (*kept, *made, "some/out/run.json", "some/run/run.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert locate(f"{tmp_path}/{pattern}").files == [f"{tmp_path}/{name}" for name in kept]
    with pytest.raises(ManifestError, match="holds only what a run has written"):
        locate(f"{tmp_path}/some/out/{pattern}")


def test_a_pattern_may_name_what_wildcards_skip(tmp_path: Path) -> None:
    (tmp_path / "_x.parquet").touch()
    assert locate(f"{tmp_path}/_*.parquet").files == [f"{tmp_path}/_x.parquet"]
    with pytest.raises(ManifestError, match=r"there are no \.parquet files"):
        locate(f"{tmp_path}/*.parquet")


def test_an_output_root_that_is_the_manifests_folder_is_refused_as_that(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["c"], "style": ["s"]}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="holds the manifest; choose another --output"):
        stylize_batch.run(tmp_path, output=tmp_path, in_process=True)
