"""Storage: files read whole or not at all, and errors that name their kind."""

from __future__ import annotations

import http.client
import os
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import fsspec.config
import pytest
from botocore.exceptions import ParamValidationError
from fsspec.implementations.memory import MemoryFileSystem

from stylize_batch import storage
from stylize_batch.errors import RowError, SystemicError, UsageError
from stylize_batch.listing import list_files
from stylize_batch.root import Root
from stylize_batch.storage import (
    absolute,
    failure,
    filesystem,
    fingerprint,
    full_names,
    join,
    parent,
    read_bytes,
)


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


@pytest.mark.parametrize("uri", ["s3://My Photos/a.jpg", "s3://bucket"])
def test_a_uri_that_no_object_of_s3_can_have_is_its_rows_own_fault(
    uri: str, no_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True, "endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(RowError, match=f"Unreadable: no object can lie at {uri}; write bucket and key"):
        read_bytes(uri)


def test_other_parameters_that_s3_does_not_take_are_no_rows_fault() -> None:
    """They come from the settings of storage, and would fail every row."""
    error = ParamValidationError(report='Unknown parameter in input: "Keys", must be one of: Bucket, Key')
    found = failure(error, "s3://bucket/a.jpg")
    assert isinstance(found, RowError)
    assert found.transient


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
        ("../x.jpg", "s3://bucket/in", "s3://bucket/x.jpg"),
        ("./a/../x.jpg", "s3://bucket/in/", "s3://bucket/in/x.jpg"),
        ("../../../other/x.jpg", "s3://bucket/in", "s3://bucket/other/x.jpg"),
        ("../x.jpg", "file:///data/in", "file:///data/x.jpg"),
        ("../../../x.jpg", "file:///data", "file:///x.jpg"),
        ("../a//b%20#1?x::y..jpg", "s3://bucket/in//deep", "s3://bucket/in//a//b%20#1?x::y..jpg"),
        ("a/..jpg", "s3://bucket/in", "s3://bucket/in/a/..jpg"),
        ("s3://other/x.jpg", "/data", "s3://other/x.jpg"),
    ],
)
def test_relative_paths_start_from_the_manifests_folder(path: str, base: str, expected: str) -> None:
    assert absolute(path, base) == expected


@pytest.mark.parametrize(("folder", "name"), [("s3a://b/d", "b/d/1.jpg"), ("file:///d", "/d/1.jpg")])
def test_names_are_listed_under_the_scheme_of_their_folder_and_so_lie_below_it(
    folder: str, name: str
) -> None:
    assert full_names(filesystem(folder)[0], folder, [name]) == [join(folder, "1.jpg")]


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
