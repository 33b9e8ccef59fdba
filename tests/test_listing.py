"""Listings: complete or an error, whatever storage does; links are followed, and patterns find what a shell finds."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
from botocore.exceptions import EndpointConnectionError

from stylize_batch.errors import UsageError
from stylize_batch.job.record import untouched
from stylize_batch.listing import files, glob, list_files, pattern_of, walk
from stylize_batch.manifest.collect import collect
from stylize_batch.manifest.schema import ManifestError
from stylize_batch.manifest.source import locate
from stylize_batch.progress import Silent
from stylize_batch.root import Root
from stylize_batch.s3 import PatientS3
from stylize_batch.storage import filesystem

Fail = Callable[[Path], None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Let the disk fail when a folder is listed."""
    true = os.scandir

    def fail(folder: Path) -> None:
        def scandir(path: Any = ".") -> Iterator[os.DirEntry[str]]:
            if Path(path) == folder:
                raise OSError(errno.EIO, "Input/output error", str(folder))
            return true(path)

        monkeypatch.setattr(os, "scandir", scandir)

    return fail


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path, pattern: str, *skip: str) -> list[str]:
    split = pattern_of(f"{folder}/{pattern}")
    assert split is not None
    return [path.removeprefix(f"{folder}/") for path in glob(split, skip)]


def test_a_root_whose_folder_cannot_be_listed_is_not_taken_for_an_untouched_one(
    tmp_path: Path, fail: Fail
) -> None:
    root = Root(str(tmp_path))
    root.put("results/part-000000.parquet", b"1")
    root.put("plan/deep/shard", b"1")
    fail(tmp_path / "results")
    with pytest.raises(OSError, match="Input/output error"):
        root.list("results")
    with pytest.raises(OSError, match="Input/output error"):
        untouched(root)
    fail(tmp_path / "plan" / "deep")
    with pytest.raises(OSError, match="Input/output error"):
        root.sizes("plan")


@pytest.mark.parametrize("pattern", ["", "*/*.parquet", "**/*.parquet"])
def test_a_manifest_of_which_a_folder_cannot_be_listed_is_refused(
    tmp_path: Path, fail: Fail, pattern: str
) -> None:
    tree(tmp_path, "a/1.parquet", "b/2.parquet")
    fail(tmp_path / "b")
    with pytest.raises(ManifestError, match=r"cannot read the manifest .* Input/output error"):
        locate(f"{tmp_path}/{pattern}")


def test_images_of_which_a_folder_cannot_be_listed_are_refused(tmp_path: Path, fail: Fail) -> None:
    photos = tree(tmp_path / "photos", "a/1.jpg", "b/2.jpg")
    fail(photos / "b")
    with pytest.raises(UsageError, match=r"cannot list .* Input/output error"):
        list_files(str(photos), (".jpg",))
    for source in (photos, photos / "*" / "*.jpg"):
        with pytest.raises(UsageError, match=r"cannot read .* Input/output error"):
            collect(str(source), "content", tmp_path, observer=Silent())


def test_a_folder_that_is_deleted_meanwhile_hides_no_other(tmp_path: Path) -> None:
    tree(tmp_path, "a/1", "b/2")
    walked = walk(*filesystem(str(tmp_path)))
    assert next(walked) == f"{tmp_path}/a/1"
    (tmp_path / "b" / "2").unlink()
    (tmp_path / "b").rmdir()
    tree(tmp_path, "c/3")
    assert list(walked) == []
    assert sorted(files(*filesystem(str(tmp_path)))) == [f"{tmp_path}/a/1", f"{tmp_path}/c/3"]


def test_folders_behind_links_are_listed_everywhere_and_one_that_leads_back_up_once(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "real/1.parquet", "real/1.jpg")
    tree(tmp_path / "elsewhere", "2.parquet", "2.jpg")
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "real" / "up").symlink_to(data)
    both = [f"{data}/link/2", f"{data}/real/1"]
    for pattern in ("", "*/*.parquet", "**/*.parquet"):
        assert locate(f"{data}/{pattern}").files == [f"{each}.parquet" for each in both]
    assert list_files(str(data), (".jpg",)) == [f"{each}.jpg" for each in both]
    for pattern in ("", "*/*.jpg", "**/*.jpg"):
        collected = collect(f"{data}/{pattern}", "content", tmp_path, observer=Silent())
        keys = [key for table in collected.tables() for key in table["stylize_batch.key"].to_pylist()]
        assert keys == ["link/2.jpg", "real/1.jpg"]


