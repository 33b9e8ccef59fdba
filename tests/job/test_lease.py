"""The lease: a second run on one output root steps back while the first lives, and never does harm."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylize_batch.errors import UsageError
from stylize_batch.job import lease as module
from stylize_batch.job.lease import holder, lease, refuse_others
from stylize_batch.process import born
from stylize_batch.root import LEASE, Root
from tests.conftest import Cli, MakeManifest, Row, command, read_results

HOLD = """
import sys, time
from stylize_batch.job.lease import lease
from stylize_batch.root import LEASE, Root
with lease(Root(sys.argv[1]), "theirs"):
    print("held", flush=True)
    time.sleep(600)
"""

TOGETHER = """
import sys, time
from stylize_batch.errors import UsageError
from stylize_batch.job import lease as module
from stylize_batch.root import LEASE, Root

def refuse(root, really=module.refuse_others):
    really(root)
    time.sleep(1)  # for others to look, too

module.refuse_others = refuse
root = Root(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with module.lease(root, sys.argv[2]):
        print("held", flush=True)
        time.sleep(600)
except UsageError as error:
    print(error, flush=True)
"""


def ends_of_runs_that_begin_together(uri: str, env: dict[str, str] | None = None) -> list[str]:
    """Have three processes look for a lease before any of them writes one; return what each says, sorted."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, uri, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env={**os.environ, **(env or {})},
        )
        for name in ("first", "second", "third")
    ]  # fmt: skip
    try:
        for run in runs:
            assert run.stdout
            assert run.stdout.readline() == "ready\n"
        for run in runs:
            assert run.stdin
            run.stdin.write("go\n")
        return sorted(run.stdout.readline() for run in runs if run.stdout)
    finally:
        for run in runs:
            run.kill()
            run.communicate()


Hold = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Start a process that holds the lease of `out` and renews it, until the test kills it or ends."""
    started: list[subprocess.Popen[str]] = []

    def call() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (
        ("RENEW_SECONDS", 0.1),
        ("WATCH_SECONDS", 1.0),
        ("POLL_SECONDS", 0.05),
        ("SETTLE_SECONDS", 0.4),
    ):
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(str(tmp_path / "out"))


def stored(root: Root) -> dict[str, Any]:
    return json.loads(root.read(LEASE))


def leave(root: Root, **changes: Any) -> None:
    """Leave a lease behind as a run does that is killed: this process's own, with some fields changed."""
    with lease(root, "theirs"):
        data = stored(root)
    root.put(LEASE, json.dumps({**data, **changes}).encode())


def test_the_lease_names_the_run_its_host_and_its_process_and_goes_at_the_end(root: Root) -> None:
    with lease(root, "ours"):
        found = stored(root)
    assert (found["run"], found["host"], found["pid"]) == ("ours", socket.gethostname(), os.getpid())
    assert not root.exists(LEASE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError("x")])
def test_the_lease_goes_however_the_run_ends(root: Root, error: BaseException | type[BaseException]) -> None:
    with pytest.raises((KeyboardInterrupt, UsageError)), lease(root, "ours"):
        raise error
    assert not root.exists(LEASE)


def test_a_second_run_is_told_who_works_there_and_changes_nothing(
    hold: Hold, cli: Cli, make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    process = hold()
    done = cli("run", make_manifest(pairs[:1]), "-o", "out", "--in-process")
    assert done.returncode == 2, done.stderr
    assert f"process {process.pid} on {socket.gethostname()}" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != ".tmp"] == [LEASE]


def test_of_runs_that_begin_at_the_same_moment_one_goes_on(tmp_path: Path) -> None:
    *refused, held = ends_of_runs_that_begin_together(str(tmp_path / "out"))
    assert held == "held\n"
    assert all(end.startswith("another run is working on") for end in refused)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.usefixtures("quick")
