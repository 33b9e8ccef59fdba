"""Runs started as users start them, in an environment by which every process of theirs can be found again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import command

MARK = "STYLIZE_BATCH_TEST_MARK"

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
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


def marked_environment(folder: Path) -> dict[str, str]:
    """Return an environment with a mark of its own, `poison://` storage, and a folder for temporary files."""
    code, temporary = folder / "poison", folder / "temporary"
    code.mkdir()
    temporary.mkdir()
    (code / "sitecustomize.py").write_text(POISON)
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        MARK: uuid.uuid4().hex,
        "PYTHONPATH": os.pathsep.join(paths),
        "STYLIZE_BATCH_SCHEMES": "file,s3,poison",
        "TMPDIR": str(temporary),
        "RAY_TMPDIR": "/tmp",  # the paths of Ray's sockets must be short
        # Small pictures on a busy machine: threads that wait for each other would take most of the time.
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def start_run(arguments: Sequence[object], env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """Start `stylize-batch run` as a shell does: in a process group of its own, which Ctrl-C reaches as a whole."""
    return subprocess.Popen(
        [command(), "run", *map(str, arguments)],
        cwd=cwd,
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a shell inherit an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def processes(env: dict[str, str]) -> dict[int, str]:
    """Return the command lines of living processes that were started in a marked environment."""
    found: dict[int, str] = {}
    mark = f"{MARK}={env[MARK]}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if mark in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()[:100]
        except OSError:
            continue
    return found


def left_over(env: dict[str, str], seconds: float, patient: bool = True) -> dict[int, str]:
    """Wait until no process of an environment lives, so many seconds at most; return those that still do.

    Args:
        env: as `marked_environment` made it.
        seconds: limit.
        patient: whether to wait for Ray's agents too.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = {pid: line for pid, line in processes(env).items() if patient or not line.startswith(AGENTS)}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)
