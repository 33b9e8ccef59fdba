"""How far a run has come, from its output root alone: any machine that reads it can tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stylize_batch.errors import UsageError, os_errors_as
from stylize_batch.job import record as records
from stylize_batch.job.lease import holder
from stylize_batch.job.record import load_record
from stylize_batch.job.spec import allowed_failures
from stylize_batch.results import Part, Totals, finished_parts
from stylize_batch.root import Root

RATE_SECONDS = 600.0
"""The rate is that of the parts finished in the ten minutes before the last one."""


@dataclass(frozen=True)
class Status:
    """Progress of a run, all of which `--json` prints.

    Attributes:
        output: the output root.
        state: `stopped` when nobody is at work and rows are left.
        pairs: rows of the manifest; 0 until they are counted.
        ok: rows with a picture, in finished shards.
        failed: rows without, in finished shards.
        failures_allowed: rows that may fail before the run gives up.
        kinds: failed rows by kind.
        shards: shards in all.
        finished_shards: shards with results.
        pairs_per_second: lately, and only of a run at work whose last parts tell it.
        seconds_left: at that rate.
        host: machine of the driver at work, or of the one that died; None if nobody holds the lease.
        pid: its process.
    """

    output: str
    state: Literal["planning", "running", "stopped", "finished"]
    pairs: int
    ok: int
    failed: int
    failures_allowed: int
    kinds: dict[str, int]
    shards: int
    finished_shards: int
    pairs_per_second: float | None
    seconds_left: float | None
    host: str | None
    pid: int | None


def status(output: str) -> Status:
    """Look at an output root, on any storage, while a run is at work or afterwards.

    Raises:
        UsageError: there is no run, or the root cannot be read.
    """
    root = Root(output)
    with os_errors_as(UsageError, f"cannot read {root.uri}"):
        record = load_record(root)
        held = holder(root)
        if record is None and (held is None or not held[1]):
            raise UsageError(f"there is no run at {root.uri}: it holds no {records.KEY}")
        parts = {} if record is None else finished_parts(root, record.run)
    totals = Totals()
    for part in parts.values():
        totals.add(part.totals)
    pairs = 0 if record is None else record.pairs
    state: Literal["planning", "running", "stopped", "finished"]
    if held is not None and held[1]:
        state = "planning" if record is None or record.state in ("erasing", "planning") else "running"
    else:  # a finished run may have lost parts since
        whole = record is not None and record.state == "finished" and totals.pairs == record.pairs
        state = "finished" if whole else "stopped"
    rate = _rate(parts.values()) if state == "running" else None
    return Status(
        output=root.uri,
        state=state,
        pairs=pairs,
        ok=totals.ok,
        failed=totals.failed,
        failures_allowed=0 if record is None else allowed_failures(record.settings["max_failed"], pairs),
        kinds=dict(totals.kinds.most_common()),
        shards=0 if record is None else record.shards,
        finished_shards=len(parts),
        pairs_per_second=rate,
        seconds_left=(pairs - totals.pairs) / rate if rate else None,
        host=held[0].host if held else None,
        pid=held[0].pid if held else None,
    )


def _rate(parts: Iterable[Part]) -> float | None:
    """Return pairs per second over the last parts; None if these are too few to tell."""
    times = sorted((part.finished, part.totals.pairs) for part in parts if part.finished is not None)
    recent = [each for each in times if times[-1][0] - each[0] <= RATE_SECONDS]
    if not recent or recent[-1][0] == recent[0][0]:
        return None
    return sum(pairs for _, pairs in recent[1:]) / (recent[-1][0] - recent[0][0])