def test_hidden_files_and_folders_hold_no_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg", ".cache/b.jpg", "c/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_files(str(tmp_path), (".jpg",)) == [str(tmp_path / "a.jpg"), str(tmp_path / "c" / "d.jpg")]
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "e.jpg").touch()
    assert list_files(str(tmp_path / ".hidden"), (".jpg",)) == [str(tmp_path / ".hidden" / "e.jpg")]


def test_links_in_a_root_are_none_of_its_folders(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere", "theirs.jpg")
    root = Root(str(tmp_path / "out"))
    root.put("images/1.jpg", b"1")
    (tmp_path / "out/images/link").symlink_to(tmp_path / "elsewhere")
    assert root.list("images") == ["images/1.jpg", "images/link"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["1.x", "a"]),
        ("*.x", ["1.x"]),
        ("_*.x", ["_2.x"]),
        (".3*", [".3.x"]),
        ("[_1]*.x", ["1.x"]),
        ("a/*/?.x", ["a/b/5.x"]),
        ("*/4.x", ["a/4.x"]),
        ("**", ["1.x", "a/4.x", "a/b/5.x"]),
        ("**/*.x", ["1.x", "a/4.x", "a/b/5.x"]),
        ("a/**/5.x", ["a/b/5.x"]),
        ("a/**/b/**/*.x", ["a/b/5.x"]),
        ("**/_*.x", ["_2.x", "a/_6.x"]),
        ("_c/*", ["_c/7.x"]),
        ("x*/y", []),
        ("absent/*", []),
        ("1.x/*", []),
    ],
)
def test_patterns_find_what_a_shell_finds(pattern: str, expected: list[str], tmp_path: Path) -> None:
    tree(tmp_path, "1.x", "_2.x", ".3.x", "a/4.x", "a/b/5.x", "a/_6.x", "_c/7.x")
    assert found(tmp_path, pattern, "_", ".") == expected


def test_a_pattern_looks_into_no_folder_that_it_does_not_name(tmp_path: Path, fail: Fail) -> None:
    tree(tmp_path, "a1/x", "a2/x", "lost+found/x")
    fail(tmp_path / "lost+found")
    assert found(tmp_path, "a*/x") == ["a1/x", "a2/x"]


@pytest.mark.parametrize("name", ["set[1]", "a*b", "what?"])
def test_wildcards_of_the_working_directory_are_just_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tree(tmp_path / name, "a.parquet", "sub/1.jpg")
    tree(tmp_path / "set1", "wrong.parquet", "sub/wrong.jpg")
    monkeypatch.chdir(here)
    assert locate("*.parquet") == ([f"{here}/a.parquet"], str(here))
    collected = collect("sub/*.jpg", "content", tmp_path, observer=Silent())
    assert [uri for table in collected.tables() for uri in table["stylize_batch.uri"].to_pylist()] == [
        f"{here}/sub/1.jpg"
    ]


@pytest.mark.parametrize(
    ("path", "base", "names"),
    [
        ("/data/x*", "/data", "x*"),
        ("/data/a/**/[ab]", "/data/a", "**/[ab]"),
        ("/*", "/", "*"),
        ("s3://bucket/in/x?/y", "s3://bucket/in", "x?/y"),
        ("file:///*/x", "file:///", "*/x"),
        ("memory://*", "memory://", "*"),
    ],
)
def test_a_pattern_starts_at_the_folder_in_front_of_its_first_wildcard(
    path: str, base: str, names: str
) -> None:
    assert pattern_of(path) == (base, names)
    assert pattern_of("/data/x") is None


def test_a_listing_of_s3_is_asked_for_again_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
        {"Contents": [{"Key": "run/a"}], "IsTruncated": True, "NextContinuationToken": "t"},
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
        {"Contents": [{"Key": "run/b/c"}]},
    ]

    async def answer(*_: Any, **__: Any) -> Any:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", answer)
    store = PatientS3(anon=True, skip_instance_cache=True)
    assert list(files(store, "bucket/run")) == ["bucket/run/a", "bucket/run/b/c"]
