"""Building manifests: what a dataset says is kept, names stay distinct, and mistakes are one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylize_batch.errors import UsageError
from stylize_batch.images.encode import EXTENSIONS
from stylize_batch.manifest import lists
from stylize_batch.manifest.build import Built, build
from stylize_batch.manifest.pairing import Pairing
from stylize_batch.manifest.partition import check_and_partition
from stylize_batch.manifest.source import locate
from stylize_batch.progress import Silent
from tests.conftest import SAMPLE, Cli, MakeManifest, Row, read_results


def tree(root: Path, *names: str) -> Path:
    """Make empty files: building a manifest lists images and reads none."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def built(content: object, style: object, output: Path, **options: Any) -> list[Row]:
    made(content, style, output, **options)
    return pq.read_table(output).to_pylist()


def made(content: object, style: object, output: Path, **options: Any) -> Built:
    sources = {name: options.pop(name) for name in ("unpack",) if name in options}
    return build(str(content), str(style), str(output), Pairing(**options), observer=Silent(), **sources)


def refused(content: object, style: object, folder: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        made(content, style, folder / "refused.parquet", **options)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("*refused*"))
    return str(caught.value)


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    return tree(tmp_path / "styles", "monet/a.jpg", "monet/b.png", "ukiyo-e/c.jpg", "ukiyo-e/d.webp")


def test_an_image_folder_keeps_its_tree_its_names_and_its_labels(tmp_path: Path, styles: Path) -> None:
    photos = tree(
        tmp_path / "photos", "train/dog/1.jpg", "train/cat/2.JPEG", "val/dog/sub/3.png", "train/dog/notes.txt",
        "train/.cache/x.jpg", "train/dog/._1.jpg",
    )  # fmt: skip
    rows = built(photos, styles, tmp_path / "pairs.parquet")
    assert [{key: row[key] for key in ("content", "output", "split", "label")} for row in rows] == [
        {"content": f"photos/{key}", "output": key, "split": key.split("/")[0], "label": key.split("/")[1]}
        for key in ("train/cat/2.JPEG", "train/dog/1.jpg", "val/dog/sub/3.png")
    ]
    assert all(row["style"] == f"styles/{row['style_label']}/{Path(row['style']).name}" for row in rows)


