"""Processes: which is which, on machines that may share storage and even their folder of temporary files; their memory."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
from pathlib import Path


def place() -> str:
    """Return the boot and the process namespace that the pids seen here belong to; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def place_digest() -> str:
    """Return `place`, and the machine's name, as 8 hex digits."""
    return hashlib.blake2b(f"{socket.gethostname()} {place()}".encode(), digest_size=4).hexdigest()


def peak_memory() -> int:
    """Return the most memory that this process has had, resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def born(pid: int) -> str | None:
    """Return a process's start time, in the system's own ticks; None if there is no such process, empty if the system
    does not say."""
    try:
        # The name, in parentheses, may hold spaces; what follows it are the state and, 19 fields on, the start time.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return ""
    return None if fields[0] in "ZX" else fields[19]
