"""Fixtures of the tests that start real Ray: a marked environment, and storage that kills its reader."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stylize_batch.manifest.reach import VARIABLE
from tests.conftest import command

MARK = "STYLIZE_BATCH_TEST_MARK"

LINGERING = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own agents, which try for a minute to tell a dead cluster of a killed driver, and then end."""

POISON = '''
"""A storage whose files end the process that reads them, as a bug in an image library would."""

import os
import signal

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Poison(LocalFileSystem):
    protocol = "poison"

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("poison://")

    def info(self, path, **options):
        return {"name": path, "size": 1, "type": "file", "mtime": 0}

    def cat_file(self, path, **options):
        os.kill(os.getpid(), signal.SIGKILL)


fsspec.register_implementation("poison", Poison, clobber=True)
'''


@pytest.fixture
def marked_env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment by which every process of a run, workers included, can be found; none may be left."""
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "sitecustomize.py").write_text(POISON)
    path = os.pathsep.join([str(poison), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    mark = uuid.uuid4().hex
    yield {**os.environ, MARK: mark, "PYTHONPATH": path, VARIABLE: "file,poison"}
    deadline = time.monotonic() + 30
    while (left := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"processes left over: {left}"


@pytest.fixture
def start(marked_env: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `stylize-batch run` as a user does."""

    def call(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [command(), "run", *map(str, arguments)],
            cwd=tmp_path,
            env=marked_env,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Tests that run in the background of a shell inherit an ignored Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return call


def processes(mark: str) -> dict[int, str]:
    """Return the command lines of living processes started in a marked environment."""
    found: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_text().replace("\0", " ").strip()[:100]
                if not line.startswith(LINGERING):
                    found[int(folder.name)] = line
        except OSError:
            continue
    return found
