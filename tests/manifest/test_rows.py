"""Rows: any type and width is read as one form, and a bad row is refused by its number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylize_batch.errors import UsageError
from stylize_batch.manifest.schema import check_row, remarkable_rows
from stylize_batch.manifest.shards import read_styles
from stylize_batch.root import Root
from tests.conftest import MakeManifest, Row
from tests.manifest.planned import planned, refused


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


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_a_mask_that_is_text_may_be_missing_and_is_a_list_of_one(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"content": ["a", "b"], "style": [["s", "t"], ["s", "t"]]})
    masks = pa.array(["m", None])
    listed = pa.array([["m"], None], pa.list_(pa.string()))
    for name, column in (("text", masks.cast(kind)), ("list", listed)):
        pq.write_table(table.append_column("mask", column), tmp_path / f"{name}.parquet")
    found, expected = (planned(tmp_path / f"{name}.parquet", tmp_path / name)[1] for name in ("text", "list"))
    assert [t["pair_id"].to_pylist() for t in found] == [t["pair_id"].to_pylist() for t in expected]


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