def test_files_of_a_folder_that_are_not_named_as_images_are_counted(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", "a/1.JPG", "a/2.jfif", "b/3.heic", "4.heic", "b/noext", "b/.hidden")
    found = made(photos, styles, tmp_path / "pairs.parquet")
    assert found.contents == 2
    assert "3 files are left out" in found.notes[0]
    assert "(.heic 2, no ending 1), such as 4.heic; .heic cannot be read: convert such" in found.notes[0]
    none = tree(tmp_path / "none", "1.heic")
    assert "no images in" in refused(none, styles, tmp_path)
    assert ".heic 1" in refused(none, styles, tmp_path)
    saved = tree(tmp_path / "saved", "data-00000-of-00001.arrow", "state.json")
    assert ".arrow cannot be read: save the data set as Parquet" in refused(saved, styles, tmp_path)


def test_arrow_reads_a_csv_file_of_this_machine_ahead_without_python(
    tmp_path: Path, styles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a file of Python's, its thread aborted one in fifteen processes that an error ended."""
    tree(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text("path,number\n1.jpg,7\n")
    files: list[object] = []
    opened = csv.open_csv
    monkeypatch.setattr(csv, "open_csv", lambda file, *more: (files.append(file), opened(file, *more))[1])
    assert len(built(tmp_path / "list.csv", styles, tmp_path / "pairs.parquet")) == 1
    assert len(files) == 3
    assert all(isinstance(file, pa.OSFile) for file in files)


def test_only_a_manifest_that_was_built_is_replaced(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", "1.jpg", "2.jpg")
    pairs = tmp_path / "pairs.parquet"
    built(photos, styles, pairs)
    assert len(built(photos, styles, pairs, all_pairs=True)) == 8
    listed = tmp_path / "list.parquet"
    pq.write_table(pa.table({"content": ["photos/1.jpg"]}), listed)
    kept = listed.read_bytes()
    with pytest.raises(UsageError, match="is what the manifest is built of"):
        made(listed, styles, listed)
    with pytest.raises(UsageError, match="is no manifest that was built; move it"):
        made(photos, styles, listed)
    assert listed.read_bytes() == kept


def test_a_json_list_keeps_every_column_of_any_object(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path, "x.jpg", "y.jpg")
    listed = tmp_path / "list.json"
    listed.write_text(
        '[{"path": "x.jpg"}, {"path": "y.jpg", "label": "cat", "segmentation": "s", "meta": {}}]'
    )
    rows = built(listed, styles, tmp_path / "p.parquet")
    assert [(row["label"], row["segmentation"], row["meta"]) for row in rows] == [
        (None, None, None),
        ("cat", "s", "{}"),
    ]
    lines = tmp_path / "list.jsonl"
    lines.write_text('{"path": "x.jpg", "meta": {"more": {}}}\n')
    assert built(lines, styles, tmp_path / "l.parquet")[0]["meta"] == '{"more": {}}'


def test_what_only_looks_like_a_number_in_a_csv_file_stays_as_it_is(tmp_path: Path) -> None:
    tree(tmp_path, "x.jpg", "y.jpg")
    styles = tree(tmp_path / "styles", "001/a.jpg", "002/b.jpg")
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,number,some\nx.jpg,001,7,3\ny.jpg,002,-12,NA\n")
    rows = built(listed, styles, tmp_path / "p.parquet", style_by_label=True)
    assert [(row["label"], row["style_label"], row["number"], row["some"]) for row in rows] == [
        ("001", "001", 7, 3),
        ("002", "002", -12, None),
    ]
    (tmp_path / "more.csv").write_text("path,label,number,some\nz.jpg,100,1,1\n")
    tree(tmp_path, "z.jpg")
    labels = [row["label"] for row in built(tmp_path / "*.csv", styles, tmp_path / "m.parquet")]
    assert sorted(labels) == ["001", "002", "100"]
    listed.write_bytes("path,label\nx.jpg,café\n".encode("latin-1"))
    assert "is not UTF-8 in its column 'label'" in refused(listed, styles, tmp_path)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["00123", "123.5"], None),
        (["-0012", "0.5"], None),
        (["0012", "12345678901234567890"], None),
        (["12345678901234567891", "12345678901234567890"], None),
        (["1234567890123456", "0.5"], None),
        (["+491234", "5"], None),
        (["12e999", "1"], None),
        (["1234567890123456789", "-12"], [1234567890123456789, -12]),
        ([" 1.50", "-inf", "", "123456789012345", "-0", "1e20"], [1.5, -float("inf"), None, 123456789012345.0, 0.0, 1e20]),
    ],
)  # fmt: skip
def test_no_digit_of_a_csv_file_is_lost_where_a_column_becomes_numbers(
    tmp_path: Path, styles: Path, written: list[str], read: list[object] | None
) -> None:
    paths = [f"{number}.jpg" for number in range(len(written))]
    tree(tmp_path, *paths)
    rows = [f"{path},{text}\n" for path, text in zip(paths, written, strict=True)]
    (tmp_path / "list.csv").write_text("".join(["path,code\n", *rows]))
    found = [row["code"] for row in built(tmp_path / "list.csv", styles, tmp_path / "p.parquet")]
    assert found == (written if read is None else read)


@pytest.mark.parametrize(
    ("labels", "split"), [(["1.1", "1.10"], "0.50"), (["2020-01-01", "2020-01-02"], "true")]
)
@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_labels_and_splits_stay_as_they_are_written(
    tmp_path: Path, styles: Path, kind: str, labels: list[str], split: str
) -> None:
    tree(tmp_path, "x.jpg", "y.jpg")
    rows = [
        {"path": path, "label": label, "split": split}
        for path, label in zip(("x.jpg", "y.jpg"), labels, strict=True)
    ]
    listed = tmp_path / f"list.{kind}"
    if kind == "csv":
        listed.write_text("\n".join(map(",".join, [rows[0], *(row.values() for row in rows)])))
    else:
        listed.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    found = built(listed, styles, tmp_path / "p.parquet")
    assert [(row["label"], row["split"]) for row in found] == [(label, split) for label in labels]


def test_a_label_that_is_empty_is_none(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path, "x.jpg", "y.jpg")
    listed = tmp_path / "list.csv"
    listed.write_text("path,label\nx.jpg,\ny.jpg,\n")
    assert made(listed, styles, tmp_path / "p.parquet").labels == 0
    assert "the contents have no labels" in refused(listed, styles, tmp_path, style_by_label=True)


def test_text_in_json_lines_stays_text_where_it_looks_like_a_time(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path, "x.jpg")
    row = {"path": "x.jpg", "n": 1, "taken": "2020-01-01", "more": {"days": ["2020-01-01", None], "id": 7}}
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    (found,) = built(tmp_path / "list.jsonl", styles, tmp_path / "p.parquet")
    assert {name: found[name] for name in list(found)[-3:]} == {name: row[name] for name in list(row)[-3:]}


def test_a_column_of_a_long_csv_file_may_begin_empty_and_is_named_where_its_type_changes(
    tmp_path: Path, styles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "LIST_BLOCK", 1000)
    tree(tmp_path, "0.jpg")
    listed = tmp_path / "list.csv"

    def write(before: str, last: str) -> None:
        lines = [f"{number}.jpg,{before}\n" for number in range(200)]
        listed.write_bytes("".join(["path,note\n", *lines, f"200.jpg,{last}\n"]).encode("latin-1"))

    write("", "x")
    assert built(listed, styles, tmp_path / "p.parquet")[-1]["note"] == "x"
    for before, last, message in (
        ("1", "0.5", "column 'note' is of another type at its beginning"),
        ("a", "é", "is not UTF-8 in its column 'note'; save it"),
    ):
        write(before, last)
        assert message in refused(listed, styles, tmp_path)


def test_labels_that_are_none_and_times_out_of_range_are_no_tracebacks(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path, "x.jpg", "y.jpg")
    paths = pa.array(["x.jpg", "y.jpg"])
    for name, labels in (
        ("nan", pa.array([float("nan"), 1.0])),
        ("day", pa.array([2**31 - 1, 0], pa.date32())),
    ):
        listed = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"path": paths, "label": labels}), listed)
        assert made(listed, styles, tmp_path / f"{name}-pairs.parquet").rows == 2


