"""Planning: every row lands in one shard, contents stay together, and bad manifests are refused by row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylize_batch.errors import UsageError
from stylize_batch.manifest import plan
from stylize_batch.manifest.plan import Partition, check_and_partition, usual_shard_pairs, write_plan
from stylize_batch.manifest.schema import ManifestError, check_row, remarkable_rows
from stylize_batch.manifest.shards import largest_first, read_shard, read_styles
from stylize_batch.manifest.source import fingerprint, locate
from stylize_batch.root import Root
from tests.conftest import MakeManifest, Row


def planned(
    manifest: Path, root: Path, shard_pairs: int = 4, limit: int | None = None
) -> tuple[Partition, list[pa.Table]]:
    folder = root / "spill"
    folder.mkdir(parents=True)
    partition = check_and_partition(locate(str(manifest), str(root / "out")), folder, "jpeg", limit)
    made = write_plan(partition, Root(str(root / "out")), shard_pairs, "run")
    return partition, [read_shard(Root(str(root / "out")), shard, "run") for shard in range(made)]


def refused(manifest: Path, root: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        planned(manifest, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    per_content=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    shard_pairs=st.integers(1, 12),
    bucket_rows=st.sampled_from([5, 40, 10_000]),
)
def test_every_row_is_planned_once_and_contents_stay_together(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    per_content: list[int],
    shard_pairs: int,
    bucket_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    monkeypatch.setattr(plan, "BUCKET_ROWS", bucket_rows)
    rows = [(f"c{c}", f"s{s}") for c, count in enumerate(per_content) for s in range(count)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    manifest = folder / "m.parquet"
    pq.write_table(pa.table({"content": [c for c, _ in rows], "style": [s for _, s in rows]}), manifest)
    made, shards = planned(manifest, folder, shard_pairs)
    found = [(row["content"], row["style"][0]) for table in shards for row in table.to_pylist()]
    assert made.pairs == len(rows)
    assert sorted(found) == sorted(rows)
    for content, count in enumerate(per_content):
        holders = sum(f"c{content}" in table["content"].to_pylist() for table in shards)
        assert holders == 1 or count > plan.OVERSIZE * shard_pairs
    for table in shards:
        distinct = len(set(table["content"].to_pylist()))
        assert len(table) <= shard_pairs or (distinct == 1 and len(table) <= plan.OVERSIZE * shard_pairs)


def test_a_shard_is_filled_up_to_the_pairs_asked_for(make_manifest: MakeManifest, tmp_path: Path) -> None:
    rows = [{"content": content, "style": [style]} for content in "abcdef" for style in "st"]
    _, shards = planned(make_manifest(rows), tmp_path, shard_pairs=4)
    assert [len(table) for table in shards] == [4, 4, 4]


@pytest.mark.parametrize(("name", "limit"), [("BUCKET_ROWS", 60), ("BUCKET_BYTES", 60), ("SORT_BYTES", 3000)])
def test_of_a_long_manifest_planning_holds_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    monkeypatch.setattr(plan, name, limit)
    rows = [(f"c{index % 100:02}", f"s{index // 100}") for index in range(300)]
    contents, styles = zip(*rows, strict=True)
    pq.write_table(pa.table({"content": contents, "style": styles}), tmp_path / "m.parquet")
    source = locate(str(tmp_path / "m.parquet"), str(tmp_path / "out"))
    tables = list(check_and_partition(source, tmp_path, "jpeg", None).buckets())
    assert max(map(len, tables)) < 100
    found = [(row["content"], row["style"][0]) for table in tables for row in table.to_pylist()]
    assert sorted(found) == sorted(rows)
    if name == "SORT_BYTES":  # one bucket, and so its parts follow on
        assert found == sorted(rows)


def test_work_begins_with_the_largest_shards(make_manifest: MakeManifest, tmp_path: Path) -> None:
    styles = {"a": 1, "b": 12, "c": 1, "d": 5}
    rows = [{"content": c, "style": [f"s{s}"]} for c, count in styles.items() for s in range(count)]
    _, shards = planned(make_manifest(rows), tmp_path)
    root = Root(str(tmp_path / "out"))
    order = largest_first(root, range(len(shards)))
    assert sorted(order) == list(range(len(shards)))
    sizes = [len(shards[shard]) for shard in order]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 12
    assert largest_first(root, [order[-1], order[0]]) == [order[0], order[-1]]


def test_planning_is_the_same_every_time(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    manifest = make_manifest(pairs)
    first, second = planned(manifest, tmp_path / "a"), planned(manifest, tmp_path / "b")
    assert first[0].pairs == second[0].pairs
    assert all(one.equals(two) for one, two in zip(first[1], second[1], strict=True))


def test_distinct_styles_are_listed_once(make_manifest: MakeManifest, tmp_path: Path) -> None:
    rows = [{"content": "a", "style": ["s", "t"]}, {"content": "b", "style": ["t"]}]
    planned(make_manifest(rows), tmp_path / "x")
    assert read_styles(Root(str(tmp_path / "x" / "out")), "run") == ["s", "t"]


def test_rows_without_styles_are_planned_beside_their_siblings(
    make_manifest: MakeManifest, tmp_path: Path
) -> None:
    rows = [{"content": "a", "style": ["s"], "alpha": 0.5}, {"content": "a", "style": [], "alpha": None}]
    _, (table,) = planned(make_manifest(rows), tmp_path / "x")
    assert [(row["style"], row["alpha"]) for row in table.to_pylist()] == [(["s"], 0.5), ([], None)]
    assert read_styles(Root(str(tmp_path / "x" / "out")), "run") == ["s"]
    rows = [{"content": "a", "style": []}, {"content": "a", "style": []}]
    assert "rows 0 and 1 ask for the same picture" in refused(make_manifest(rows), tmp_path / "y")


def test_other_columns_are_carried_unchanged(make_manifest: MakeManifest, tmp_path: Path) -> None:
    rows = [{"content": "a", "style": ["s"], "label": 7, "split": "train", "box": [1.5, 2.5]}]
    _, (table,) = planned(make_manifest(rows), tmp_path / "x")
    assert table.select(["label", "split", "box"]).to_pylist() == [
        {"label": 7, "split": "train", "box": [1.5, 2.5]}
    ]


@pytest.mark.parametrize(
    ("content", "style", "alpha"),
    [
        (pa.large_string(), pa.large_list(pa.large_string()), pa.float64()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.int8()),
        (pa.string_view(), pa.list_(pa.string()), pa.float16()),
    ],
)
def test_any_string_and_number_width_is_the_same_manifest(
    content: pa.DataType, style: pa.DataType, alpha: pa.DataType, tmp_path: Path
) -> None:
    table = pa.table(
        {
            "content": pa.array(["a", "b"]).cast(content),
            "style": pa.array(["s", "t"]).cast(style)
            if style == pa.string()
            else pa.array([["s"], ["t"]], style),
            "alpha": pa.array(np.array([0, 1], np.float16))
            if alpha == pa.float16()
            else pa.array([0, 1], alpha),
        }
    )
    manifest = tmp_path / "m.parquet"
    pq.write_table(table, manifest)
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"content": ["a", "b"], "style": ["s", "t"], "alpha": [0.0, 1.0]}), plain)
    found, expected = planned(manifest, tmp_path / "x")[1], planned(plain, tmp_path / "y")[1]
    assert [t.to_pylist() for t in found] == [t.to_pylist() for t in expected]


def test_views_and_dictionaries_inside_other_types_are_planned_as_what_they_hold(tmp_path: Path) -> None:
    view, numbered = pa.string_view(), pa.dictionary(pa.int32(), pa.string())
    columns = {
        "mask": pa.array([["m"], None], pa.list_(view)),
        "tags": pa.array([["x", None], []], pa.large_list(numbered)),
        "pair": pa.array([["a", "b"], None], pa.list_(view, 2)),
        "source": pa.array([{"name": "n", "raw": b"r"}, None], pa.struct([("name", view), ("raw", pa.binary_view())])),
        "more": pa.array([[("k", "v")], None], pa.map_(pa.string(), view)),
    }  # fmt: skip
    pq.write_table(
        pa.table({"content": ["a", "b"], "style": [["s"], ["t"]], **columns}), tmp_path / "m.parquet"
    )
    _, (table,) = planned(tmp_path / "m.parquet", tmp_path / "x")
    assert "view" not in str(table.schema)
    assert {name: table[name].to_pylist() for name in columns} == {
        name: column.to_pylist() for name, column in columns.items()
    }


def test_optional_columns_that_are_null_throughout_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    names = ("alpha", "preserve_color", "mask", "style_weights", "output")
    plain = pa.table({"content": ["a", "b"], "style": ["s", "t"]})
    table = plain
    for name in names:
        table = table.append_column(name, pa.nulls(2))  # of type null, as pandas writes them
    pq.write_table(plain, tmp_path / "plain.parquet")
    pq.write_table(table, tmp_path / "m.parquet")
    found, expected = (
        planned(tmp_path / name, tmp_path / name[0])[1] for name in ("m.parquet", "plain.parquet")
    )
    columns = ["pair_id", "output"]
    assert [t.select(columns).to_pylist() for t in found] == [t.select(columns).to_pylist() for t in expected]


def test_a_folder_and_a_glob_are_read_as_one_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "many" / "nested"
    folder.mkdir(parents=True)
    for name, content in (("b", "x"), ("a", "y")):
        pq.write_table(pa.table({"content": [content], "style": ["s"]}), folder / f"{name}.parquet")
    (folder / "_SUCCESS").touch()
    whole, globbed = (
        locate(str(tmp_path / "many"), "/elsewhere"),
        locate(str(tmp_path / "many" / "nes*" / "*.parquet"), "/elsewhere"),
    )
    assert whole.base == globbed.base == str(tmp_path / "many")
    assert whole.files == globbed.files
    assert fingerprint(whole) == fingerprint(globbed)
    assert planned(tmp_path / "many", tmp_path / "x")[0].pairs == 2


def test_limit_takes_the_first_rows(make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path) -> None:
    made, shards = planned(make_manifest(pairs), tmp_path / "x", limit=3)
    found = sorted((row["content"], row["style"][0]) for table in shards for row in table.to_pylist())
    assert made.pairs == 3
    assert found == sorted((row["content"], row["style"][0]) for row in pairs[:3])


GOOD: Row = {"content": "c", "style": ["s"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"content": None}, "'content' is empty"),
        ({"content": ""}, "'content' is empty"),
        ({"style": None}, "'style' is empty"),
        ({"style": [""]}, "'style' is empty"),
        ({"style": ["s", None]}, "'style' is empty"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"style_weights": [-1.0]}, "style_weights must be numbers ≥ 0"),
        ({"style_weights": [float("inf")]}, "style_weights must be numbers ≥ 0"),
        ({"style_weights": [0.0]}, "sum to 0"),
        ({"style_weights": [0.5, 0.5]}, "2 style weights for 1 style;"),
        ({"mask": ["m", "n"]}, "2 masks for 1 style;"),
        ({"style": ["s", "t"], "mask": ["m", "n"], "style_weights": [1.0, 1.0]}, "cannot be combined"),
        ({"style": [], "alpha": 0.5}, "leave its controls null"),
        ({"style": [], "preserve_color": True}, "leave its controls null"),
        ({"style": [], "mask": ["m"]}, "leave its controls null"),
        ({"style": [], "style_weights": []}, "leave its controls null"),
        ({"output": "../../etc/passwd"}, "would leave the output root"),
        ({"output": "/etc/passwd"}, "would leave the output root"),
        ({"output": "s3://other/key"}, "would leave the output root"),
        ({"output": "a\\b"}, "would leave the output root"),
        ({"output": "a//b"}, "would leave the output root or is no plain path"),
        ({"output": "./a"}, "would leave the output root or is no plain path"),
        ({"output": "C:\\a"}, "would leave the output root or is no plain path"),
        ({"output": "k" * 300}, "is too long"),
    ],
)
def test_bad_rows_are_refused_with_their_number(
    make_manifest: MakeManifest, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    found = refused(make_manifest([GOOD, {**GOOD, **row}]), tmp_path / "x")
    assert message in found
    assert "row 1" in found


TEXTS = st.none() | st.sampled_from(["", "a", "b", "c d", "é/x"])
KEYS = st.none() | st.sampled_from(
    [
        "k",
        "a/b.png",
        "",
        "..",
        "../x",
        "/x",
        "a/../b",
        "~x",
        "a//b",
        ".a",
        "a\\b",
        "s3://b/k",
        "a\nb",
        "a/",
        "é k.jpg",
    ]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "content": TEXTS,
                "style": st.none() | st.lists(TEXTS, max_size=2),
                "alpha": st.none() | st.sampled_from([0.0, 0.5, 1.0, -0.1, 1.5, float("nan"), float("inf")]),
                "preserve_color": st.none() | st.booleans(),
                "style_weights": st.none() | st.lists(st.sampled_from([0.0, 1.0, -1.0, None]), max_size=2),
                "mask": st.none() | st.lists(TEXTS, max_size=2),
                "output": KEYS,
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_rows_checked_in_bulk_are_refused_as_each_alone(rows: list[Row]) -> None:
    schema = pa.schema(
        [
            ("content", pa.string()), ("style", pa.list_(pa.string())), ("alpha", pa.float32()),
            ("preserve_color", pa.bool_()), ("style_weights", pa.list_(pa.float32())),
            ("mask", pa.list_(pa.string())), ("output", pa.string()),
        ]
    )  # fmt: skip
    columns = pa.RecordBatch.from_pylist(rows, schema)
    found = remarkable_rows(
        columns["content"], columns["style"], columns["alpha"], columns["preserve_color"], columns["output"],
        [columns["style_weights"], columns["mask"]],
    )  # fmt: skip
    names = ("content", "style", "style_weights", "alpha", "preserve_color", "mask", "output")
    for index, row in enumerate(rows):
        try:
            check_row(*(row[name] for name in names))
        except UsageError:
            assert index in found


def test_most_manifests_hold_no_remarkable_row(contents: list[str], styles: list[str]) -> None:
    keys = [f"train/n01440764/{Path(content).stem} (1).png" for content in contents]
    listed = pa.array([styles[:1], []] * 3, pa.list_(pa.string()))
    alphas = pa.array([0.5, None] * 3, pa.float32())
    colors = pa.array([True, None] * 3, pa.bool_())
    assert not len(remarkable_rows(pa.array(contents), listed, alphas, colors, pa.array(keys), []))
    originals = pa.array([[]] * 6, pa.list_(pa.string()))
    assert not len(remarkable_rows(pa.array(contents), originals, None, None, pa.array(keys), []))


def test_nothing_is_written_for_a_bad_manifest(make_manifest: MakeManifest, tmp_path: Path) -> None:
    refused(make_manifest([GOOD, {**GOOD, "alpha": 2.0}]), tmp_path / "x")
    assert not (tmp_path / "x" / "out").exists()


def test_a_disk_that_cannot_hold_the_buckets_is_told_of_in_one_line(
    make_manifest: MakeManifest, tmp_path: Path
) -> None:
    source = locate(str(make_manifest([GOOD])), str(tmp_path / "out"))
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
    monkeypatch.setattr(plan, "HASHES", 1)  # a file for each row
    others = [f"other{row}" for row in range(300)]
    columns = {
        "content": ["c", *others, content],
        "style": ["s"] * 302,
        "output": [keys[0], *(f"{name}.png" for name in others), keys[1]],
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert message in refused(tmp_path / "m.parquet", tmp_path / "x")
    assert len(list((tmp_path / "x" / "spill").glob("keys-*"))) > 300


def test_invalid_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")
    )
    manifest = tmp_path / "m.parquet"
    pq.write_table(pa.table({"content": broken, "style": ["s"]}), manifest)
    assert "cannot be read" in refused(manifest, tmp_path / "x")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"style": ["s"]}), "has no column 'content'"),
        (pa.table({"content": ["c"]}), "has no column 'style'"),
        (pa.table({"content": [1], "style": ["s"]}), "column 'content' is int64, it must be string"),
        (pa.table({"content": ["c"], "style": [1.5]}), "column 'style' is double"),
        (pa.table({"content": ["c"], "style": ["s"], "alpha": ["high"]}), "column 'alpha' is string"),
        (
            pa.table({"content": ["c"], "style": ["s"], "style_weights": [1.0]}),
            "column 'style_weights' is double",
        ),
        (
            pa.table({"content": ["c"], "style": ["s"], "status": ["x"]}),
            "column 'status', which the results use",
        ),
        (pa.table({"content": pa.array([], pa.string()), "style": pa.array([], pa.string())}), "has no rows"),
    ],
)
def test_wrong_columns_are_refused_by_name(table: pa.Table, message: str, tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    pq.write_table(table, manifest)
    assert message in refused(manifest, tmp_path / "x")


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


def test_an_output_root_that_is_the_manifests_folder_is_refused_as_that(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["c"], "style": ["s"]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="is the manifest's own folder; choose another --output"):
        locate(str(tmp_path), str(tmp_path))


def test_shards_for_gpus_are_longer_and_small_runs_have_as_many() -> None:
    assert usual_shard_pairs(2_000_000) == 128
    assert usual_shard_pairs(2_000_000, gpus=True) == 2048
    assert usual_shard_pairs(51_200) == usual_shard_pairs(51_200, gpus=True) == 128  # 400 for as many GPUs
    assert usual_shard_pairs(160) == usual_shard_pairs(160, gpus=True) == 10


def test_no_plan_has_more_shards_than_storage_should_list() -> None:
    pairs = 100_000_000
    assert -(-pairs // usual_shard_pairs(pairs)) <= plan.MAX_SHARDS
