"""Storage: whole objects or none, keys that stay under the root, errors that name their kind."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import IO, Any

import fsspec.config
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from stylize_batch import storage
from stylize_batch.errors import RowError, SystemicError, UsageError
from stylize_batch.manifest.naming import checked_key
from stylize_batch.manifest.source import locate
from stylize_batch.storage import (
    Root,
    absolute,
    filesystem,
    fingerprint,
    join,
    kind,
    list_files,
    parent,
    read_bytes,
    replacing,
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
        locate(root.uri, "out")


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


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")])
def test_what_never_ends_is_not_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.jpg")
    with pytest.raises(RowError, match="Unreadable"):
        read_bytes(str(tmp_path / "x.jpg"))


def test_two_colons_in_a_local_name_are_no_chain_of_file_systems(tmp_path: Path) -> None:
    for name in ("a::b.jpg", "simplecache::x", "zip::memory"):
        (tmp_path / name).write_text(name)
        assert read_bytes(str(tmp_path / name)) == name.encode()


def test_errors_of_reading_name_their_kind(tmp_path: Path) -> None:
    for uri, expected in (
        (str(tmp_path / "absent"), "NotFound"),
        (str(tmp_path), "NotFound"),
        (str(tmp_path / f"{'x' * 300}.jpg"), "Unreadable"),
        ("nosuch://bucket/key", "Unreadable"),
    ):
        with pytest.raises(RowError) as caught:
            read_bytes(uri)
        assert caught.value.kind == expected
        assert uri in str(caught.value)


def test_a_web_server_that_is_down_is_not_taken_for_a_file_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "HTTP_WAITS", ())
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}/style.jpg"
    with pytest.raises(RowError) as caught:
        fingerprint(uri)
    assert caught.value.transient


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((busy, None) for busy in (408, 425, 429, 503)),
        *((refused, "Unreadable") for refused in (400, 410, 451)),
        *((denied, "AccessDenied") for denied in (401, 403)),
    ],
)
def test_a_web_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    status: int, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [200, status]

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop())
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"data")

        def log_message(self, format: str, *_: object) -> None: ...

    monkeypatch.setattr(storage, "HTTP_WAITS", (0.0,))
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            uri = f"http://127.0.0.1:{server.server_port}/style.jpg"
            if kind is None:
                assert read_bytes(uri) == b"data"
            else:
                with pytest.raises(RowError, match=kind):
                    read_bytes(uri)
        finally:
            server.shutdown()


def test_an_answer_that_breaks_off_half_way_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(f"memory://{tmp_path.name}")
    root.put("x.jpg", b"whole")
    breaks = iter(range(3))
    real = MemoryFileSystem.cat_file

    def broken(*arguments: Any, **options: Any) -> Any:
        if next(breaks, None) is not None:
            raise http.client.IncompleteRead(b"who")
        return real(*arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", broken)
    assert root.read("x.jpg") == b"whole"


def test_settings_of_ones_own_for_s3_leave_the_others_as_a_long_run_needs_them(
    no_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = filesystem("s3://bucket/x")
    own = {"s3": {"addressing_style": "path"}, "read_timeout": 7}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True, "config_kwargs": own})
    fs, _ = filesystem("s3://bucket/x")
    assert fs.anon
    assert fs.config_kwargs == {**plain.config_kwargs, **own}
    assert "retries" in fs.config_kwargs


@pytest.mark.parametrize("ask", [read_bytes, fingerprint])
def test_a_package_that_is_not_installed_is_no_rows_fault(
    ask: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SystemicError, match="gcsfs"):
        ask("gs://bucket/x.jpg")


def test_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1")
    first = fingerprint(str(path))
    assert fingerprint(str(path)) == first
    path.write_bytes(b"22")
    assert fingerprint(str(path)) != first


def test_fingerprint_changes_with_a_file_that_is_changed_within_a_second_and_keeps_its_size(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x"
    found: set[str] = set()
    for milliseconds in (1, 2):
        path.write_bytes(b"1")
        os.utime(path, ns=(0, 1_700_000_000_000_000_000 + milliseconds * 1_000_000))
        found.add(fingerprint(str(path)))
    assert len(found) == 2


def test_folders_are_listed_recursively_and_sorted(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/c.PNG", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list_files(str(tmp_path), (".jpg", ".png"))
    assert found == [str(tmp_path / "a/c.PNG"), str(tmp_path / "b.jpg")]
    with pytest.raises(UsageError, match="there is no folder"):
        list_files(str(tmp_path / "absent"), (".jpg",))


@pytest.mark.parametrize(
    ("path", "base", "expected"),
    [
        ("x.jpg", "/data", "/data/x.jpg"),
        ("../x.jpg", "/data/in", "/data/x.jpg"),
        ("/abs/x.jpg", "/data", "/abs/x.jpg"),
        ("x.jpg", "s3://bucket/in", "s3://bucket/in/x.jpg"),
        ("s3://other/x.jpg", "/data", "s3://other/x.jpg"),
    ],
)
def test_relative_paths_start_from_the_manifests_folder(path: str, base: str, expected: str) -> None:
    assert absolute(path, base) == expected


@pytest.mark.parametrize(
    ("uri", "folder", "sibling"),
    [
        ("/data/x", "/data", "/data/y"),
        ("/x", "/", "/y"),
        ("s3://bucket/in/x", "s3://bucket/in", "s3://bucket/in/y"),
        ("s3://bucket/x", "s3://bucket", "s3://bucket/y"),
        ("file:///x", "file:///", "file:///y"),
        ("memory://in/x", "memory://in", "memory://in/y"),
        ("memory://x", "memory://", "memory:///y"),
    ],
)
def test_the_folder_of_a_file_is_one_of_the_same_storage(uri: str, folder: str, sibling: str) -> None:
    assert parent(uri) == folder
    assert join(folder, "y") == absolute("y", folder) == sibling
