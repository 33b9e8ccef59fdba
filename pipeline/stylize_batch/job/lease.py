"""lease.json: says that a run is working on an output root, so that a second one does not do the same work.

The lease is advisory. Two runs of one plan do no harm, since what they write is identical; so it needs no lock that
storage would have to keep. Two that make a plan at the same time would mix theirs, so each looks whether its lease has
stayed. A run that was suspended while another began anew ends when it sees that.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from stylize_batch.errors import UsageError
from stylize_batch.process import born, place
from stylize_batch.root import LEASE, Root

RENEW_SECONDS = 5.0
"""Time between two renewals."""

WATCH_SECONDS = 15.0
"""A lease that is not renewed for so long is left over from a run that died."""

POLL_SECONDS = 1.0

SETTLE_SECONDS = 1.0
"""Time after which a lease has arrived that another run has written at the same moment."""


class Holder(NamedTuple):
    """Who holds a lease.

    Attributes:
        run: a name of its own for each run of the command.
        host: name of the machine.
        pid: of the driver.
        place: the boot and process namespace that the pid belongs to; empty where the system does not say.
        born: when the process started, in the system's own ticks, since pids are used again; empty likewise.
        renewals: counted up, so that every renewal changes the file.
    """

    run: str
    host: str
    pid: int
    place: str
    born: str
    renewals: int = 0

    def near(self, here: Holder) -> bool:
        """Whether its pid means the same process where `here` is one."""
        return self.place == here.place if here.place else (self.host, self.place) == (here.host, "")

    def dead(self, here: Holder) -> bool:
        """Whether the process is certainly gone, which only its own machine can tell (`here` is this process)."""
        return self.near(here) and born(self.pid) != self.born


@contextmanager
def lease(root: Root, run: str) -> Generator[None]:
    """Hold the lease of a root: take it, renew it from a thread of its own, remove it at the end.

    Raises:
        UsageError: another run renews it, or has taken it at the same time.
        OSError: the root cannot be written.
    """
    here = _take(root, run)
    stop = threading.Event()
    renewing = threading.Thread(target=_renew, args=(root, here, stop), name="lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        stop.set()
        renewing.join(RENEW_SECONDS)
        # It may be another's by now, or storage may be gone: a stale lease holds 15 s.
        with suppress(Exception):
            found = _read(root)
            if found is not None and found.run == run and not renewing.is_alive():
                root.delete([LEASE])


def _take(root: Root, run: str) -> Holder:
    """Write the lease of a run. Of several that find none at the same time, the last to write it goes on."""
    with root.locked() as locked:
        refuse_others(root)
        here, began = _myself(run), time.monotonic()
        root.put(LEASE, _dumps(here))
        took = time.monotonic() - began
    if not locked:
        # One that was long under way may have replaced a lease whose run is at work by now, and which that will renew.
        time.sleep(SETTLE_SECONDS if took < SETTLE_SECONDS / 2 else RENEW_SECONDS + SETTLE_SECONDS)
        now = _read(root)
        if now is not None and now.run != run:
            raise _occupied(root, now)
    return here


def holder(root: Root) -> tuple[Holder, bool] | None:
    """Return who holds the lease of a root and whether it lives, from any machine; None if nobody does.

    Takes a few seconds only where the lease looks abandoned: clocks may differ, so it is watched.

    Raises:
        OSError: storage refused or did not answer.
    """
    first, here = _read(root), _myself("")
    if first is None or first.dead(here):
        return None if first is None else (first, False)
    if here.place and first.near(here):
        return first, True
    with suppress(FileNotFoundError):
        if abs(time.time() - root.modified(LEASE)) < WATCH_SECONDS:
            return first, True
    deadline = time.monotonic() + 2 * RENEW_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        now = _read(root)
        if now != first:
            return None if now is None else (now, True)
    return first, False


def _renew(root: Root, here: Holder, stop: threading.Event) -> None:
    while not stop.wait(RENEW_SECONDS):
        here = here._replace(renewals=here.renewals + 1)
        # Storage may be back at the next renewal; the work itself will say if it is not.
        with suppress(Exception):
            root.put(LEASE, _dumps(here))


def refuse_others(root: Root) -> None:
    """Return once no living run holds the lease of a root.

    Raises:
        UsageError: one does.
        OSError: storage refused or did not answer.
    """
    first, here = _read(root), _myself("")
    if first is None or first.dead(here):
        return
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        now = _read(root)
        if now is None or now.dead(here):
            return
        if now != first:
            raise _occupied(root, now)
    root.delete([LEASE])  # so that nobody has to watch it again


def _occupied(root: Root, other: Holder) -> UsageError:
    return UsageError(
        f"another run is working on {root.uri}: process {other.pid} on {other.host}; wait until it has finished, "
        "or end it and repeat the command"
    )


def _read(root: Root) -> Holder | None:
    try:
        return Holder(**json.loads(root.read(LEASE)))
    except (FileNotFoundError, ValueError, TypeError):
        # There is none, or what a power cut or another version has left.
        return None


def _dumps(holder: Holder) -> bytes:
    return (json.dumps(holder._asdict()) + "\n").encode()


def _myself(run: str) -> Holder:
    return Holder(run, socket.gethostname(), os.getpid(), place(), born(os.getpid()) or "")
