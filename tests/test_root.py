"""The output root: objects that are put whole or not at all, on a disk and on an object store."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from stylize_batch import root as roots
from stylize_batch.errors import UsageError
from stylize_batch.job.record import erase, untouched
from stylize_batch.listing import files
from stylize_batch.manifest.naming import checked_key
from stylize_batch.manifest.source import locate
from stylize_batch.root import Root, replacing
from stylize_batch.storage import (
    filesystem,
    kind,
    read_bytes,
)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    return Root(str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out")


def test_what_is_put_can_be_read_listed_and_deleted(root: Root) -> None:
    root.put("a/b c%20ü.bin", b"1")
    root.put("a/b c%20ü.bin", b"22")
    root.put("run.json", b"{}")
    assert root.read("a/b c%20ü.bin") == b"22"
    assert root.exists("a/b c%20ü.bin")
    assert not root.exists("a")
    assert root.list("a") == ["a/b c%20ü.bin"]
    assert root.list("") == ["a/b c%20ü.bin", "run.json"]
    assert root.list("absent") == []
    root.delete(["absent", "a/b c%20ü.bin"])
    assert root.list("a") == []


def test_all_below_a_prefix_is_deleted_in_turns_and_nothing_beside_it(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "DELETED_AT_ONCE", 3)
    for number in range(20):
        root.put(f"images/{number % 4}/{number % 2}/{number}.jpg", b"1")
    for key in ("images.jpg", "images2/x.jpg"):
        root.put(key, b"1")
    root.clear("images")
    assert root.list("") == ["images.jpg", "images2/x.jpg"]
    root.put("images/0", b"1")  # where a folder was
    root.clear("absent")


def test_names_are_not_in_memory_together_when_a_folder_is_cleared_or_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "DELETED_AT_ONCE", 3)
    root, listed, deleted = Root(str(tmp_path)), list[str](), list[tuple[int, int]]()
    for number in range(8):
        root.put(f"images/{number}", b"1")
    delete = Root.delete

    def listing(*arguments: Any, **options: Any) -> Iterator[str]:
        for path in files(*arguments, **options):
            listed.append(path)
            yield path

    def deleting(root: Root, keys: list[str]) -> None:
        deleted.append((len(listed), len(keys)))
        delete(root, keys)

    monkeypatch.setattr(roots, "files", listing)
    monkeypatch.setattr(Root, "delete", deleting)
    assert not untouched(root)
    assert len(listed) == 1
    listed.clear()
    erase(root)
    assert deleted[:3] == [(3, 3), (6, 3), (8, 2)]
    assert not (tmp_path / "images").exists()


def test_a_key_that_looks_like_a_pattern_is_deleted_alone(root: Root) -> None:
    for key in ("images/*", "images/theirs.jpg"):
        root.put(key, b"1")
    root.delete(["images/*"])
    assert root.list("images") == ["images/theirs.jpg"]


def test_the_address_of_an_object_opens_as_it_stands(root: Root) -> None:
    root.put("images/x.bin", b"data")
    assert read_bytes(root.uri_of("images/x.bin")) == b"data"


def test_storage_that_fails_is_not_taken_for_empty(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError

    fs, path = filesystem(root.uri)
    assert kind(fs, path) is None
    monkeypatch.setattr(type(fs), "info", fail)
    with pytest.raises(ConnectionResetError):
        kind(fs, path)
    with pytest.raises(OSError):  # noqa: PT011 (whichever it is)
        root.exists("run.json")
    with pytest.raises(UsageError, match="cannot read the manifest"):
        locate(root.uri)


def test_an_empty_root_is_empty_until_something_is_put(root: Root) -> None:
    assert root.empty()
    root.put("deep/er/x", b"")
    assert not root.empty()


def test_a_local_put_leaves_no_temporary_file(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    root.put("x/y", b"1")
    root.clear_temporaries()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "x" / "y"]


def test_stale_temporaries_of_killed_runs_are_cleared(tmp_path: Path) -> None:
    stale = tmp_path / ".tmp" / "run-dead" / "half"
    stale.parent.mkdir(parents=True)
    stale.touch()
    Root(str(tmp_path)).clear_temporaries()
    assert not (tmp_path / ".tmp").exists()


def test_the_bytes_of_a_local_put_are_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, synced = tmp_path / "x" / "y", list[tuple[int, bool]]()
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_size, target.exists()))

    monkeypatch.setattr(os, "fsync", watched)
    Root(str(tmp_path)).put("x/y", b"123")
    assert synced == [(3, False)]
    assert target.read_bytes() == b"123"


def test_a_put_that_fails_leaves_no_half_file(tmp_path: Path) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Root(str(tmp_path)).put_large("x", write)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_is_replaced_whole_under_those_who_read_it(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        with replacing(str(target)) as path:
            path.write_bytes(b"new")
            assert target.read_bytes() == b"old"
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_keys_are_taken_literally_and_never_decoded(root: Root) -> None:
    for key in ("%2e%2e/x", "%2F..%2Fx", "ab:c::d", "$HOME", "..%5cx", "a b", "...", "\u202egpj.exe"):
        assert checked_key(key) == key
        root.put(f"images/{key}", key.encode())
        assert root.read(f"images/{key}") == key.encode()
    assert len(root.list("images")) == 8


@pytest.mark.parametrize("folder", ["images", "images/deep", ".tmp"])
def test_a_link_that_leads_out_of_the_root_is_not_followed(tmp_path: Path, folder: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "theirs.jpg").write_text("theirs")
    (outside / "empty").mkdir()
    root = Root(str(tmp_path / "out"), "run")
    link = tmp_path / "out" / folder
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(PermissionError, match="leads out of the output root"):
        root.put("images/deep/x.jpg", b"ours")
    if folder != ".tmp":
        with pytest.raises(PermissionError, match="leads out of the output root"):
            root.delete([f"{folder}/theirs.jpg"])
        with pytest.raises(PermissionError, match="leads out of the output root"):
            root.drop_folders(folder)
    root.clear_temporaries()
    assert sorted(path.name for path in outside.iterdir()) == ["empty", "theirs.jpg"]


def test_links_within_the_root_and_to_the_root_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real" / "elsewhere").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "images").symlink_to(tmp_path / "real" / "elsewhere")
    root = Root(str(tmp_path / "out"))
    root.put("images/x.jpg", b"1")
    assert (tmp_path / "real" / "elsewhere" / "x.jpg").read_bytes() == b"1"


def test_a_link_in_an_objects_place_is_replaced_and_what_it_names_stays(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "x.jpg").symlink_to(tmp_path / "theirs")
    Root(str(tmp_path / "out")).put("images/x.jpg", b"ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "out" / "images" / "x.jpg").read_bytes() == b"ours"


def test_puts_survive_that_another_run_clears_the_temporaries(tmp_path: Path) -> None:
    root, other = Root(str(tmp_path), "a"), Root(str(tmp_path), "b")
    stop = threading.Event()

    def clear() -> None:
        while not stop.wait(0.05):  # as often as no run begins or ends
            other.clear_temporaries()

    thread = threading.Thread(target=clear)
    thread.start()
    try:
        for number in range(600):
            root.put(f"images/{number}", b"x" * 1000)
    finally:
        stop.set()
        thread.join()
    assert {path.stat().st_size for path in (tmp_path / "images").iterdir()} == {1000}
    assert len(list((tmp_path / "images").iterdir())) == 600
