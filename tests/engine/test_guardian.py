"""The guardian: what was started under it ends with its driver, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stylize_batch.engine.guardian import VARIABLE, guarded, release

DRIVER = """
import subprocess, time
from stylize_batch.engine.guardian import guarded
with guarded():
    ours = subprocess.Popen(["sleep", "600"], start_new_session=True)
later = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(ours.pid, later.pid, flush=True)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_driver_started_under_it_ends_and_nothing_else(how: signal.Signals) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    ours, later = map(int, driver.stdout.readline().split())
    try:
        driver.send_signal(how)
        driver.wait(60)
        driver.stdout.close()
        deadline = time.monotonic() + 60
        while runs(ours) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not runs(ours)
        assert runs(later)
    finally:
        for pid in filter(runs, (ours, later)):
            os.kill(pid, signal.SIGKILL)


def test_a_guardian_that_is_released_ends_and_leaves_no_mark() -> None:
    with guarded() as guardian:
        assert VARIABLE in os.environ
    assert VARIABLE not in os.environ
    assert guardian is not None
    assert guardian.poll() is None
    release(guardian)
    assert guardian.returncode == 0
