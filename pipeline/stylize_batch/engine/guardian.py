"""A process that outlives the driver and ends what a Ray of our own leaves behind when the driver is killed.

Ray's processes watch each other and the driver, but one that was just being started when the driver was killed is
watched by nobody, and some wait a minute for a cluster that is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress

VARIABLE = "STYLIZE_BATCH_RAY"
"""Environment variable by which the processes of one Ray are known."""

_PROGRAM = """
import os, signal, sys, time

def living():
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if sys.argv[1].encode() in file.read().split(bytes(1)):
                        yield int(name)
            except OSError:
                pass

sys.stdin.buffer.read()  # ends with the driver
grace = time.monotonic() + 5
while left := list(living()):
    for pid in left if time.monotonic() > grace else ():
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.2)
"""


@contextmanager
def guarded() -> Generator[subprocess.Popen[bytes] | None]:
    """Mark the processes started inside the block, and have them ended when this process has ended or `release`s them.

    Only Linux tells the environment of other processes; elsewhere nothing is started.
    """
    if sys.platform != "linux":
        yield None
        return
    mark = uuid.uuid4().hex
    guardian = subprocess.Popen(  # noqa: S603 (this very interpreter)
        [sys.executable, "-I", "-S", "-c", _PROGRAM, f"{VARIABLE}={mark}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the driver
    )
    os.environ[VARIABLE] = mark
    try:
        yield guardian
    except BaseException:
        release(guardian)
        raise
    finally:
        del os.environ[VARIABLE]  # what this process starts later is its own


def release(guardian: subprocess.Popen[bytes]) -> None:
    """Have everything that is left ended, and wait for it, half a minute at most."""
    assert guardian.stdin
    guardian.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        guardian.wait(30)
