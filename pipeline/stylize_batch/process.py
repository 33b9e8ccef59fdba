"""Which process is which, on machines that may share storage and even their folder of temporary files."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from pathlib import Path


def place() -> str:
    """Return the boot and the process namespace that the pids seen here belong to; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def mark() -> str:
    """Return a mark of this process for names of files: machine, boot, process namespace and pid, with a `-` after each."""
    machine = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
    boot, _, namespace = place().partition(" ")
    return f"{machine}-{boot.partition('-')[0]}-{re.sub(r'[^0-9]', '', namespace)}-{os.getpid()}-"


def dead(marked: str) -> bool:
    """Whether the process that a name begins with the mark of is certainly gone: one of this machine, of an earlier boot or
    of a pid that is free."""
    try:
        machine, boot, namespace, pid, _ = marked.split("-", 4)
        here, this_boot, this_namespace, *_ = mark().split("-")
        if machine != here:
            return False
        return boot != this_boot or (namespace == this_namespace and born(int(pid)) is None)
    except ValueError:
        return False


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
