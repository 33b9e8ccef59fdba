"""Failures as storage really makes them: what is one row's fault fails that row, all else fails none."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import stylize_batch
from stylize_batch import s3
from stylize_batch.errors import RowError, SystemicError, UsageError
from stylize_batch.manifest.reach import VARIABLE
from stylize_batch.root import Root
from stylize_batch.s3 import PatientS3
from stylize_batch.storage import fingerprint, read_bytes
from tests.conftest import Cli, MakeManifest, Row, command, read_results
from tests.faults.proxy import Proxy as TroubledProxy
from tests.faults.proxy import proxy as troubled_proxy
from tests.integration.proxy import Answer, Proxy, proxy, s3_error
from tests.integration.s3 import BUCKET, GUEST, PRIVATE, S3Server

FAST = ("--in-process", "--device", "cpu", "--style-size", "48")


@pytest.fixture(autouse=True, scope="module")
def there(server: S3Server) -> None:
    for bucket in (BUCKET, PRIVATE):
        server.client().pipe_file(f"{bucket}/there.bin", b"data")


@pytest.fixture
def counted(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The server behind a proxy, as seen by this process as the guest, who may read one of two buckets."""
    with proxy(server.endpoint) as running:
        for key, value in {**server.env(GUEST), "AWS_ENDPOINT_URL": running.endpoint}.items():
            monkeypatch.setenv(key, value)
        yield running


def failure(uri: str) -> RowError:
    with pytest.raises(RowError) as caught:
        read_bytes(uri)
    return caught.value


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{BUCKET}/absent.bin", "NotFound"),
        ("no-such-bucket/x", "AccessDenied"),
        (f"{PRIVATE}/there.bin", "AccessDenied"),
    ],
)
def test_what_is_missing_or_denied_is_asked_for_once(counted: Proxy, key: str, kind: str) -> None:
    read_bytes(f"s3://{BUCKET}/there.bin")
    counted.requests.clear()
    started = time.monotonic()
    error = failure(f"s3://{key}")
    assert (error.kind, error.transient) == (kind, False)
    assert counted.requests == [("GET", f"/{key}")]
    with pytest.raises(RowError) as caught:
        fingerprint(f"s3://{key}")
    assert caught.value.kind == kind
    assert len(counted.requests) <= 5
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
        (429, "TooManyRequests"),
        (400, "RequestTimeout"),
    ],
)
def test_a_busy_server_is_asked_again_until_it_answers(counted: Proxy, status: int, code: str) -> None:
    counted.fault = lambda method, path, count: s3_error(status, code) if count <= 3 else None
    assert read_bytes(f"s3://{BUCKET}/there.bin") == b"data"
    assert counted.count("there.bin") == 4


@pytest.fixture
def troubled(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[TroubledProxy]:
    """The server behind a proxy that spoils requests, as seen by this process with all rights."""
    with troubled_proxy(server.port, seed=1) as running:
        for key, value in server.env(port=running.port).items():
            monkeypatch.setenv(key, value)
        yield running


def test_storage_that_refuses_most_requests_fails_none_of_many(
    troubled: TroubledProxy, tmp_path: Path
) -> None:
    root = Root(f"s3://{BUCKET}/{tmp_path.name}")

    def there_and_back(number: int) -> bytes:
        root.put(f"{number}.bin", b"%d" % number)
        return read_bytes(root.uri_of(f"{number}.bin"))

    with troubled.spoiling(["slow down"], 0.7), ThreadPoolExecutor(24) as threads:
        assert list(threads.map(there_and_back, range(60))) == [b"%d" % number for number in range(60)]
        assert len(root.list("")) == 60
    assert troubled.spoiled > 100


def test_storage_that_has_answered_nobody_for_long_is_given_up_by_all_at_once(
    troubled: TroubledProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientS3, "patience", 4.0)
    uri = f"s3://{BUCKET}/there.bin"
    assert read_bytes(uri) == b"data"
    started = time.monotonic()
    with troubled.spoiling(["slow down"], 1.0), ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: failure(uri).transient, range(40)))
    assert 2.0 < time.monotonic() - started < 20.0
    assert read_bytes(uri) == b"data"
    with ThreadPoolExecutor(1) as threads:
        with troubled.spoiling(["slow down"], 1.0):
            reading = threads.submit(read_bytes, uri)
            time.sleep(2.0)
        assert reading.result() == b"data"