def test_of_runs_on_storage_without_locks_one_goes_on(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_looked = threading.Barrier(2)

    def look(root: Root) -> None:
        refuse_others(root)
        both_have_looked.wait()

    monkeypatch.setattr(module, "refuse_others", look)
    monkeypatch.setattr(module, "RENEW_SECONDS", 4 * module.SETTLE_SECONDS)
    roots = [Root(f"memory://{tmp_path.name}/out") for _ in range(2)]

    def put_late(key: str, data: bytes) -> None:
        time.sleep(2 * module.SETTLE_SECONDS)  # the other's lease has settled by then
        Root.put(roots[1], key, data)

    if late:
        monkeypatch.setattr(roots[1], "put", put_late)
    refused = threading.Event()

    def run(name: str, root: Root) -> str:
        try:
            with lease(root, name):
                assert refused.wait(10)
                return "held"
        except UsageError as error:
            refused.set()
            return str(error)[:26]

    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(run, ("first", "second"), roots))
    assert sorted(ends) == ["another run is working on ", "held"]
    assert not late or ends[0] == "held"


def test_a_run_killed_on_this_machine_is_replaced_at_once(hold: Hold, root: Root) -> None:
    process = hold()
    process.kill()  # and not waited for: a zombie is dead too
    while not Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].startswith(" Z"):
        time.sleep(0.01)
    started = time.monotonic()
    with lease(root, "ours"):
        assert stored(root)["run"] == "ours"
        assert time.monotonic() - started < module.WATCH_SECONDS / 2


@pytest.mark.parametrize("changes", [{"born": "1"}, {"pid": 2**22 + 1}], ids=["reused", "gone"])
def test_a_process_id_that_another_process_has_now_counts_as_dead(
    root: Root, changes: dict[str, Any]
) -> None:
    leave(root, **changes)
    started = time.monotonic()
    with lease(root, "ours"):
        assert time.monotonic() - started < module.WATCH_SECONDS / 2


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"place": "another boot"}, {"place": "another boot", "pid": 2**22 + 1}, {}],
)
@pytest.mark.usefixtures("quick")
def test_a_lease_that_nobody_renews_is_taken_over_after_the_watch(
    root: Root, changes: dict[str, Any]
) -> None:
    leave(root, **changes)
    started = time.monotonic()
    with lease(root, "ours"):
        assert stored(root)["run"] == "ours"
    assert time.monotonic() - started >= module.WATCH_SECONDS


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"run": "x"}', b"\xff"])
def test_a_damaged_lease_holds_nobody_up(root: Root, data: bytes) -> None:
    root.put(LEASE, data)
    with lease(root, "ours"):
        assert stored(root)["run"] == "ours"


@pytest.mark.usefixtures("quick")
def test_a_lease_that_vanishes_while_it_is_watched_is_free(root: Root) -> None:
    leave(root, host="elsewhere")
    timer = threading.Timer(0.3, root.delete, [[LEASE]])
    timer.start()
    with lease(root, "ours"):
        assert stored(root)["run"] == "ours"
    timer.join()


@pytest.mark.usefixtures("quick")
def test_a_run_that_is_killed_while_its_lease_is_watched_is_replaced_at_once(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 60)
    with subprocess.Popen(["sleep", "60"]) as process:
        leave(root, pid=process.pid, born=born(process.pid))
        timer = threading.Timer(0.2, process.kill)
        timer.start()
        started = time.monotonic()
        refuse_others(root)
        assert time.monotonic() - started < module.WATCH_SECONDS / 2


@pytest.mark.usefixtures("quick")
def test_a_suspended_run_of_this_machine_is_not_taken_for_dead(root: Root, tmp_path: Path) -> None:
    leave(root)  # this process lives, and renews nothing
    os.utime(tmp_path / "out" / LEASE, (0, 0))
    found = holder(root)
    assert found is not None
    assert found[1]
    leave(root, host="elsewhere", place="elsewhere")
    os.utime(tmp_path / "out" / LEASE, (0, 0))
    found = holder(root)
    assert found is not None
    assert not found[1]


