"""Layouts: the pictures of the layout `files`, in containers that others read, and none lost, doubled or replaced."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from webdataset.compat import WebDataset
from webdataset.tariterators import base_plus_ext

import stylize_batch
from stylize_batch import worker
from stylize_batch.errors import UsageError
from stylize_batch.layout.container import container_name
from stylize_batch.layout.reading import PictureReader, address
from stylize_batch.layout.webdataset import described, sample_key
from stylize_batch.manifest.naming import checked_key
from stylize_batch.manifest.shards import Shard
from stylize_batch.results import OF_OUTCOME
from stylize_batch.root import Root
from tests.conftest import Cli, MakeManifest, Row, read_results

DOCS = Path(__file__).parents[2] / "docs" / "layouts.md"

CONTAINERS = ["webdataset", "parquet"]


def run(manifest: Path, output: object, **settings: Any) -> stylize_batch.RunSummary:
    defaults: dict[str, Any] = {"in_process": True, "device": "cpu", "style_size": 48, "shard_pairs": 2}
    return stylize_batch.run(str(manifest), output=str(output), **{**defaults, **settings})


def pictures_of(output: Path) -> dict[str, bytes]:
    """The file of every picture that the results name, by pair."""
    reader = PictureReader()
    found = {
        row["pair_id"]: address(row["output"], row["pair_id"])
        for row in read_results(output)
        if row["output"]
    }
    return {pair: reader.read(where) for pair, where in found.items()}


def listed(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "images").iterdir())


def bytes_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "images").iterdir()}


@pytest.fixture
def manifest(make_manifest: MakeManifest, pairs: list[Row]) -> Path:
    """Six pairs with labels, one with another format."""
    rows = [{**row, "output": f"train/dog/{index}", "label": index} for index, row in enumerate(pairs[:6])]
    rows[3]["output"] = "train/cat/v1.3.png"
    return make_manifest(rows)


@pytest.fixture
def files(manifest: Path, tmp_path: Path) -> dict[str, bytes]:
    """The pictures that the layout `files` makes."""
    run(manifest, tmp_path / "files")
    return pictures_of(tmp_path / "files")


def samples_of(root: Path) -> list[dict[str, Any]]:
    """Read all containers as docs/layouts.md does."""
    return list(WebDataset(sorted(map(str, (root / "images").glob("*.tar"))), shardshuffle=False))


def test_webdataset_reads_every_sample_with_its_class_and_what_is_known_of_it(
    manifest: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    run(manifest, tmp_path / "out", layout="webdataset")
    assert listed(tmp_path / "out") == [f"part-00000{shard}.tar" for shard in range(3)]
    results = {row["pair_id"]: row for row in read_results(tmp_path / "out")}
    samples = samples_of(tmp_path / "out")
    assert len(samples) == 6
    assert len({sample["__key__"] for sample in samples}) == 6
    for sample in samples:
        known = json.loads(sample["json"])
        row = results[known["pair_id"]]
        assert sample.get("jpg", sample.get("png")) == files[known["pair_id"]]
        assert int(sample["cls"]) == known["label"] == row["label"]
        assert known["style"] == row["style"]
        assert known["style_loss"] == pytest.approx(row["style_loss"])
        with fsspec.open(row["output"]) as opened:  # as it stands
            assert opened.read() == files[known["pair_id"]]  # pyright: ignore[reportAttributeAccessIssue]
    assert {"train/dog/0", "train/dog/5"} <= {sample["__key__"] for sample in samples}
    assert next(sample["__key__"] for sample in samples if "png" in sample).startswith("train/cat/v1_3_png_")
    with tarfile.open(tmp_path / "out" / "images" / "part-000000.tar") as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}


def test_the_example_of_the_docs_reads_pictures_of_all_formats(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(manifest, tmp_path / "stylized", layout="webdataset")
    monkeypatch.chdir(tmp_path)
    example = DOCS.read_text().partition("```python\n")[2].partition("```")[0]
    seen: list[tuple[Any, Row]] = []
    exec(example.replace("...", "seen.append((picture, known))"), {"seen": seen})
    assert sorted(known["label"] for _, known in seen) == list(range(6))
    assert all(picture.size == (known["width"], known["height"]) for picture, known in seen)


def test_datasets_loads_parquet_as_images(
    manifest: Path, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    run(manifest, tmp_path / "out", layout="parquet")
    assert listed(tmp_path / "out") == [f"part-00000{shard}.parquet" for shard in range(3)]
    loaded = datasets.load_dataset(
        "parquet",
        data_files=f"{tmp_path}/out/images/*.parquet",
        split="train",
        cache_dir=str(tmp_path / "hf"),
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["label"] == datasets.Value("int64")
    assert sorted(loaded["label"]) == list(range(6))
    for row in loaded:
        with Image.open(io.BytesIO(files[row["pair_id"]])) as image:  # pyright: ignore[reportArgumentType, reportCallIssue]
            assert row["image"].tobytes() == image.tobytes()  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize("layout", CONTAINERS)
def test_a_run_that_dies_between_pictures_and_results_is_finished_with_the_same_bytes(
    manifest: Path, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    run(manifest, tmp_path / "whole", layout=layout)

    def die(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker, "put_part", die)
        with pytest.raises(KeyboardInterrupt):
            run(manifest, tmp_path / "out", layout=layout)
    assert len(listed(tmp_path / "out")) == 1
    summary = run(manifest, tmp_path / "out", layout=layout)
    assert (summary.ok, summary.skipped) == (6, 0)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert pictures_of(tmp_path / "out") == files
    assert not (tmp_path / "out" / ".tmp").exists()


@pytest.mark.parametrize("layout", CONTAINERS)
def test_retried_rows_get_a_container_of_their_own_and_what_is_there_stays(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path, layout: str
) -> None:
    late = tmp_path / "late.jpg"
    sources = [contents[0], str(late), contents[1], str(tmp_path / "never.jpg")]
    manifest = make_manifest([{"content": content, "style": styles[:1]} for content in sources])
    summary = run(manifest, tmp_path / "out", layout=layout, shard_pairs=8)
    assert (summary.ok, summary.failed) == (2, 2)
    before = bytes_of(tmp_path / "out")
    late.write_bytes(Path(contents[2]).read_bytes())
    summary = run(manifest, tmp_path / "out", layout=layout, shard_pairs=8, retry_failed=True)
    assert (summary.ok, summary.failed) == (3, 1)
    after = bytes_of(tmp_path / "out")
    assert len(after) == 2
    assert before.items() <= after.items()
    assert len(pictures_of(tmp_path / "out")) == 3
    if layout == "webdataset":
        assert len(samples_of(tmp_path / "out")) == 3


def test_containers_that_no_results_name_are_deleted_and_nothing_else(manifest: Path, tmp_path: Path) -> None:
    run(manifest, tmp_path / "out", layout="webdataset")
    images = tmp_path / "out" / "images"
    kept = listed(tmp_path / "out")
    for name in ("part-000000-0123456789abcdef.tar", "part-000009.tar", "mine.tar"):
        (images / name).write_bytes((images / kept[0]).read_bytes())
    run(manifest, tmp_path / "out", layout="webdataset")
    assert listed(tmp_path / "out") == ["mine.tar", *kept]


def test_the_last_lines_name_the_containers_and_overwrite_leaves_none(
    make_manifest: MakeManifest, pairs: list[Row], cli: Cli, tmp_path: Path
) -> None:
    command = ("run", make_manifest(pairs[:1]), "-o", "out", "--in-process", "--style-size", 48)
    done = cli(*command, "--layout", "webdataset")
    assert done.returncode == 0, done.stderr
    assert f"pictures       {tmp_path}/out/images/*.tar\n" in done.stderr
    changed = cli(*command)
    assert changed.returncode == 2
    assert "layout was webdataset for this output root and is now files" in changed.stderr
    done = cli(*command, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert [name.rpartition(".")[2] for name in listed(tmp_path / "out")] == ["jpg"]


def test_a_root_whose_tars_could_not_be_named_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--layout webdataset: .* '::'"):
        run(manifest, tmp_path / "a::b", layout="webdataset")


def test_the_report_shows_pictures_out_of_containers(manifest: Path, tmp_path: Path) -> None:
    sizes: set[int] = set()
    for layout in ("files", *CONTAINERS):
        run(manifest, tmp_path / layout, layout=layout)
        sizes.add((tmp_path / layout / "report.html").read_text().count("data:image"))
    assert len(sizes) == 1


_NAMES = st.text(st.sampled_from("aJ._-:é1 "), min_size=1, max_size=6)
_KEYS = st.builds(
    lambda folders, stem, extension: "/".join([*folders, stem + extension]),
    st.lists(st.one_of(_NAMES, st.sampled_from(["__x__", "____", "______"])), max_size=2),
    st.one_of(_NAMES, st.sampled_from(["a", "a.b", "a_b", "a_png", "a_PNG"])),
    st.sampled_from([".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".webp"]),
)


@given(st.sets(_KEYS, min_size=2, max_size=8))
def test_two_pictures_never_become_one_sample(keys: set[str]) -> None:
    safe: list[str] = []
    for key in keys | {f"{sample_key(key, '.jpg')}.jpg" for key in keys}:
        try:
            safe.append(checked_key(key))
        except UsageError:
            continue
    samples = [sample_key(key, ".jpg") for key in safe]
    assert len(set(samples)) == len(samples)
    for sample in samples:
        assert base_plus_ext(f"{sample}.jpg") == (sample, "jpg"), "readers would find another key"
        assert "::" not in sample
        assert not re.match(r"__[^/]*__($|/)", f"{sample}.jpg"), "readers would pass it over"


def test_times_finer_than_pythons_are_described_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    moment = 1_700_000_000_123_456_789
    rows = pa.table({name: [None] for name in OF_OUTCOME}).append_column(
        pa.field("taken", pa.timestamp("ns", "UTC")), [pa.array([moment], pa.timestamp("ns", "UTC"))]
    )
    rows = rows.append_column("shutter", pa.array([moment], pa.duration("ns")))
    (known,) = described(rows)
    assert known["taken"] == "2023-11-14T22:13:20.123456+00:00"


def test_times_that_python_cannot_hold_are_described_as_text() -> None:
    far, odd = pa.timestamp("us", "UTC"), pa.timestamp("s", "Mars/Olympus")
    rows = pa.table({name: [None] * 2 for name in OF_OUTCOME})
    for name, column in (
        ("taken", pa.array([10**18, 0], far)),
        ("there", pa.array([0, None], odd)),
        ("day", pa.array([2**31 - 1, 0], pa.date32())),
    ):
        rows = rows.append_column(name, column)
    known = list(described(rows))
    assert known[1] == {"taken": "1970-01-01 00:00:00.000000", "there": None, "day": "1970-01-01"}
    assert known[0] == {
        "taken": "<value out of range: 1000000000000000000>",
        "there": "1970-01-01 00:00:00",
        "day": "<value out of range: 2147483647>",
    }


def test_times_inside_lists_and_structs_are_described_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = pa.table({name: [None] for name in OF_OUTCOME})
    for name, column in (
        ("fine", pa.array([[1_700_000_000_123_456_789]], pa.list_(pa.timestamp("ns")))),
        ("far", pa.array([{"day": 2**31 - 1, "n": 3}], pa.struct([("day", pa.date32()), ("n", pa.int8())]))),
    ):
        rows = rows.append_column(name, column)
    (known,) = described(rows)
    assert known["fine"] == ["2023-11-14T22:13:20.123456"]
    assert known["far"] == {"day": "<value out of range: 2147483647>", "n": 3}


def test_a_plain_key_is_the_samples_own() -> None:
    assert sample_key("train/n01440764/n01440764_1.jpg", ".jpg") == "train/n01440764/n01440764_1"
    assert sample_key("train/n01440764/n01440764_1.JPEG", ".jpg") == "train/n01440764/n01440764_1_JPEG"


def test_a_name_of_a_container_stands_for_the_same_rows() -> None:
    some = [["a"], ["b"], ["a", "b"], ["b", "c"], ["a", "c"], ["a", "b", "c"]]
    assert len({container_name(Shard(0, 4), rows) for rows in some}) == len(some)
    assert container_name(Shard(0, 4), ["a", "b"]) == container_name(Shard(0, 4), ["a", "b"])


def test_nothing_of_a_container_is_left_when_its_process_is_gone(tmp_path: Path) -> None:
    root = Root(str(tmp_path), "run")
    with root.spool() as spool:
        spool.write(b"x")
        assert not [name for _, _, names in os.walk(tmp_path) for name in names]
