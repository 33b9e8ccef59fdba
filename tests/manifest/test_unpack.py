"""Unpacking: images come out whole under safe names, what is damaged is named, and nothing else is lost."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stylize_batch.errors import JobFailedError, UsageError
from stylize_batch.manifest import embedded, extraction, webdataset
from stylize_batch.manifest.build import Built, build
from stylize_batch.manifest.pairing import Pairing
from stylize_batch.manifest.source import decoded
from stylize_batch.progress import Silent
from stylize_batch.root import Root
from tests.conftest import Cli, Row

Members = Iterable[tuple[str, bytes]]


def tar(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def unpacked(source: object, folder: Path) -> tuple[Built, list[Row]]:
    """Build a manifest from archives; every content's bytes are added to its row."""
    style = folder / "style.jpg"
    style.touch()
    output = folder / "pairs.parquet"
    built = build(
        str(source), str(style), str(output), Pairing(), unpack=str(folder / "unpacked"), observer=Silent()
    )
    rows = pq.read_table(output).to_pylist()
    return built, [{**row, "data": (folder / row["content"]).read_bytes()} for row in rows]


def test_a_webdataset_becomes_files_with_labels_and_fields(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        members = [
            ("000.jpg", b"%d-0" % shard), ("000.cls", b"7"), ("000.json", b'{"caption": "a dog", "width": 3}'),
            ("000.seg.png", b"mask"), ("001.cls", b"8\n"), ("001.jpg", b"%d-1" % shard), ("001.npy", b"?"),
        ]  # fmt: skip
        tar(tmp_path / "shards" / f"train-{shard:04d}.tar", members)
    built, rows = unpacked(tmp_path / "shards", tmp_path)
    assert [
        (row["output"], row["data"], row["label"], row["caption"], row["source_width"]) for row in rows
    ] == [
        ("train-0000/000.jpg", b"0-0", 7, "a dog", 3),
        ("train-0000/001.jpg", b"0-1", 8, None, None),
        ("train-0001/000.jpg", b"1-0", 7, "a dog", 3),
        ("train-0001/001.jpg", b"1-1", 8, None, None),
    ]
    assert built.problems == []
    assert any("1 image is left out, each beside others of its sample" in note for note in built.notes)


def test_what_is_left_out_of_the_styles_archives_is_noted_too(pictures: Path, tmp_path: Path) -> None:
    picture = next((pictures / "style").iterdir()).read_bytes()
    members = [("0.jpg", picture), ("0.json", b'{"width": 3}'), ("0.seg.png", b"mask")]
    tar(tmp_path / "styles-0000.tar", members)
    built = build(
        str(pictures / "content"), str(tmp_path / "styles-0000.tar"), str(tmp_path / "p.parquet"),
        Pairing(), unpack=str(tmp_path / "files"), observer=Silent(),
    )  # fmt: skip
    assert [note.partition(": ")[2][:40] for note in built.notes] == [
        "1 image is left out, each beside others "
    ]


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz"])
def test_a_tar_of_an_image_folder_keeps_its_tree(tmp_path: Path, name: str) -> None:
    names = [
        "./train/dog/1.jpg",
        "./train/dog/1.b.jpg",
        "./val/cat/2.JPEG",
        "./README.md",
        "./val/cat/._2.JPEG",
    ]
    _, rows = unpacked(tar(tmp_path / name, [(each, each.encode()) for each in names]), tmp_path)
    assert [(row["output"], row["split"], row["label"]) for row in rows] == [
        ("train/dog/1.jpg", "train", "dog"),
        ("train/dog/1.b.jpg", "train", "dog"),
        ("val/cat/2.JPEG", "val", "cat"),
    ]
    assert all(row["data"].decode() == f"./{row['output']}" for row in rows)


@pytest.mark.parametrize("source", ["photos.tgz", "*.tgz"])
def test_the_one_folder_of_a_tar_is_no_label(tmp_path: Path, source: str) -> None:
    names = ["photos/train/bird/1.jpg", "photos/train/cat/2.jpg", "photos/val/cat/3.jpg"]
    tar(tmp_path / "photos.tgz", [(each, b"") for each in names])
    _, rows = unpacked(tmp_path / source, tmp_path)
    prefix = "photos/" if "*" in source else ""
    assert [row["output"] for row in rows] == [prefix + name for name in names]
    assert [(row["split"], row["label"]) for row in rows] == [
        ("train", "bird"),
        ("train", "cat"),
        ("val", "cat"),
    ]


def test_parquet_with_embedded_images_becomes_files_with_its_columns(tmp_path: Path, pictures: Path) -> None:
    data = (pictures / "content" / "cat.jpg").read_bytes()
    cells = [
        {"bytes": data, "path": "dog_1.jpg"},
        {"bytes": data, "path": None},
        {"bytes": b"text", "path": None},
        {"bytes": data, "path": "dog_1.jpg"},
    ]
    table = pa.table(
        {"image": cells, "label": pa.array([0, 1, 2, 3], pa.int8()), "text": ["a", "b", "c", "d"]}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    built, rows = unpacked(tmp_path / "train.parquet", tmp_path)
    assert [(row["label"], row["text"]) for row in rows] == [(0, "a"), (1, "b"), (3, "d")]
    assert [row["output"] for row in rows[:2]] == ["dog_1.jpg", "00000001.jpg"]
    assert all(row["data"] == data for row in rows)
    assert built.problems == [f"{tmp_path}/train.parquet: 1 row holds no image, such as row 2"]


def test_a_row_that_only_names_its_image_is_said_to(tmp_path: Path, pictures: Path) -> None:
    data = (pictures / "content" / "cat.jpg").read_bytes()
    cells = [
        {"bytes": data, "path": None},
        {"bytes": None, "path": "photos/a.jpg"},
        {"bytes": None, "path": ""},
    ]
    pq.write_table(pa.table({"image": cells}), tmp_path / "train.parquet")
    built, _ = unpacked(tmp_path / "train.parquet", tmp_path)
    assert built.problems == [
        f"{tmp_path}/train.parquet: 2 rows hold no image, such as row 1, which only names the file photos/a.jpg"
    ]


def test_labels_keep_their_names_and_parts_their_splits(tmp_path: Path, pictures: Path) -> None:
    data = (pictures / "content" / "cat.jpg").read_bytes()
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "set").mkdir()
    for split, labels in (("train", [1, 0, -1]), ("test", [1])):
        cells = [{"bytes": data, "path": f"{index}.jpg"} for index in range(len(labels))]
        table = pa.table({"image": cells, "label": pa.array(labels, pa.int64())}, metadata=metadata)
        pq.write_table(table, tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    built, rows = unpacked(tmp_path / "set", tmp_path)
    assert built.notes == []
    assert [(row["split"], row["label"], row["label_name"]) for row in rows] == [
        ("test", 1, "dog"), ("train", 1, "dog"), ("train", 0, "cat"), ("train", -1, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}']
)
def test_label_names_that_cannot_be_read_are_none(tmp_path: Path, pictures: Path, metadata: bytes) -> None:
    cell = {"bytes": (pictures / "content" / "cat.jpg").read_bytes(), "path": "0.jpg"}
    table = pa.table({"image": [cell], "label": [1]}, metadata={b"huggingface": metadata})
    pq.write_table(table, tmp_path / "train.parquet")
    assert "label_name" not in unpacked(tmp_path / "train.parquet", tmp_path)[1][0]


def test_styles_of_one_split_serve_all(tmp_path: Path, pictures: Path) -> None:
    cell = {"bytes": (pictures / "content" / "cat.jpg").read_bytes(), "path": "0.jpg"}
    parts = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": [cell, {**cell, "path": "1.jpg"}]}), parts)
    photos = tmp_path / "photos"
    for name in ("train/1.jpg", "val/2.jpg"):
        (photos / name).parent.mkdir(parents=True)
        (photos / name).touch()
    built = build(
        str(photos), str(parts), str(tmp_path / "p.parquet"), Pairing(separate_splits=True),
        unpack=str(tmp_path / "files"), observer=Silent(),
    )  # fmt: skip
    assert built.used == 2


def test_a_stereo_photograph_without_a_name_in_parquet_is_a_jpeg(tmp_path: Path) -> None:
    left, right = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    file = io.BytesIO()
    left.save(file, "MPO", save_all=True, append_images=[right])
    pq.write_table(
        pa.table({"image": [{"bytes": file.getvalue(), "path": None}]}), tmp_path / "train.parquet"
    )
    built, rows = unpacked(tmp_path / "train.parquet", tmp_path)
    assert built.problems == []
    assert [row["output"] for row in rows] == ["00000000.jpg"]


def test_bytes_that_are_no_image_are_carried_or_make_a_list(tmp_path: Path, pictures: Path) -> None:
    data = (pictures / "content" / "cat.jpg").read_bytes()
    embedded = [None] * 20 + [b"damaged", data]
    table = pa.table({"md5": [b"\x01\x02"] * 22, "picture": embedded, "other": [data] * 22})
    pq.write_table(table, tmp_path / "embedded.parquet")
    built, rows = unpacked(tmp_path / "embedded.parquet", tmp_path)
    assert [(row["data"], row["md5"]) for row in rows] == [(data, b"\x01\x02")]
    assert "columns of other images are left out: other" in built.notes[0]
    (tmp_path / "x.jpg").write_bytes(data)
    pq.write_table(pa.table({"path": ["x.jpg"], "md5": [b"\x03"]}), tmp_path / "list.parquet")
    (row,) = unpacked(tmp_path / "list.parquet", tmp_path)[1]
    assert (row["content"], row["md5"]) == ("x.jpg", b"\x03")


def test_archives_in_folders_of_splits_keep_the_classes_inside_them(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        tar(tmp_path / split / "p0.tar", [("cat/1.jpg", b"1"), ("dog/2.jpg", b"2")])
    _, rows = unpacked(tmp_path / "*" / "*.tar", tmp_path)
    assert [(row["split"], row["label"]) for row in rows] == [
        ("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "dog"),
    ]  # fmt: skip


def test_numbered_frames_are_no_sample_to_hold_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "PUTS", 4)
    most = 0

    class Watched(webdataset._Sample):  # pyright: ignore[reportPrivateUsage]
        def extract(self, out: Any) -> list[dict[str, Any]]:
            nonlocal most
            most = max(most, len(self.images))
            return super().extract(out)

    monkeypatch.setattr(webdataset, "_Sample", Watched)
    members = [(f"shot.{number:04d}.png", b"%d" % number) for number in range(10)]
    _, rows = unpacked(tar(tmp_path / "a.tar", members), tmp_path)
    assert [row["data"] for row in rows] == [data for _, data in members]
    assert most == 4


def test_a_class_of_minus_one_is_a_number_like_the_others(tmp_path: Path) -> None:
    members = [("0.jpg", b"0"), ("0.cls", b"-1"), ("1.jpg", b"1"), ("1.cls", b"3")]
    _, rows = unpacked(tar(tmp_path / "a.tar", members), tmp_path)
    assert [row["label"] for row in rows] == [-1, 3]


@pytest.mark.parametrize("order", [1, -1])
def test_a_class_does_not_depend_on_the_order_of_the_members_that_name_it(tmp_path: Path, order: int) -> None:
    sidecars = [
        [("0.cls", b"3"), ("0.json", b'{"label": "dog"}')],
        [("1.cls", b"4"), ("1.json", b'{"label": 4}')],
    ]
    members = [
        member for number, each in enumerate(sidecars) for member in [(f"{number}.jpg", b"x"), *each[::order]]
    ]
    _, rows = unpacked(tar(tmp_path / "a.tar", members), tmp_path)
    assert [(row["label"], row["source_label"]) for row in rows] == [(3, "dog"), (4, None)]


def test_labels_of_a_tar_that_reach_no_image_are_counted(tmp_path: Path) -> None:
    apart = [("0.jpg", b"0"), ("1.jpg", b"1"), ("0.cls", b"3"), ("1.cls", b"4")]
    other = [
        ("photo.0.jpg", b"2"),
        ("photo.0.cls", b"5"),
        ("2.jpg", b"3"),
        ("2.caption", b"a dog"),
        ("README", b""),
    ]
    built, rows = unpacked(tar(tmp_path / "a.tar", [*apart, *other]), tmp_path)
    assert [row["data"] for row in rows] == [b"0", b"1", b"2", b"3"]
    unused, alone = (note.partition("a.tar: ")[2] for note in built.notes)
    assert unused.startswith(
        "3 members are left out, named from the first dot on neither like an image nor .cls, .json or .txt (.cls 1, .caption 1, no"
    )
    assert alone.startswith(
        "2 members are left out, whose sample has no image (.cls 2), such as 0.cls; put the members"
    )


def test_archives_are_not_unpacked_into_their_own_folder(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    tar(tmp_path / "shards" / "a.tar", [("0.jpg", b"0")])
    (tmp_path / "s.jpg").touch()
    sources = (str(tmp_path / "shards"), str(tmp_path / "s.jpg"), str(tmp_path / "shards" / "pairs.parquet"))
    with pytest.raises(UsageError, match="where it would be listed too"):
        build(*sources, Pairing(), unpack=str(tmp_path / "shards" / "files"), observer=Silent())
    for _ in range(2):  # what was built of the archives may lie beside them
        assert build(*sources, Pairing(), unpack=str(tmp_path / "files"), observer=Silent()).rows == 1


hostile = st.text("ab./\\~\x00A:", min_size=1, max_size=20)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(hostile, min_size=1, max_size=12))
def test_no_member_leaves_the_folder_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("unpack")
    members = [(f"{name.replace(chr(0), '')}x.jpg", b"%d" % number) for number, name in enumerate(names)]
    kept = [data for name, data in members if not name.rpartition("/")[2].startswith(".")]
    if not kept:
        return
    _, rows = unpacked(tar(folder / "a.tar", members), folder)
    assert sorted(row["data"] for row in rows) == sorted(kept)
    outside = {path for path in folder.rglob("*") if path.is_file() and "unpacked" not in path.parts}
    assert {path.name for path in outside} == {"a.tar", "style.jpg", "pairs.parquet"}


@pytest.mark.parametrize("name", ["../../escape.jpg", "/etc/escape.jpg", "~/escape.jpg", "a\\..\\escape.jpg"])
def test_hostile_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    _, (row,) = unpacked(tar(tmp_path / "a.tar", [(name, b"data")]), tmp_path)
    found = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"data"]
    assert found == [tmp_path / row["content"]]
    assert (tmp_path / "unpacked") in found[0].parents


def test_links_are_left_out_by_name_and_never_followed(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("1.jpg", b"1")])
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("2.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("3.jpg", tarfile.LNKTYPE, "1.jpg"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    built, rows = unpacked(path, tmp_path)
    assert [row["data"] for row in rows] == [b"1"]
    assert [problem.split(": ")[1].split()[0] for problem in built.problems] == ["2.jpg", "3.jpg"]


@pytest.mark.parametrize(
    "mark", [{"GNU.sparse.map": "a,b"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}]
)
def test_a_header_that_makes_no_sense_keeps_what_came_before(mark: dict[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, headers in (("1.jpg", {}), ("2.jpg", mark)):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 5, headers
            archive.addfile(info, io.BytesIO(b"bytes"))
    built, rows = unpacked(tmp_path / "a.tar", tmp_path)
    assert [row["output"] for row in rows] == ["1.jpg"]
    assert "what came before is kept" in built.problems[0]


def test_a_sparse_member_is_left_out_by_name_and_fills_no_disk(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("1.jpg", b"1")])
    sparse = tarfile.TarInfo("2.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(sparse.tobuf())
    header[386:398] = header[483:495] = b"%011o\0" % 1_000_000  # a hole in place of all its bytes
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(path.read_bytes()[:1024] + header + bytes(1024))
    built, rows = unpacked(path, tmp_path)
    assert [row["data"] for row in rows] == [b"1"]
    assert "2.jpg is a link, a device or sparse" in built.problems[0]


def test_a_damaged_header_loses_its_own_member_alone(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(f"{number}.jpg", b"%d" % number * 700) for number in range(5)])
    data = bytearray(path.read_bytes())
    data[2 * 1536 + 100 : 2 * 1536 + 160] = b"\xff" * 60
    path.write_bytes(data)
    built, rows = unpacked(path, tmp_path)
    assert [row["output"] for row in rows] == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]
    assert len(built.problems) == 1
    assert "is damaged inside" in built.problems[0]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_truncated_archive_keeps_what_is_whole_and_says_so(tmp_path: Path, name: str) -> None:
    noise = random.Random(0).randbytes
    path = tar(tmp_path / name, [(f"{number}.jpg", noise(5000)) for number in range(9)])
    path.write_bytes(path.read_bytes()[:-20_000])
    built, rows = unpacked(path, tmp_path)
    assert 0 < len(rows) < 9
    assert len(built.problems) == 1
    assert "damaged" in built.problems[0]


def test_an_archive_cut_between_two_members_is_noticed(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(f"{number}.jpg", b"x" * 512) for number in range(4)])
    path.write_bytes(path.read_bytes()[: 2 * 1024])
    built, rows = unpacked(path, tmp_path)
    assert len(rows) == 2
    assert "has no end mark" in built.problems[0]


def test_too_large_members_are_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "MAX_MEMBER", 1000)
    built, rows = unpacked(tar(tmp_path / "a.tar", [("big.jpg", b"x" * 1001), ("ok.jpg", b"ok")]), tmp_path)
    assert [row["output"] for row in rows] == ["ok.jpg"]
    assert "big.jpg has 1001 bytes, the limit is 1000" in built.problems[0]