def test_blanks_around_the_names_of_a_csv_files_columns_do_not_count(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path, "1.10", "2.20")
    (tmp_path / "list.csv").write_bytes(
        b'\xef\xbb\xbf\r\n path , label,code,"a, b"\r\n1.10,1.1,01,x\r\n2.20,1.10,0.5,y\r\n'
    )
    rows = built(tmp_path / "list.csv", styles, tmp_path / "p.parquet")
    assert [(row["content"], row["label"], row["code"], row["a, b"]) for row in rows] == [
        ("1.10", "1.1", "01", "x"),
        ("2.20", "1.10", "0.5", "y"),
    ]


def test_columns_without_a_name_are_left_out_and_told_of(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text(",path,label, \n0,1.jpg,a,\n1,2.jpg,b,\n")
    found = made(tmp_path / "list.csv", styles, tmp_path / "p.parquet")
    assert "" not in pq.read_schema(tmp_path / "p.parquet").names
    assert found.notes == [f"{tmp_path}/list.csv: a column without a name is left out, as pandas' index is"]


def test_a_name_that_is_taken_gives_way_to_one_that_is_free(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path, "x.jpg")
    listed = tmp_path / "list.csv"
    listed.write_text("path,width,source_width\nx.jpg,3,4\n")
    (row,) = built(listed, styles, tmp_path / "p.parquet")
    assert (row["source_source_width"], row["source_width"]) == (3, 4)


@pytest.mark.parametrize(
    "entry", ['{"content": "x.jpg", "style": 5}', '{"content": ["x.jpg"], "style": "a"}']
)
def test_a_style_map_of_other_than_names_is_refused(tmp_path: Path, styles: Path, entry: str) -> None:
    photos = tree(tmp_path / "photos", "x.jpg")
    (tmp_path / "map.json").write_text(f"[{entry}]")
    assert "must be text" in refused(photos, styles, tmp_path, style_map=str(tmp_path / "map.json"))


def test_coco_files_with_what_exporters_leave_out_are_read(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path, "x.jpg")
    image = {"id": 1, "file_name": "x.jpg", "width": 4, "height": 4}
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1], "iscrowd": False}
    coco = tmp_path / "coco.json"
    coco.write_text(json.dumps({"images": [image], "annotations": [annotation], "categories": [{"id": 7}]}))
    (row,) = built(coco, styles, tmp_path / "p.parquet")
    assert (row["iscrowd"], row["categories"]) == ([0], ["7"])
    coco.write_text(json.dumps({"images": [image], "annotations": None}))
    assert len(built(coco, styles, tmp_path / "p.parquet")) == 1


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["1.jpg", "2.jpg"], []),
        (["dog/1.jpg", "cat/2.jpg"], ["label"]),
        (["train/1.jpg", "test/2.jpg"], ["split"]),
        (["train/1.jpg", "bus/2.jpg"], ["label"]),  # a class of vehicles
        (["train2017/1.jpg", "val2017/2.jpg"], ["split"]),
        (["Train/dog/1.jpg", "Val/2.jpg", "3.jpg"], ["split", "label"]),
    ],
)
def test_folders_are_splits_only_where_all_of_them_are(
    tmp_path: Path, styles: Path, names: list[str], columns: list[str]
) -> None:
    rows = built(tree(tmp_path / "photos", *names), styles / "monet", tmp_path / "pairs.parquet")
    assert [name for name in rows[0] if name in ("split", "label", "style_label")] == columns