def test_an_address_that_nothing_answers_at_is_refused_before_patience_ends(
    server: S3Server, make_manifest: MakeManifest, pairs: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "FIRST_PATIENCE", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    for key, value in server.env(port=port).items():
        monkeypatch.setenv(key, value)
    started = time.monotonic()
    with pytest.raises(UsageError, match="cannot write to the output root"):
        stylize_batch.run(make_manifest(pairs), output=f"s3://{BUCKET}/out", in_process=True)
    assert time.monotonic() - started < s3.PATIENCE / 2


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refused_credentials_are_no_rows_fault(counted: Proxy, code: str) -> None:
    status = 400 if code == "ExpiredToken" else 403
    counted.fault = lambda method, path, count: s3_error(status, code)
    for read in (read_bytes, fingerprint):
        with pytest.raises(SystemicError, match="the credentials for s3://"):
            read(f"s3://{BUCKET}/there.bin")
    assert len(counted.requests) <= 5


def test_missing_credentials_are_no_rows_fault(counted: Proxy, no_credentials: None) -> None:
    with pytest.raises(SystemicError, match="refused or missing"):
        read_bytes(f"s3://{BUCKET}/there.bin")
    assert counted.requests == []


@pytest.fixture
def remote(server: S3Server, contents: list[str], styles: list[str], tmp_path: Path) -> list[Row]:
    """Pairs of three photographs on S3, and of one here, with one style on S3."""
    fs = server.client()
    base = f"{BUCKET}/{tmp_path.name}"
    fs.put_file(styles[0], f"{base}/style.jpg")
    rows: list[Row] = [{"content": contents[3], "style": [f"s3://{base}/style.jpg"]}]
    for index in range(3):
        fs.put_file(contents[index], f"{base}/content{index}.jpg")
        rows.append({"content": f"s3://{base}/content{index}.jpg", "style": [f"s3://{base}/style.jpg"]})
    return rows


@pytest.mark.parametrize("part", ["content2.jpg", "style.jpg"])
def test_credentials_that_expire_half_way_fail_no_row_and_the_run_goes_on_with_new_ones(
    server: S3Server, remote: list[Row], make_manifest: MakeManifest, cli: Cli, tmp_path: Path, part: str
) -> None:
    arguments = ("run", make_manifest(remote), "-o", "out", *FAST, "--shard-pairs", 100)
    with proxy(server.endpoint) as between:
        env = {**server.env(), "AWS_ENDPOINT_URL": between.endpoint}

        def expired(method: str, path: str, count: int) -> Answer | None:
            return s3_error(400, "ExpiredToken") if path.endswith(part) else None

        between.fault = expired
        stopped = cli(*arguments, env=env)
        assert stopped.returncode == 1, stopped.stderr
        assert "ExpiredToken" in stopped.stderr
        assert "repeat the command to go on" in stopped.stderr
        assert not list((tmp_path / "out").glob("results/*"))
        between.fault = lambda method, path, count: None
        done = cli(*arguments, env=env)
        assert done.returncode == 0, done.stderr
    assert [row["status"] for row in read_results(tmp_path / "out")] == ["ok"] * 4


def test_rows_fail_by_kind_and_no_credential_is_written_anywhere(
    server: S3Server, remote: list[Row], make_manifest: MakeManifest, cli: Cli, tmp_path: Path
) -> None:
    style = remote[0]["style"]
    rows = [
        *remote,
        {"content": f"s3://{BUCKET}/absent.jpg", "style": style},
        {"content": f"s3://{PRIVATE}/there.bin", "style": style},
        {"content": f"s3://{BUCKET}/there.bin", "style": style},
        {"content": remote[0]["content"], "style": [f"s3://{PRIVATE}/there.bin"]},
    ]
    done = cli("run", make_manifest(rows), "-o", "out", *FAST, "--json", env=server.env(GUEST))
    assert done.returncode == 3, done.stderr
    for line in ("failed: 2 × AccessDenied (", "failed: 1 × NotFound (", "failed: 1 × Undecodable ("):
        assert line in done.stderr
    assert (json.loads(done.stdout)["ok"], json.loads(done.stdout)["failed"]) == (4, 4)
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    written += [
        repr(pq.read_table(path, partitioning="hive").to_pylist()).encode()
        for path in (tmp_path / "out").rglob("*.parquet")
    ]
    for secret in GUEST:
        assert secret not in done.stdout + done.stderr
        assert not any(secret.encode() in data for data in written)


def test_http_is_asked_again_when_busy_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylize_batch.storage.HTTP_WAITS", (0.01,) * 4)
    with proxy() as running:

        def answer(method: str, path: str, count: int) -> Answer:
            status = path.split("/")[1]
            return (
                (200, b"data")
                if status == "200" or (status == "busy" and count > 2)
                else (
                    503 if status == "busy" else int(status),
                    b"",
                )
            )

        running.fault = answer
        assert read_bytes(f"{running.endpoint}/busy/x") == b"data"
        assert running.count("/busy/") == 3
        for status, kind, asked in (
            (404, "NotFound", 1),
            (403, "AccessDenied", 1),
            (410, "Unreadable", 1),
            (500, "StorageError", 5),
        ):
            assert failure(f"{running.endpoint}/{status}/x").kind == kind
            assert running.count(f"/{status}/") == asked


def test_http_pictures_are_used_when_the_environment_allows_them(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], cli: Cli, tmp_path: Path
) -> None:
    with proxy() as running:
        running.fault = lambda method, path, count: (200, Path(contents[0]).read_bytes())
        row = {"content": f"{running.endpoint}/photo.jpg", "style": styles[:1]}
        arguments = ("run", make_manifest([row]), "-o", "out", *FAST)
        refused = cli(*arguments)
        assert refused.returncode == 2
        assert VARIABLE in refused.stderr
        assert running.requests == []
        done = cli(*arguments, env={VARIABLE: "file,http"})
        assert done.returncode == 0, done.stderr