def test_images_that_a_parquet_file_holds_once_for_all_rows_fill_neither_memory_nor_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "LEAST", 1_000_000)
    monkeypatch.setattr(extraction, "SLACK", 100_000)
    monkeypatch.setattr(extraction, "MAX_MEMBER", 100_000)
    cells = [{"bytes": b"x" * (200_000 if row == 1 else 90_000), "path": f"{row}.jpg"} for row in range(30)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 5000
    built, rows = unpacked(tmp_path / "a.parquet", tmp_path)
    assert [row["output"] for row in rows] == ["0.jpg", *(f"{row}.jpg" for row in range(2, 8))]
    assert [problem.partition("parquet: ")[2] for problem in built.problems] == [
        "row 1 has 200000 bytes, the limit is 100000; left out",
        "is damaged (it expands to too many times its size); what came before is kept",
    ]


def test_texts_that_a_parquet_file_numbers_are_counted_once_and_read_many_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Mock(wraps=decoded)
    monkeypatch.setattr(embedded, "decoded", reads)
    monkeypatch.setattr(extraction, "LEAST", 2_000_000)
    texts = [f"{row:05d}" + "x" * 1000 for row in range(1000)]
    table = pa.table(
        {
            "image": [{"bytes": b"x", "path": f"{row}.jpg"} for row in range(1000)],
            "caption": pa.array(texts).dictionary_encode(),
            "left out": [{"bytes": b"x" * 5000, "path": None}] * 1000,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    built, rows = unpacked(tmp_path / "a.parquet", tmp_path)
    assert (built.problems, [row["caption"] for row in rows]) == ([], texts)
    assert reads.call_count < 20


def test_a_header_that_asks_for_memory_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SLACK", 1 << 20)
    bomb = tarfile.TarInfo("bomb")
    bomb.type, bomb.size = tarfile.XHDTYPE, 1 << 24
    data = tarfile.TarInfo("1.jpg").tobuf() + bomb.tobuf() + b"\0" * (1 << 24)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    built, rows = unpacked(tmp_path / "a.tar.gz", tmp_path)
    assert [row["output"] for row in rows] == ["1.jpg"]
    assert "no readable member for a long stretch" in built.problems[0]


@pytest.mark.parametrize(
    "text",
    [b"[" * 200_000, b'{"caption": "\\ud800"}', b'{"\\udfff": [{"a": 1}]}'],
    ids=["deep", "value", "name"],
)
def test_a_sidecar_that_no_column_can_hold_is_left_out_by_name(text: bytes, tmp_path: Path) -> None:
    sound = [("a.jpg", b"1"), ("a.txt", b"text"), ("b.jpg", b"2"), ("b.json", b'{"x": 1}')]
    built, rows = unpacked(tar(tmp_path / "a.tar", [*sound[:1], ("a.json", text), *sound[1:]]), tmp_path)
    assert [(row["output"], row["txt"], row["x"]) for row in rows] == [
        ("a.jpg", "text", None),
        ("b.jpg", None, 1),
    ]
    (problem,) = built.problems
    assert "a.tar: a.json cannot be read (" in problem


def test_fields_nested_deeper_than_parquet_reads_become_text(tmp_path: Path) -> None:
    fine, deep = ("[" * levels + "1" + "]" * levels for levels in (30, 400))
    members = [("a.jpg", b"1"), ("a.json", f'{{"fine": {fine}, "deep": {deep}}}'.encode())]
    built, (row,) = unpacked(tar(tmp_path / "a.tar", members), tmp_path)
    assert (built.problems, row["fine"], row["deep"]) == ([], json.loads(fine), deep)


def test_what_is_done_is_not_unpacked_again(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    paths = [tar(tmp_path / "s" / f"{name}.tar", [("1.jpg", name.encode())]) for name in "ab"]
    _, first = unpacked(tmp_path / "s", tmp_path)
    kept = tmp_path / first[0]["content"]
    kept.write_bytes(b"untouched")
    tar(paths[1], [("1.jpg", b"new bytes")])
    built, rows = unpacked(tmp_path / "s", tmp_path)
    assert [row["data"] for row in rows] == [b"untouched", b"new bytes"]
    assert [row["content"] for row in rows] == [row["content"] for row in first]
    assert built.problems == []


def test_an_archive_without_its_index_is_unpacked_again(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("1.jpg", b"1"), ("2.jpg", b"2")])
    _, rows = unpacked(path, tmp_path)
    (index,) = (tmp_path / "unpacked").rglob("index/*.parquet")
    index.unlink()
    (tmp_path / rows[1]["content"]).unlink()
    assert unpacked(path, tmp_path)[1] == rows
    assert not (tmp_path / "unpacked" / ".tmp").exists()


@pytest.mark.parametrize("keep", [0, 4])
def test_a_damaged_index_is_written_again(keep: int, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("1.jpg", b"1"), ("2.jpg", b"2")])
    _, rows = unpacked(path, tmp_path)
    (index,) = (tmp_path / "unpacked").rglob("index/*.parquet")
    whole = index.read_bytes()
    index.write_bytes(whole[:keep] + bytes(60) + whole[keep + 60 :] if keep else b"")
    assert unpacked(path, tmp_path)[1] == rows
    assert index.read_bytes() == whole


def test_problems_are_said_again_by_a_repeated_build(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("1.jpg", b"1")])
    path.write_bytes(path.read_bytes()[:1024])
    assert unpacked(path, tmp_path)[0].problems == unpacked(path, tmp_path)[0].problems != []


def test_fields_without_a_common_type_become_text_and_text_gets_no_quotes(tmp_path: Path) -> None:
    fields = [{"tag": 1}, {"tag": "one"}, {"tag": [1]}]
    members = [
        (f"{number}.{suffix}", data)
        for number, each in enumerate(fields)
        for suffix, data in (("jpg", b"x"), ("json", json.dumps(each).encode()))
    ]
    _, rows = unpacked(tar(tmp_path / "a.tar", members), tmp_path)
    assert [row["tag"] for row in rows] == ["1", "one", "[1]"]


def test_a_column_whose_type_the_archives_disagree_on_becomes_text(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name, label in ("a", b"7"), ("b", b"cat"):
        members = [("0.jpg", b"0"), ("0.cls", label), ("1.jpg", b"1")]
        tar(tmp_path / "shards" / f"{name}.tar", members)
    tar(tmp_path / "shards" / "c.tar", [("0.jpg", b"0"), ("0.json", b'{"label": [1]}')])
    tar(tmp_path / "shards" / "d.tar", [("0.jpg", b"0")])
    built, rows = unpacked(tmp_path / "shards", tmp_path)
    assert [row["label"] for row in rows] == ["7", None, "cat", None, "[1]", None]
    (note,) = built.notes
    assert note.endswith("column 'label' has different types in the archives, and becomes text")


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "mine.txt").touch()
    with pytest.raises(UsageError, match="is not empty and holds no"):
        unpacked(tar(tmp_path / "a.tar", [("1.jpg", b"1")]), tmp_path)


def test_a_full_disk_stops_with_the_archive_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "a.tar", [("1.jpg", b"1")])
    real = Root.put

    def full(self: Root, key: str, data: bytes) -> None:
        if data == b"1":
            raise OSError(28, "No space left on device")
        real(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Root, "put", full)
        with pytest.raises(JobFailedError, match="No space left"):
            unpacked(path, tmp_path)
    assert unpacked(path, tmp_path)[0].rows == 1


