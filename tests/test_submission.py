"""What a submission refuses before anything is sent, and how it reads a job's log."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from stylize_batch import submission
from stylize_batch.errors import JobFailedError, UsageError
from stylize_batch.job.spec import make_spec
from stylize_batch.submission import Cluster, Job, command, refuse_local, summary_of


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"manifest": "pairs.parquet", "output": "s3://b/o"}, "manifest pairs.parquet: a plain path is one of this machine"),
        ({"manifest": "s3://b/m", "output": "/data/o"}, "output /data/o: a plain path is one of this machine"),
        ({"manifest": "s3://b/m"}, "--output: name one that the cluster reaches"),
        ({"manifest": "s3://b/m", "output": "s3://b/o", "model": "mine.safetensors"}, "model mine.safetensors: a plain path"),
        ({"content": "photos", "style": "s3://b/s", "output": "s3://b/o"}, "content photos: a plain path"),
        ({"content": "s3://b/c", "style": "/s", "output": "s3://b/o"}, "style /s: a plain path"),
        (
            {"content": "s3://b/c", "style": "s3://b/s", "output": "s3://b/o", "build": {"style_map": "map.csv"}},
            "build.style_map map.csv: a plain path",
        ),
        ({"manifest": "s3://b/m", "output": "s3://b/o", "in_process": True}, "in-process runs on this machine"),
    ],
    ids=["manifest", "output", "no output", "model", "content", "style", "style map", "in-process"],
)  # fmt: skip
def test_what_only_this_machine_has_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        refuse_local(make_spec(settings))
    assert said in str(refused.value)


def test_what_the_cluster_reaches_is_not_refused() -> None:
    refuse_local(
        make_spec({"manifest": "file:///mnt/m", "output": "s3://b/o", "model": "s3://b/model.safetensors"})
    )


def test_a_setting_arrives_on_the_cluster_as_it_was_given() -> None:
    given = {"content_root": "s3://b/größe 😀/", "style_map": "s3://b/it's.csv"}
    sent = make_spec(
        {"content": "s3://b/c", "style": "s3://b/s", "output": "s3://b/o", "styles": "", "build": given}
    )
    words = shlex.split(command(sent, installed=True))
    assert "" not in words  # which the command line would refuse
    assert (
        make_spec({"content": "s3://b/c", "style": "s3://b/s"}, words[words.index("--job") + 1]).build
        == sent.build
    )


@contextmanager
def dashboard(answers: dict[str, object]) -> Generator[str]:
    """What the dashboard of a head answers to what it is asked; a gateway in front of it says 502 to all else."""

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in answers else 502)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path)).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def versions(ray: str, python: str) -> dict[str, object]:
    return {"/api/v0/cluster_metadata": {"data": {"rayVersion": ray, "pythonVersion": python}}}


@pytest.mark.parametrize(
    ("ray", "python", "said"),
    [
        ("2.9.3", "3.11.6", "runs Ray 2.9.3; stylize-batch needs 2.56 or newer there"),
        ("2.60.0", "3.9.18", "runs Python 3.9.18; stylize-batch needs 3.10 or newer there"),
    ],
    ids=["Ray", "Python"],
)
def test_a_cluster_too_old_for_the_package_is_refused(ray: str, python: str, said: str) -> None:
    with dashboard(versions(ray, python)) as address, pytest.raises(UsageError) as refused:
        Cluster(address)
    assert said in str(refused.value)


def test_a_head_whose_agent_is_still_starting_is_asked_again_and_a_refusal_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submission, "POLL_SECONDS", 0)
    late = "Request failed with status code 500: No available agent to submit job, please try again later."
    answers = iter([RuntimeError(late), RuntimeError(late), None, RuntimeError("no such job")])

    def request() -> str:
        if error := next(answers):
            raise error
        return "submitted"

    with dashboard({**versions("2.60.0", "3.11.6"), "/api/version": {"ray_version": "2.60.0"}}) as address:
        cluster = Cluster(address)
        assert cluster._ask(request) == "submitted"  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(JobFailedError, match="refused: no such job"):
            cluster._ask(request)  # pyright: ignore[reportPrivateUsage]


def test_a_gateway_that_does_not_let_the_log_be_followed_does_not_end_it() -> None:
    answers = {
        **versions("2.60.0", "3.11.6"),
        "/api/version": {"ray_version": "2.60.0"},
        "/api/jobs/j": {"type": "SUBMISSION", "entrypoint": "", "status": "SUCCEEDED", "driver_exit_code": 3},
        "/api/jobs/j/logs": {"logs": "Running entrypoint for job j: …\nStylizing: 3/4\n"},
    }
    heard: list[str] = []
    with dashboard(answers) as address:
        assert Job(Cluster(address), "j", new=False).follow(heard.append) == 3
    assert heard == ["Stylizing: 3/4"]


def test_only_the_summary_is_taken_for_one() -> None:
    assert summary_of('{"pairs": 1, "ok": 1, "output": "s3://b/o"}')
    for line in ("{", '{"pairs": 1}', "Stylizing: 3/4", '["pairs", "ok", "output"]'):
        assert summary_of(line) is None


def test_nodes_that_lack_what_the_package_needs_are_told_so_in_one_line() -> None:
    program = "import runpy, sys; sys.modules['typer'] = None; runpy.run_module('stylize_batch', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program, "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no package 'typer'; install stylize-batch on every node" in done.stderr
    assert done.stderr.count("\n") == 1