FULL_DISK = """
mount -t tmpfs -o size=$SIZE tmpfs disk || exit 77
"$@"; echo $? > first
cp -r disk/out stopped
mount -o remount,size=100m disk || exit 77
"$@"; echo $? > second
cp -r disk/out out
"""


@pytest.mark.parametrize("engine", [["--in-process"], ["--actors", "1"]], ids=["in-process", "ray"])
def test_a_full_disk_fails_no_row_and_the_run_goes_on_once_there_is_room(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, engine: list[str]
) -> None:
    probe = ["unshare", "--map-root-user", "--mount", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, check=False).returncode:
        pytest.skip("this machine lets no user mount a small disk of their own")
    (tmp_path / "disk").mkdir()
    job = [
        command(), "run", str(make_manifest(pairs)), "-o", "disk/out", "--device", "cpu", "--style-size", "48",
        "--size", "96", "--format", "png", "--shard-pairs", "2", *engine,
    ]  # fmt: skip
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh", *job],
        cwd=tmp_path, env={**os.environ, "SIZE": "300k"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("this machine lets no user mount a small disk of their own")
    assert (tmp_path / "first").read_text().strip() == "1", done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    kept = pq.read_table(tmp_path / "stopped" / "results").to_pylist()
    assert 0 < len(kept) < len(pairs), "the disk is too small or too large for this test to say anything"
    assert {row["status"] for row in kept} == {"ok"}
    assert (tmp_path / "second").read_text().strip() == "0", done.stderr
    results = read_results(tmp_path / "out")
    assert len({row["pair_id"] for row in results}) == len(results) == len(pairs)
    assert {row["status"] for row in results} == {"ok"}