@pytest.mark.usefixtures("quick")
def test_renewing_survives_storage_that_fails_for_a_while(root: Root) -> None:
    failed = threading.Semaphore(0)

    def put(key: str, data: bytes) -> None:
        failed.release()
        raise OSError("storage is down")

    with lease(root, "ours"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(root, "put", put)
            assert all(failed.acquire(timeout=30) for _ in range(3))
        before, deadline = stored(root), time.monotonic() + 30
        while stored(root) == before:
            assert time.monotonic() < deadline, "the lease is not renewed any more"
            time.sleep(0.05)
    assert not root.exists(LEASE)


@pytest.mark.usefixtures("quick")
def test_a_run_does_not_remove_the_lease_of_the_one_that_took_over(root: Root) -> None:
    with lease(root, "ours"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(root, "put", lambda key, data: None)  # renewals are held up
        time.sleep(0.3)
        leave_other = {**stored(root), "run": "theirs"}
        Root(root.uri).put(LEASE, json.dumps(leave_other).encode())
        patch.setattr(module, "RENEW_SECONDS", 60)
        time.sleep(0.3)
    assert stored(root)["run"] == "theirs"


def test_a_renewal_that_hangs_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    program = """
import sys, time
from stylize_batch.job import lease as module
from stylize_batch.root import LEASE, Root
module.RENEW_SECONDS = 0.1
root = Root(sys.argv[1])
with module.lease(root, "ours"):
    root.put = lambda key, data: time.sleep(3600)
    time.sleep(1)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], timeout=120, check=False)
    assert done.returncode == 0


FAST = (
    "--in-process",
    "--device",
    "cpu",
    "--style-size",
    "48",
    "--shard-pairs",
    "2",
    "--size",
    "64",
    "--json",
)


@pytest.mark.parametrize("head_start", [False, True], ids=["together", "one-after-the-other"])
def test_two_runs_at_once_without_a_lease_do_no_harm(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path, head_start: bool
) -> None:
    manifest, output = make_manifest(pairs), tmp_path / "out"
    finished = threading.Event()

    def delete_leases() -> None:
        while not finished.is_set():
            (output / LEASE).unlink(missing_ok=True)
            time.sleep(0.002)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [command(), "run", str(manifest), "-o", str(output), *FAST],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    thread = threading.Thread(target=delete_leases)
    thread.start()
    try:
        runs = [start()]
        while head_start and not (output / "run.json").exists():
            assert runs[0].poll() is None
            time.sleep(0.01)
        runs.append(start())
        ends = [run.communicate(timeout=280) for run in runs]
    finally:
        finished.set()
        thread.join()
    for run, (out, errors) in zip(runs, ends, strict=True):
        assert run.returncode == 0, errors
        summary = json.loads(out)
        assert summary["ok"] == len(pairs)
        assert summary["skipped"] < len(pairs), "they were not at work at the same time"
    results = read_results(output)
    assert len({row["pair_id"] for row in results}) == len(results) == len(pairs)
    for row in results:
        with Image.open(row["output"]) as image:
            image.load()
    assert len(list((output / "images").iterdir())) == len(pairs)


def test_ctrl_c_removes_the_lease(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    rows = [{"content": content, "style": [style]} for content in contents for style in styles]
    run = subprocess.Popen(
        [command(), "run", str(make_manifest(rows)), "-o", str(tmp_path / "out"), *FAST, "--size", "256"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not list((tmp_path / "out").glob("results/*.parquet")):
        assert run.poll() is None
        time.sleep(0.02)
    assert (tmp_path / "out" / LEASE).exists()
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert not (tmp_path / "out" / LEASE).exists()


def test_a_machine_that_has_another_name_now_still_knows_its_processes(root: Root) -> None:
    leave(root, host="renamed", pid=2**22 + 1)
    started = time.monotonic()
    with lease(root, "ours"):
        assert stored(root)["run"] == "ours"
        assert time.monotonic() - started < module.WATCH_SECONDS / 2


@pytest.mark.usefixtures("quick")
def test_a_lease_that_nobody_renews_is_watched_once(root: Root) -> None:
    leave(root, host="elsewhere", place="elsewhere")
    refuse_others(root)
    assert not root.exists(LEASE)


def test_overwriting_leaves_the_manifest_of_a_run_at_work_alone(
    hold: Hold, cli: Cli, pictures: Path, tmp_path: Path
) -> None:
    arguments = ("run", "--content", pictures / "content", "--style", pictures / "style", "-o", "out")
    size = ("--size", "48", "--style-size", "48", "--in-process", "--no-metrics")
    assert cli(*arguments, *size, "--limit", "1").returncode == 0
    before = (tmp_path / "out.parquet").read_bytes()
    hold()
    done = cli(*arguments, *size, "--overwrite", "--job", '{"build": {"seed": 5}}')
    assert done.returncode == 2
    assert "another run is working" in done.stderr
    assert (tmp_path / "out.parquet").read_bytes() == before
