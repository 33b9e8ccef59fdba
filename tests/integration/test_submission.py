"""Runs on a real cluster and as its jobs: the head that docs/clusters.md starts, and a real S3 server.

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
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import ray
from typer.testing import CliRunner

from stylize_batch.cli import app
from tests.conftest import MakeManifest, Row, command
from tests.faults.processes import marked_environment, processes
from tests.integration.s3 import BUCKET, S3Server, free_ports

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parent.parent.parent


class Head(NamedTuple):
    """A running head: its dashboard, its own address, and the environment of all its processes."""

    dashboard: str
    address: str
    env: dict[str, str]

    def adapted(self, commands: str) -> str:
        """Return commands of the documentation with this head's ports."""
        return commands.replace("http://127.0.0.1:8265", self.dashboard).replace(
            "127.0.0.1:6379", self.address
        )


def documented() -> list[str]:
    """Return the commands of the rehearsal in docs/clusters.md, block by block."""
    text = (REPOSITORY / "docs" / "clusters.md").read_text()
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def head(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """The head that docs/clusters.md starts, with ports and a folder of its own; it alone knows the S3 server."""
    folder = tmp_path_factory.mktemp("head")
    temporary = f"/tmp/ray-{os.getpid()}"  # the paths of Ray's sockets must be short
    gcs, dashboard, client, agent, agent_grpc, runtime_env, metrics = free_ports(7)
    start = documented()[0]
    assert "--port 6379" in start
    assert "--dashboard-port 8265" in start
    start = start.replace("--port 6379", f"--port {gcs}").replace(
        "--dashboard-port 8265", f"--dashboard-port {dashboard}"
    )
    start = (
        f"{start.strip()} --num-cpus 2 --temp-dir {temporary} --object-store-memory 100000000 "
        f"--ray-client-server-port {client} --dashboard-agent-listen-port {agent} --metrics-export-port {metrics} "
        f"--dashboard-agent-grpc-port {agent_grpc} --runtime-env-agent-port {runtime_env}"
    )
    env = {
        **{name: value for name, value in marked_environment(folder).items() if not name.startswith("RAY_")},
        **server.env(),
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    found = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", env)
    log = folder / "ray.log"
    try:
        with log.open("w") as file:
            process = subprocess.Popen(["bash", "-euc", start], env=env, cwd=folder, stdout=file, stderr=file)
        wait_for(lambda: process.poll() is not None or "Ray runtime started" in log.read_text())
        assert process.poll() is None, log.read_text()
        yield found
    finally:
        while left := processes(env):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture
def laptop(head: Head, tmp_path: Path) -> dict[str, str]:
    """The environment of who submits: the token, and nothing of storage."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))},
        "HOME": str(tmp_path),
        "RAY_AUTH_TOKEN": token_of(head),
    }


@pytest.fixture
def submit(head: Head, laptop: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `stylize-batch submit` on the laptop, before a terminal if there is one."""

    def call(*arguments: object, terminal: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [command(), "submit", *map(str, arguments), "--address", head.dashboard],
            env=laptop, cwd=tmp_path, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
            # Tests that run in the background of a shell inherit an ignored Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    return call


def token_of(head: Head) -> str:
    return (Path(head.env["HOME"]) / ".ray" / "auth_token").read_text().strip()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_docs_clusters_can_be_followed_word_for_word(head: Head, tmp_path: Path) -> None:
    (tmp_path / "manifests").symlink_to(REPOSITORY / "manifests")
    said: list[str] = []
    for block in documented()[1:]:
        commands = head.adapted(block).replace(
            "stylize-batch submit", f"stylize-batch submit --address {head.dashboard}"
        )
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            env=head.env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (block, done.stderr)
        said.append(done.stderr)
    _, submitted, watched, killed, continued = said
    name = re.compile(r"job (job-[0-9a-f]{8}(?:-\d+)?) submitted")
    first, second = name.search(submitted), name.search(continued)
    assert first
    assert second
    assert second[1] == f"{first[1]}-2"
    assert re.search(r"^running, by process \d+ on ", watched)
    assert re.search(r"\nstopped\nprocess \d+ on \S+ died; repeat the command", killed)
    assert "30 of 30 pairs stylized" in continued
    assert "rows left as they were" in continued
    assert "\nfinished\n30 of 30 pairs, 6 of 6 shards (100%)" in continued
    assert len(pq.read_table(tmp_path / "rehearsal/job/results")) == 30


def test_a_job_is_left_alone_stopped_and_continued_and_ends_with_the_status_of_the_run(
    server: S3Server,
    submit: Callable[..., subprocess.Popen[str]],
    laptop: dict[str, str],
    pictures: Path,
    tmp_path: Path,
) -> None:
    fs, base = server.client(), f"{BUCKET}/{tmp_path.name}"
    for path in pictures.rglob("*.jpg"):
        fs.put_file(str(path), f"{base}/{path.parent.name}/{path.name}")
    fs.pipe_file(f"{base}/content/broken.jpg", b"no picture")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("build: {all_pairs: true}\nsize: 160\nstyle_size: 48\nshard_pairs: 1\n")
    # The cluster builds the manifest, by a recipe that only the laptop has.
    where = ("--content", f"s3://{base}/content", "--style", f"s3://{base}/style", "-o", f"s3://{base}/out")
    same = (*where, "--job", recipe, "--json", "--job-id", "small")

    master, terminal = pty.openpty()
    job = submit(*same, terminal=terminal)
    assert next(lines_of(job)).startswith("job small submitted to http://127.0.0.1:")
    other, watching = submit(*same, "--size", 32), submit(*same)
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 2
    assert "job small is at work with other settings" in errors

    # Ctrl-C without a terminal leaves the job alone, and the same command has found it at work.
    lines = lines_of(watching)
    assert next(lines).startswith("job small is at work already on")
    assert [next(lines).split("ray job ")[1].split()[0] for _ in range(3)] == ["status", "logs", "stop"]
    assert next(lines)  # what the run says: following has begun
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "the job goes on" in errors

    # On a terminal it asks, and the answer ends the run as Ctrl-C would where it is at work.
    wait_for(lambda: fs.find(f"{base}/out/results") or job.poll() is not None, seconds=300)
    os.write(master, b"y\n")
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=90)
    assert job.returncode == 130, errors
    assert "nothing finished is lost" in errors
    assert not fs.exists(f"{base}/out/lease.json"), "the run was ended by force"
    finished = len(fs.find(f"{base}/out/results"))
    assert 0 < finished < 35

    # So does who stops it with the command that submit has printed, wherever they are.
    stopped = submit(*same)
    lines = lines_of(stopped)
    assert next(lines).startswith("job small-2 submitted to")
    _, _, stop, _ = (next(lines) for _ in range(4))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-c", stop], env={**laptop, "PATH": path}, capture_output=True, timeout=120, check=True
    )
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert "the job was stopped; nothing finished is lost" in errors

    last = submit(*same)
    printed, errors = last.communicate(timeout=300)
    assert last.returncode == 3, errors
    assert errors.startswith("job small-3 submitted to")
    assert "failed: 5 × Undecodable" in errors
    summary = json.loads(printed)
    assert (summary["pairs"], summary["ok"], summary["failed"]) == (35, 30, 5)
    assert summary["skipped"] >= finished
    assert len(fs.find(f"{base}/out/images")) == 30
    assert fs.exists(f"{base}/out.parquet")


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lines of a process's standard error, as they come."""
    assert process.stderr
    return iter(process.stderr)


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
        ("http://user:secret@127.0.0.1", "carries a credential"),
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
        ("2.55.0", None, r"it runs Ray \S+ on Python \S+, this is Ray 2.55.0"),
        (None, "", "wants a token; put the cluster's token"),
        (None, "wrong" * 5, "the token is missing or wrong; set RAY_AUTH_MODE=token"),
    ],
    ids=["another Ray", "no token", "wrong token"],
)
def test_a_run_says_in_one_line_why_it_cannot_join_a_cluster(
    head: Head,
    make_manifest: MakeManifest,
    pairs: list[Row],
    tmp_path: Path,
    version: str | None,
    token: str | None,
    said: str,
) -> None:
    program = RUN_AS.format(version=version or ray.__version__)
    env = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_NUM_REDIS_GET_RETRIES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, "run", make_manifest(pairs), "-o", "out", "--address", head.address],
        env={**env, "RAY_AUTH_TOKEN": token_of(head) if token is None else token},
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    *progress, error = done.stderr.splitlines()
    assert re.search(said, error)
    assert progress == ["Checking the manifest", "Starting workers"]