def test_archives_need_a_folder_and_a_damaged_one_exits_3(tmp_path: Path, cli: Cli) -> None:
    path = tar(tmp_path / "a.tar", [("1.jpg", b"1")])
    (tmp_path / "style.jpg").touch()
    done = cli("manifest", "build", path, "style.jpg", "-o", "p.parquet")
    assert done.returncode == 2
    assert "--unpack DIR" in done.stderr
    path.write_bytes(path.read_bytes()[:1024])
    done = cli("manifest", "build", path, "style.jpg", "-o", "p.parquet", "--unpack", "files")
    assert done.returncode == 3, done.stderr
    assert "may be cut off" in done.stderr
    assert pq.read_table(tmp_path / "p.parquet").num_rows == 1


@pytest.mark.parametrize("source", ["shards", "shards/*.tar"])
def test_an_archive_that_is_added_changes_no_names_of_the_others(tmp_path: Path, source: str) -> None:
    (tmp_path / "shards").mkdir()
    tar(tmp_path / "shards" / "s-0.tar", [("dog/0.jpg", b"0")])
    _, first = unpacked(tmp_path / source, tmp_path)
    tar(tmp_path / "shards" / "s-1.tar", [("dog/0.jpg", b"1")])
    _, both = unpacked(tmp_path / source, tmp_path)
    assert first == both[:1]
    assert [(row["output"], row["label"]) for row in both] == [
        ("s-0/dog/0.jpg", "dog"),
        ("s-1/dog/0.jpg", "dog"),
    ]


def test_archives_that_differ_in_their_ending_alone_keep_their_images_apart(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("a.tar", "a.tgz", "b.tar"):
        tar(tmp_path / "shards" / name, [("0.jpg", name.encode())])
    _, rows = unpacked(tmp_path / "shards", tmp_path)
    assert [(row["output"], row["data"].decode()) for row in rows] == [
        ("a.tar/0.jpg", "a.tar"), ("a.tgz/0.jpg", "a.tgz"), ("b/0.jpg", "b.tar"),
    ]  # fmt: skip