@pytest.mark.parametrize("around", ["", "wrap/", "wrap/imagenette2/"])
def test_folders_that_all_photographs_share_are_neither_labels_nor_lost_from_names(
    tmp_path: Path, styles: Path, around: str
) -> None:
    names = [f"{around}{name}" for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/dog/3.jpg")]
    found = made(tree(tmp_path / "photos", *names), styles, tmp_path / "pairs.parquet")
    rows = pq.read_table(found.output).to_pylist()
    assert [row["output"] for row in rows] == names
    assert [(row["split"], row["label"]) for row in rows] == [
        ("train", "cat"),
        ("train", "dog"),
        ("val", "dog"),
    ]
    assert found.notes == []


@pytest.mark.parametrize("names", [["dog/1.jpg"], ["wrap/dog/1.jpg"], ["train/dog/1.jpg", "train/dog/2.jpg"]])
def test_one_label_for_all_is_told_of(tmp_path: Path, styles: Path, names: list[str]) -> None:
    found = made(tree(tmp_path / "photos", *names), styles, tmp_path / "pairs.parquet")
    assert [row["label"] for row in pq.read_table(found.output).to_pylist()] == ["dog"] * len(names)
    assert "all contents have the one label 'dog'" in found.notes[0]


def test_splits_among_other_folders_are_told_of(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", "train/1.jpg", "val/2.jpg", "unlabeled/3.jpg")
    (note,) = made(photos, styles, tmp_path / "pairs.parquet").notes
    assert "named like splits (train, val) and others are not, such as unlabeled" in note


def test_paths_are_relative_below_the_manifest_and_absolute_elsewhere(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "data" / "photos", "1.jpg")
    (row,) = built(photos, styles, tmp_path / "data" / "pairs.parquet")
    assert row["content"] == "photos/1.jpg"
    assert row["style"].startswith(f"{styles}/")


def test_sources_and_manifest_may_be_on_object_storage(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("photos/dog/1.jpg", "photos/cat/2.jpg", "styles/a.jpg"):
        fs.pipe_file(f"/build-{tmp_path.name}/{name}", b"")
    bucket = f"memory://build-{tmp_path.name}"
    output = f"{bucket}/lists/pairs.parquet"
    assert build(f"{bucket}/photos", f"{bucket}/styles", output, Pairing(), observer=Silent()).rows == 2
    rows = pq.read_table(fs.open(f"/build-{tmp_path.name}/lists/pairs.parquet")).to_pylist()
    assert [(row["content"], row["label"]) for row in rows] == [
        (f"{bucket}/photos/cat/2.jpg", "cat"),
        (f"{bucket}/photos/dog/1.jpg", "dog"),
    ]


keys = st.lists(st.text("abcAB1.-_ü/", min_size=1, max_size=12), min_size=1, max_size=25, unique=True)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=keys,
    styles=st.lists(st.text("abcAB1-_/", min_size=1, max_size=6), min_size=1, max_size=8, unique=True),
    count=st.integers(1, 8),
    ending=st.sampled_from([".jpg", ".tif", ".png.gif", ""]),
    originals=st.booleans(),
    order=st.randoms(),
)
def test_pairs_depend_on_seed_and_keys_alone_and_never_share_a_picture(
    tmp_path: Path,
    contents: list[str],
    styles: list[str],
    count: int,
    ending: str,
    originals: bool,
    order: Any,
) -> None:
    (tmp_path / "first").touch()

    def pairs(name: str, contents: Sequence[str]) -> set[tuple[str, str, float | None, str]]:
        for role, listed in (("content", ["first", *contents]), ("style", ["first", *styles])):
            listed = [
                f"s3://{role}/{each}" if number else str(tmp_path / each)
                for number, each in enumerate(listed)
            ]
            pq.write_table(pa.table({role: listed}), tmp_path / f"{role}.parquet")
        output = tmp_path / f"{name}.parquet"
        rows = built(
            tmp_path / "content.parquet", tmp_path / "style.parquet", output,
            styles_per_content=min(count, len(styles) + 1), alpha="0..1", keep_originals=originals,
        )  # fmt: skip
        return {(row["content"], str(row["style"]), row["alpha"], row["output"]) for row in rows}

    contents = [each + ending for each in contents]
    # Names that an original and a stylized sibling could share.
    contents += [f"{contents[0].removesuffix(ending)}-{styles[0]}{ending}", f"first-first{ending}"]
    contents = list(dict.fromkeys(contents))
    first = pairs("one", contents)
    assert len(first) == (len(contents) + 1) * (min(count, len(styles) + 1) + originals)
    shuffled = list(contents)
    order.shuffle(shuffled)
    order.shuffle(styles)
    assert pairs("two", shuffled) == first
    for format in EXTENSIONS:  # planning refuses two rows with one key, whatever the format
        folder = tmp_path / "spill"
        folder.mkdir(exist_ok=True)
        check_and_partition(locate(str(tmp_path / "one.parquet")), folder, format, None)
    lowered = [(output.lower(), output) for *_, output in first]
    assert len({low for low, _ in lowered}) == len(lowered)


def test_several_styles_are_named_in_the_picture(tmp_path: Path, styles: Path) -> None:
    rows = built(tree(tmp_path / "photos", "dog/1.jpg"), styles, tmp_path / "p.parquet", all_pairs=True)
    assert [row["output"] for row in rows] == ["dog/1-a.jpg", "dog/1-b.jpg", "dog/1-c.jpg", "dog/1-d.jpg"]


def test_originals_keep_their_names_and_have_no_controls(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", "train/dog/1.jpg", "train/cat/2.png")
    options = {"alpha": "0.2..0.9", "preserve_color": True, "seed": 5}
    without = built(photos, styles, tmp_path / "without.parquet", **options)
    rows = built(photos, styles, tmp_path / "p.parquet", keep_originals=True, **options)
    originals = [row for row in rows if not row["style"]]
    assert [row["output"] for row in originals] == ["train/cat/2.png", "train/dog/1.jpg"]
    for row in originals:
        assert (row["style"], row["alpha"], row["preserve_color"], row["style_label"]) == (
            [],
            None,
            False,
            None,
        )
        assert row["label"] in row["output"]
    stylized = [row for row in rows if row["style"]]
    for row, alone in zip(stylized, without, strict=True):
        assert row["output"] == f"train/{row['label']}/{Path(row['content']).stem}-" + (
            f"{Path(row['style'][0]).stem}{Path(row['content']).suffix}"
        )
        assert {**row, "style": row["style"][0], "output": alone["output"]} == alone


def test_an_original_named_like_a_siblings_picture_does_not_take_its_place(
    tmp_path: Path, styles: Path
) -> None:
    photos = tree(tmp_path / "photos", "1.jpg", "1-a.jpg", "1-e.jpg")
    rows = built(photos, styles, tmp_path / "p.parquet", all_pairs=True, keep_originals=True)
    outputs = [row["output"].lower() for row in rows]
    assert len(set(outputs)) == len(rows) == 15
    assert "1-e.jpg" in outputs


def test_a_sample_has_the_pairs_it_has_in_the_whole(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", *(f"{split}/{n}.jpg" for split in ("train", "val") for n in range(40)))
    options = {"styles_per_content": 2, "alpha": "0..1", "seed": 3, "separate_splits": True}
    whole = built(photos, styles, tmp_path / "whole.parquet", **options)
    drawn = made(photos, styles, tmp_path / "drawn.parquet", sample=12, **options)
    rows = pq.read_table(tmp_path / "drawn.parquet").to_pylist()
    assert (drawn.contents, drawn.rows, len(rows)) == (12, 24, 24)
    assert all(row in whole for row in rows)
    assert drawn.splits == {
        split: len({row["content"] for row in rows if row["split"] == split}) for split in ("train", "val")
    }
    assert set(drawn.splits) == {"train", "val"}  # not the first of the listing
    assert made(photos, styles, tmp_path / "all.parquet", sample=500).contents == 80


def test_names_that_differ_in_case_or_format_alone_get_pictures_of_their_own(
    tmp_path: Path, styles: Path
) -> None:
    photos = tree(
        tmp_path / "photos", "a/X.jpg", "a/x.jpg", "A/y.jpg", "a/y.tif", "a/z.gif", "a/ü.jpg", "a/u\u0308.jpg"
    )
    rows = built(photos, styles, tmp_path / "p.parquet")
    outputs = {row["content"].removeprefix("photos/"): row["output"] for row in rows}
    assert outputs["a/z.gif"] == "a/z"
    marked = {key for key, output in outputs.items() if len(output) >= 20}
    assert marked == set(outputs) - {"a/z.gif"}
    assert len({output.lower() for output in outputs.values()}) == len(outputs)


def test_a_list_carries_its_columns_unchanged(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path / "photos", "1.jpg")
    listed = tmp_path / "list.csv"
    listed.write_text('path,label,caption,split,width\n1.jpg,3,"a\nb",val,640\n/abs/2.jpg,4,,train,480\n')
    output = tmp_path / "p.parquet"
    made_ = made(listed, styles, output, content_root=str(tmp_path / "photos"))
    rows = pq.read_table(output).to_pylist()
    assert [(row["content"], row["label"], row["caption"], row["split"]) for row in rows] == [
        ("photos/1.jpg", 3, "a\nb", "val"),
        ("/abs/2.jpg", 4, "", "train"),
    ]
    assert [row["output"] for row in rows] == ["1.jpg", "abs/2.jpg"]
    assert [row["source_width"] for row in rows] == [640, 480]
    assert "carried as 'source_width'" in made_.notes[0]


@pytest.mark.parametrize("root", [None, "../lists/deep"])
def test_paths_that_leave_a_lists_folder_are_named_alike_wherever_it_lies(
    tmp_path: Path, styles: Path, root: str | None
) -> None:
    """With absolute paths as names, a checkout's place changed outputs and random styles."""
    written = ["./../../ds/train/c0/0.jpg", "../../ds/.hidden.jpg", "../deep/1.jpg", "2.jpg"]
    found: list[list[tuple[str, str, float]]] = []
    for place in ("one", "another/place"):
        checkout = tmp_path / place
        lists = checkout / "lists" / "deep"
        tree(lists, *written)
        (lists / "list.csv").write_text("\n".join(["path", *written]))
        content_root = None if root is None else str(checkout / "lists" / root)
        rows = built(
            lists / "list.csv", styles, tmp_path / "pairs.parquet", alpha="0..1", content_root=content_root
        )
        assert [row["content"].removeprefix(f"{place}/") for row in rows] == [
            "ds/train/c0/0.jpg", "ds/.hidden.jpg", "lists/deep/1.jpg", "lists/deep/2.jpg",
        ]  # fmt: skip
        found.append([(row["output"], row["style"], row["alpha"]) for row in rows])
    assert [each[0] for each in found[0]] == ["ds/train/c0/0.jpg", "ds/.hidden.jpg", "1.jpg", "2.jpg"]
    assert found[0] == found[1]


def test_two_images_of_one_name_are_told_apart_from_an_image_named_twice(
    tmp_path: Path, styles: Path
) -> None:
    tree(tmp_path / "a" / "b", "../x.jpg", "../../x.jpg")
    listed = tmp_path / "a" / "b" / "list.csv"
    listed.write_text("path\n../x.jpg\n../../x.jpg\n")
    both = f"'x.jpg' twice; write {tmp_path}/a/x.jpg and {tmp_path}/x.jpg as paths from a folder above both, and "
    assert f"{both}name it with --content-root" in refused(listed, styles, tmp_path)
    assert f"{both}put the list there" in refused(styles, listed, tmp_path)
    listed.write_text("path\na/x.jpg\nx.jpg\n")
    rows = built(listed, styles, tmp_path / "pairs.parquet", content_root=str(tmp_path))
    assert [row["output"] for row in rows] == ["a/x.jpg", "x.jpg"]
    listed.write_text("path\n../x.jpg\n.././x.jpg\n")
    assert "'x.jpg' twice; keep one row for each image" in refused(listed, styles, tmp_path)
    assert "'x.jpg' twice; remove one" in refused(styles, listed, tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_json_and_parquet_lists_carry_nested_columns(tmp_path: Path, styles: Path, kind: str) -> None:
    tree(tmp_path, "1.jpg", "2.jpg")
    rows = [{"file_name": f"{n}.jpg", "boxes": [[1.5, 2.0, 3.0, float(n)]], "label": f"l{n}"} for n in (1, 2)]
    listed = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), listed)
    else:
        listed.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    found = built(listed, styles, tmp_path / "p.parquet")
    assert [
        {"file_name": row["content"], **{key: row[key] for key in ("boxes", "label")}} for row in found
    ] == rows


def test_coco_boxes_categories_and_ids_are_carried(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path / "val2017", "1.jpg", "2.jpg")
    coco = {
        "images": [
            {"id": 7, "file_name": "1.jpg", "height": 480, "width": 640},
            {"id": 8, "file_name": "2.jpg", "height": 10, "width": 20},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [473.07, 395.93, 38.65, 28.67], "iscrowd": 0,
             "segmentation": [[1, 2, 3, 4]]},
            {"id": 2, "image_id": 7, "category_id": 17, "bbox": [0, 1, 2, 3], "iscrowd": 1},
        ],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    first, second = built(
        tmp_path / "instances.json", styles, tmp_path / "p.parquet", content_root=str(tmp_path / "val2017")
    )
    assert first["content"] == "val2017/1.jpg"
    assert first["boxes"] == [[473.07, 395.93, 38.65, 28.67], [0, 1, 2, 3]]
    assert (first["categories"], first["category_ids"]) == (["dog", "cat"], [18, 17])
    assert (first["annotation_ids"], first["iscrowd"], first["image_id"]) == ([1, 2], [0, 1], 7)
    assert (first["source_height"], first["source_width"]) == (480, 640)
    assert second["boxes"] == []


def test_coco_files_are_read_as_one_only_where_their_categories_are_the_same(
    tmp_path: Path, styles: Path
) -> None:
    """The manifest keeps one list of them, by which annotations.json names the classes of all its boxes."""
    tree(tmp_path, "1.jpg", "2.jpg")
    cat, dog = {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}

    def write(number: int, *categories: dict[str, Any]) -> None:
        box = {"id": number, "image_id": number, "category_id": 1, "bbox": [0, 0, 1, 1]}
        image = {"id": number, "file_name": f"{number}.jpg", "height": 9, "width": 9}
        coco = {"images": [image], "categories": categories, "annotations": [box]}
        (tmp_path / f"part{number}.json").write_text(json.dumps(coco))

    write(1, cat, dog)
    write(2, dog, cat)
    assert len(built(tmp_path / "*.json", styles, tmp_path / "p.parquet")) == 2
    for categories in ([{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}], [cat]):
        write(2, *categories)
        message = refused(tmp_path / "*.json", styles, tmp_path)
        assert (
            f"{tmp_path}/part2.json has other 'categories' than {tmp_path}/part1.json; give both" in message
        )


@pytest.mark.parametrize(
    ("outline", "fields"), [([], "keypoints"), ([[1, 2, 3, 4]], "keypoints, segmentation")]
)
def test_coco_fields_that_are_not_carried_are_told_of(
    tmp_path: Path, styles: Path, outline: list[Any], fields: str
) -> None:
    tree(tmp_path, "1.jpg")
    annotation = {
        "image_id": 7,
        "bbox": [0, 0, 1, 1],
        "area": 1,
        "segmentation": outline,
        "keypoints": [1, 2, 2],
    }
    listed = tmp_path / "instances.json"
    listed.write_text(json.dumps({"images": [{"id": 7, "file_name": "1.jpg"}], "annotations": [annotation]}))
    notes = made(listed, styles, tmp_path / "p.parquet").notes
    assert any(f"left out of its annotations: {fields};" in note for note in notes)


def test_coco_images_of_one_id_or_without_a_file_name_are_refused(tmp_path: Path, styles: Path) -> None:
    tree(tmp_path, "1.jpg", "2.jpg")
    listed = tmp_path / "instances.json"
    images = [{"id": 7, "file_name": "1.jpg"}, {"id": 7, "file_name": "2.jpg"}]
    listed.write_text(json.dumps({"images": images, "annotations": []}))
    assert "1 image id stands there twice, such as 7" in refused(listed, styles, tmp_path)
    listed.write_text(json.dumps({"images": [{"id": 7, "coco_url": "http://x/1.jpg"}], "annotations": []}))
    assert "has no field 'file_name'; add it" in refused(listed, styles, tmp_path)


def test_coco_annotations_of_unlisted_images_are_told_of_and_unknown_categories_refused(
    tmp_path: Path, styles: Path
) -> None:
    tree(tmp_path, "1.jpg")
    coco = {
        "images": [{"id": 7, "file_name": "1.jpg", "height": 480, "width": 640}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18},
            {"id": 2, "image_id": 8, "category_id": 18},
        ],
    }
    listed = tmp_path / "instances.json"
    listed.write_text(json.dumps(coco))
    notes = made(listed, styles, tmp_path / "p.parquet").notes
    assert any("1 annotation is left out" in note and note.endswith("image_id 8") for note in notes)
    coco["annotations"][0]["category_id"] = 90
    listed.write_text(json.dumps(coco))
    assert "annotation 1 has the category_id 90, which is not among" in refused(listed, styles, tmp_path)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_a_style_map_is_followed(tmp_path: Path, styles: Path, kind: str) -> None:
    photos = tree(tmp_path / "photos", "dog/1.jpg", "2.jpg")
    wanted = {"dog/1.jpg": ["monet/b.png", "ukiyo-e/c.jpg"], "2.jpg": ["monet/a.jpg"]}
    path = tmp_path / f"map.{kind}"
    flat = [{"content": content, "style": style} for content, styles in wanted.items() for style in styles]
    if kind == "csv":
        path.write_text("content,style\n" + "".join(f"{row['content']},{row['style']}\n" for row in flat))
    elif kind == "json":
        path.write_text(json.dumps({**wanted, "2.jpg": "monet/a.jpg"}))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, flat)))
    else:
        pq.write_table(pa.table({"content": list(wanted), "style": list(wanted.values())}), path)
    rows = built(photos, styles, tmp_path / "p.parquet", style_map=str(path))
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["content"].removeprefix("photos/"), []).append(
            row["style"].removeprefix("styles/")
        )
    assert found == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("content,style\n1.jpg,waves.jpg\n", "row 0: the style 'waves.jpg' is not in"),
        (
            "content,style\n1.jpg,monet/a.jpg\n1.jpg,monet/a.jpg\n",
            "row 1: '1.jpg' gets the style 'monet/a.jpg' twice",
        ),
        ("content,style\n1.jpg,monet/a.jpg\n", "no styles for 1 content, such as '2.jpg'"),
        ("content,style\n1.jpg,monet/a.jpg\n2.jpg,monet/a.jpg\n3.jpg,monet/a.jpg\n", "such as '3.jpg'"),
        ("content\n1.jpg\n", "has no column 'style'"),
        ("content,style\n", "names no styles"),
    ],
)
def test_a_style_map_that_does_not_fit_is_refused(
    tmp_path: Path, styles: Path, text: str, message: str
) -> None:
    (tmp_path / "map.csv").write_text(text)
    photos = tree(tmp_path / "photos", "1.jpg", "2.jpg")
    assert message in refused(photos, styles, tmp_path, style_map=str(tmp_path / "map.csv"))


