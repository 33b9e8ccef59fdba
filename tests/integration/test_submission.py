"""Runs as jobs of a real cluster: a head with dashboard and token on loopback, everything on a real S3 server.

Only the head knows the server's credentials: what a job needs of them comes from its nodes.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stylize_batch.cli import app
from tests.conftest import MakeManifest, Row, command
from tests.faults.processes import marked_environment, processes
from tests.integration.s3 import BUCKET, S3Server, free_ports

TOKEN = "a" * 32
Submit = Callable[..., "subprocess.CompletedProcess[str]"]


class Head(NamedTuple):
    """A running head: its dashboard, its own address, and the environment of all its processes."""

    dashboard: str
    address: str
    env: dict[str, str]


@pytest.fixture(scope="module")
def head(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` as docs/clusters.md has it, with ports and a folder of its own."""
    folder = tmp_path_factory.mktemp("head")
    temporary = f"/tmp/ray-{os.getpid()}"  # the paths of Ray's sockets must be short
    gcs, dashboard, client, agent, agent_grpc, runtime_env, metrics = free_ports(7)
    env = {
        **marked_environment(folder),
        **server.env(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        subprocess.run(
            [
                Path(sys.executable).parent / "ray", "start", "--head", "--num-cpus=2", f"--temp-dir={temporary}",
                "--object-store-memory=100000000", f"--port={gcs}", f"--ray-client-server-port={client}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}",
                f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
                f"--runtime-env-agent-port={runtime_env}",
            ],
            env=env, check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", env)
    finally:
        while left := processes(env):
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture
def laptop(tmp_path: Path) -> dict[str, str]:
    """The environment of who submits: the token, and nothing of storage."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))},
        "HOME": str(tmp_path),
        "RAY_AUTH_TOKEN": TOKEN,
    }


@pytest.fixture
def submit(head: Head, laptop: dict[str, str], tmp_path: Path) -> Submit:
    """Run `stylize-batch submit` on the laptop."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command(), "submit", *map(str, arguments), "--address", head.dashboard],
            env=laptop, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return call


@pytest.fixture
def base(server: S3Server, contents: list[str], styles: list[str], tmp_path: Path) -> str:
    """A prefix on S3 that holds the small pictures."""
    fs, base = server.client(), f"{BUCKET}/{tmp_path.name}"
    for path in (*contents, *styles):
        fs.put_file(path, f"{base}/in/{Path(path).parent.name}/{Path(path).name}")
    return base


@pytest.fixture
def upload(server: S3Server, base: str, make_manifest: MakeManifest) -> Callable[[list[Row]], str]:
    """Put a manifest beside them."""

    def put(rows: list[Row]) -> str:
        server.client().pipe_file(f"{base}/in/pairs.parquet", make_manifest(rows).read_bytes())
        return f"s3://{base}/in/pairs.parquet"

    return put


def keys(paths: list[str]) -> list[str]:
    return [f"{Path(path).parent.name}/{Path(path).name}" for path in paths]


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_shows_what_the_run_shows_and_ends_with_its_status(
    server: S3Server,
    upload: Callable[[list[Row]], str],
    submit: Submit,
    base: str,
    contents: list[str],
    styles: list[str],
) -> None:
    rows: list[Row] = [{"content": content, "style": [keys(styles)[0]]} for content in keys(contents)[:3]]
    manifest = upload([*rows, {"content": "content/missing.jpg", "style": [keys(styles)[0]]}])
    done = submit(manifest, "-o", f"s3://{base}/out", "--style-size", 48, "--json", "--job-id", "small")
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["ok"], summary["failed"]) == (3, 1)
    first, *lines = done.stderr.splitlines()
    assert first.startswith("job small submitted to http://127.0.0.1:")
    assert [line.split("ray job ")[1].split()[0] for line in lines[:3]] == ["status", "logs", "stop"]
    assert lines[3].startswith("Encoding styles: 1")
    assert any(line.startswith("Stylizing: 4/4") for line in lines)
    assert "failed: 1 × NotFound" in done.stderr
    assert len(server.client().find(f"{base}/out/images")) == 3


def test_a_run_that_is_left_stopped_or_killed_goes_on_with_the_same_command(
    server: S3Server,
    head: Head,
    laptop: dict[str, str],
    upload: Callable[[list[Row]], str],
    submit: Submit,
    base: str,
    contents: list[str],
    styles: list[str],
) -> None:
    alphas = [0.1 * step for step in range(1, 11)]
    manifest = upload(
        [
            {"content": content, "style": [style], "alpha": alpha}
            for content in keys(contents)
            for style in keys(styles)
            for alpha in alphas
        ]
    )
    fs, output = server.client(), f"{base}/out"
    same = (
        manifest,
        "-o",
        f"s3://{output}",
        "--style-size",
        48,
        "--shard-pairs",
        6,
        "--no-metrics",
        "--format",
        "png",
    )

    def parts() -> int:
        return len(fs.find(f"{output}/results"))

    # Ctrl-C on a terminal asks, and the answer stops the job as Ctrl-C stops a run.
    master, terminal = pty.openpty()
    following = subprocess.Popen(
        [command(), "submit", *map(str, same), "--address", head.dashboard],
        env=laptop, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for(lambda: parts() or following.poll() is not None)
    changed = submit(*same, "--size", 32)
    assert changed.returncode == 2, changed.stderr
    assert "is at work with other settings" in changed.stderr
    os.write(master, b"y\n")
    following.send_signal(signal.SIGINT)
    _, errors = following.communicate(timeout=60)
    assert following.returncode == 130, errors
    assert "nothing finished is lost" in errors
    assert not fs.exists(f"{output}/lease.json"), "the run was ended by force"

    # The same command starts a second job; one that is left goes on, and the same command finds it.
    stopped = parts()
    second = submit(*same, "--no-wait")
    assert second.returncode == 0, second.stderr
    name = second.stdout.strip()
    assert re.fullmatch(r"out-[0-9a-f]{8}-2", name)
    wait_for(lambda: parts() > stopped)
    assert f"job {name} is at work already" in submit(*same, "--no-wait").stderr
    states = [look(f"s3://{output}", server.env())]

    # Its driver is killed.
    (driver, *_) = [
        pid for pid, line in processes(head.env).items() if line.startswith("python -m stylize_batch run")
    ]
    os.kill(driver, signal.SIGKILL)
    killed = submit(*same, "--no-wait")
    wait_for(lambda: look(f"s3://{output}", server.env())["state"] == "stopped" or "-3" in killed.stdout)
    states.append(look(f"s3://{output}", server.env()))
    last = submit(*same)
    assert last.returncode == 0, last.stderr
    assert "300 of 300 pairs stylized" in last.stderr
    states.append(look(f"s3://{output}", server.env()))
    results = pq.read_table(f"{output}/results", filesystem=fs)
    assert len(results) == len(set(results["pair_id"].to_pylist())) == 300
    assert isinstance(results, pa.Table)
    assert states[0]["state"] == "running"
    assert states[-1]["state"] == "finished"


def look(output: str, env: dict[str, str]) -> Row:
    done = subprocess.run(
        [command(), "status", output, "--json"],
        env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("token", "said"),
    [("", "wants a token and there is none"), ("wrong" * 5, "does not take this token")],
    ids=["no token", "wrong token"],
)
def test_a_cluster_that_refuses_the_token_is_named_with_what_to_set(
    head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, said: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    done = refused("s3://b/pairs.parquet", "-o", "s3://b/out", "--address", head.dashboard)
    assert said in done
    assert "RAY_AUTH_TOKEN or ~/.ray/auth_token" in done


def test_an_address_without_a_dashboard_is_refused(head: Head, server: S3Server) -> None:
    (port,) = free_ports(1)
    for address, said in (
        (f"http://127.0.0.1:{port}", "cannot be reached"),
        (server.endpoint, "is no dashboard of Ray"),
        ("ray://127.0.0.1:10001", "jobs are submitted to the dashboard of the head"),
        ("http://user:secret@127.0.0.1", "credentials"),
    ):
        assert said in refused("s3://b/pairs.parquet", "-o", "s3://b/out", "--address", address)


def refused(*arguments: str) -> str:
    """Submit what is refused before anything is sent; return the one line that says why."""
    done = CliRunner().invoke(app, ["submit", *arguments])
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
    return done.stderr


RUN_AS = """
import ray
ray.__version__ = {version!r}
from stylize_batch.cli import main
main()
"""


@pytest.mark.parametrize(
    ("version", "token", "said"),
    [
        ("2.55.0", TOKEN, r"it runs Ray \S+ on Python \S+, this is Ray 2.55.0"),
        (None, "", "wants a token; put the cluster's token"),
        (None, "wrong" * 5, "the token is missing or wrong; put the cluster's token"),
    ],
    ids=["another Ray", "no token", "wrong token"],
)
def test_a_run_says_in_one_line_why_it_cannot_join_a_cluster(
    head: Head,
    make_manifest: MakeManifest,
    pairs: list[Row],
    tmp_path: Path,
    version: str | None,
    token: str,
    said: str,
) -> None:
    import ray

    program = RUN_AS.format(version=version or ray.__version__)
    env = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_NUM_REDIS_GET_RETRIES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, "run", make_manifest(pairs), "-o", "out", "--address", head.address],
        env={**env, "RAY_AUTH_TOKEN": token}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert re.search(said, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