def test_styles_follow_labels_and_splits_where_asked(tmp_path: Path, styles: Path) -> None:
    photos = tree(
        tmp_path / "photos",
        *(f"{s}/{c}/{n}.jpg" for s in ("train", "val") for c in ("monet", "x") for n in range(9)),
    )
    rows = built(photos, styles, tmp_path / "p.parquet", style_by_label=True, separate_splits=True)
    assert {(row["label"], row["style_label"]) for row in rows} == {("monet", "monet"), ("x", "ukiyo-e")}
    used = {split: {row["style"] for row in rows if row["split"] == split} for split in ("train", "val")}
    assert not used["train"] & used["val"]


def test_controls_become_columns(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", *(f"{n}.jpg" for n in range(50)))
    rows = built(photos, styles, tmp_path / "p.parquet", alpha="0.5..1", preserve_color=True)
    assert all(0.5 <= row["alpha"] <= 1 and row["preserve_color"] for row in rows)
    assert len({row["alpha"] for row in rows}) == 50
    assert {row["alpha"] for row in built(photos, styles, tmp_path / "q.parquet", alpha="0.25")} == {0.25}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "1..0.5"}, "is reversed; write 0.5..1"),
        ({"alpha": "0.5..2"}, "between 0 and 1"),
        ({"alpha": "nan"}, "between 0 and 1"),
        ({"alpha": "strong"}, "give a number (0.8) or a range"),
        ({"styles_per_content": 5}, "5 styles per content are asked for, but there are only 4;"),
        ({"styles_per_content": 0}, "at least 1"),
        ({"sample": 0}, "at least 1"),
        ({"styles_per_content": 1, "all_pairs": True}, "exclude each other"),
        ({"style_map": "absent.csv"}, "cannot read the style map"),
        ({"style_by_label": True}, "the contents have no labels"),
        ({"separate_splits": True}, "the contents have no splits"),
        ({"content_root": "/nowhere"}, "--content-root is for lists"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, styles: Path, options: dict[str, Any], message: str
) -> None:
    photos = tree(tmp_path / "photos", "1.jpg")
    assert message in refused(photos, styles, tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("absent", None, "there is no content source"),
        ("list.txt", b"1.jpg\n", "is no content source; give a folder"),
        ("list.csv", b"", "Empty CSV file"),
        ("list.csv", b"name\n1.jpg\n", "has no column of paths; name it 'content' or 'path' (found: name)"),
        ("list.csv", b"path\nnowhere.jpg\n", "does not exist; say where its paths start: --content-root"),
        ("list.csv", b"path\nphotos\\1.jpg\n", "does not exist; write / for \\"),
        ("list.csv", b"path;price\n1.jpg;3,5\n", "list.csv separates columns by semicolons; separate them by commas"),
        ("list.csv", b"path\tprice\n1.jpg\t3,5\n", "separates columns by tabs; separate them by commas, or name it .tsv"),
        ("list.tsv", b"path,price\n1.jpg,3\n", "separates columns by commas; separate them by tabs, or name it .csv"),
        ("list.csv", "path\tlabel\n1.jpg\ta\n".encode("utf-16"), "list.csv is UTF-16; save it as CSV UTF-8"),
        ("list.csv", "\ufeffpath,label\n1.jpg,a\n".encode("utf-16-be"), "list.csv is UTF-16; save it as CSV UTF-8"),
        ("list.csv", "path,label\n1.jpg,a\n".encode("utf-16-le"), "list.csv is UTF-16; save it as CSV UTF-8"),
        ("list.csv", "path,größe\n1.jpg,3\n".encode("latin-1"), "list.csv is not UTF-8 in its header; save it as UTF-8"),
        ("list.csv", b"path,label\n", "list.csv has no rows; it needs one for each image"),
        ("list.json", b"[]", "list.json has no rows; it needs one for each image"),
        ("list.json", b'{"images": []}', "list.json has no rows; it needs one for each image"),
        ("list.csv", b"path,x, x\n1.jpg,1,2\n", "list.csv has the column 'x' 2 times"),
        ("list.csv", b"path\n1.jpg\n1.jpg\n", "names '1.jpg' twice"),
        ("list.csv", b"path,label\n1.jpg,a\n,b\n", "row 1: 'path' is empty"),
        ("list.csv", b"path,label\n1.jpg\n", "Expected 2 columns"),
        ("list.jsonl", b'{"path": \n', "JSON parse error"),
        ("list.json", b'{"path": "1.jpg"}', "is neither COCO annotations nor a list"),
        ("list.json", b"{", "Expecting property name"),
        ("list.parquet", b"PAR1", "cannot read"),
        ("list.csv", b"path,x,x\n1.jpg,1,2\n", "list.csv has the column 'x' 2 times; rename or remove all but one"),
        ("list.csv", b"path,path\n1.jpg,1.jpg\n", "list.csv has the column 'path' 2 times"),
    ],
)  # fmt: skip
def test_unusable_sources_are_refused_in_one_line(
    tmp_path: Path, styles: Path, name: str, data: bytes | None, message: str
) -> None:
    tree(tmp_path, "1.jpg")
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert message in refused(tmp_path / name, styles, tmp_path)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"iscrowd": "no"}, "coco.json: 'iscrowd' of annotations must be int8; correct it in the file ("),
        ({"id": "x1"}, "coco.json: 'id' of annotations must be int64; correct it in the file (Could not convert 'x1'"),
        ({"category_id": "dog"}, "coco.json: 'id' of categories must be int64; correct it in the file ("),
    ],
)  # fmt: skip
def test_coco_fields_of_other_types_are_refused_by_their_names(
    tmp_path: Path, styles: Path, annotation: Row, message: str
) -> None:
    coco = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 1, **annotation}],
        "categories": [{"id": annotation.get("category_id", 1)}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    tree(tmp_path, "1.jpg")
    assert message in refused(tmp_path / "coco.json", styles, tmp_path)


def test_a_manifest_is_no_list_of_styles(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest([{"content": "1.jpg", "style": ["a.jpg"]}])
    assert "column 'style' is list<element: string>, it must be string" in refused(
        manifest, manifest, tmp_path
    )


def test_an_empty_folder_and_a_wrong_name_are_refused(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", "notes.txt")
    assert "no images in" in refused(photos, styles, tmp_path)
    with pytest.raises(UsageError, match=r"ends in \.parquet"):
        made(styles, styles, tmp_path / "pairs.csv")


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", "ok.jpg", "bad\udcff.jpg")
    assert "which is not UTF-8; rename it" in refused(photos, styles, tmp_path)


def test_links_are_followed_and_one_that_leads_back_is_walked_once(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", "dog/1.jpg")
    tree(tmp_path / "elsewhere", "2.jpg")
    (photos / "cat").symlink_to(tmp_path / "elsewhere")
    (photos / "dog" / "up").symlink_to(photos)
    assert [row["output"] for row in built(photos, styles, tmp_path / "p.parquet")] == [
        "cat/2.jpg",
        "dog/1.jpg",
    ]


def test_a_manifest_beside_its_images_can_be_built_again(tmp_path: Path, styles: Path) -> None:
    photos = tree(tmp_path / "photos", "1.jpg")
    first = built(photos, styles, photos / "pairs.parquet")
    assert built(photos, styles, photos / "pairs.parquet") == first


def test_an_image_folder_is_built_checked_and_run(tmp_path: Path, pictures: Path, cli: Cli) -> None:
    for number, path in enumerate(sorted((pictures / "content").iterdir())):
        target = tmp_path / "photos" / ("train", "val")[number % 2] / path.stem[0] / path.name
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())
    done = cli("manifest", "build", "photos", pictures / "style", "-o", "pairs.parquet", "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert "6 rows: 6 contents with" in done.stderr
    done = cli("manifest", "check", "pairs.parquet", "--all", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["splits"] == {"train": 3, "val": 3}
    done = cli("run", "pairs.parquet", "-o", "out", "--in-process", "--device", "cpu", "--style-size", "48")
    assert done.returncode == 0, done.stderr
    images = tmp_path / "out" / "images"
    made = {path.relative_to(images) for path in images.rglob("*.*") if path.name != "metadata.parquet"}
    assert made == {path.relative_to(tmp_path / "photos") for path in (tmp_path / "photos").rglob("*.*")}
    for row in read_results(tmp_path / "out"):
        assert row["content"].split("/")[1:3] == [row["split"], row["label"]]


def test_a_seed_pairs_the_samples_so_on_every_machine(tmp_path: Path) -> None:
    rows = built(SAMPLE / "content", SAMPLE / "style", tmp_path / "p.parquet", seed=7)
    assert {row["output"].removesuffix(".jpg"): Path(row["style"]).stem for row in rows} == {
        "brandenburg-gate": "morisot-daffodils",
        "cat": "van-gogh-painter-on-the-road",
        "colosseum": "van-gogh-church-at-auvers",
        "machu-picchu": "morisot-daffodils",
        "neuschwanstein-castle": "van-gogh-cafe-terrace",
        "scarlet-macaw": "van-gogh-church-at-auvers",
    }
