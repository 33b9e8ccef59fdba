"""report.html of an output root: at the end of a run, and whenever it is asked for."""

from __future__ import annotations

from typing import Any

from stylize_batch.errors import UsageError, os_errors_as
from stylize_batch.job.record import KEY, REPORT, RunRecord, load_record
from stylize_batch.report.page import Run, make_report
from stylize_batch.root import Root
from stylize_batch.stopwatch import where_it_went

SHOWN_SETTINGS = (
    "manifest", "content", "style", "model", "size", "crop", "style_size", "format", "quality", "layout", "limit",
)  # fmt: skip


def report(output: str) -> str:
    """Write the report of a run, finished or not, from what its output root holds; returns the report's URI.

    Raises:
        UsageError: there is no run, or the root cannot be read or written.
    """
    root = Root(output)
    with os_errors_as(UsageError, f"cannot use {root.uri}"):
        record = load_record(root)
        if record is None:
            raise UsageError(f"there is no run at {root.uri}: it holds no {KEY}")
        put_report(root, record)
        root.drop_temporaries()
    return root.uri_of(REPORT)


def put_report(root: Root, record: RunRecord) -> None:
    """Make the report of a run and put it under the root.

    Raises:
        OSError: the results cannot be read, or the report not be written.
    """
    run = Run(
        identity=record.run,
        pairs=record.pairs,
        finished=record.state == "finished",
        base=record.base,
        home=record.home,
        settings=_shown(record),
    )
    root.put(REPORT, make_report(root, run))


def _shown(record: RunRecord) -> dict[str, str]:
    found: dict[str, Any] = {name: record.settings.get(name) for name in SHOWN_SETTINGS}
    found |= {
        "output": record.home,
        "precision": ", ".join(f"{name} on {device}" for device, name in record.precision.items()),
        "chroma_subsampling": record.chroma_subsampling,
        "model_digest": record.model_digest,
        "time of the workers": where_it_went(record.totals.get("stages", {})),
    }
    found |= record.versions
    return {name.replace("_", " "): str(value) for name, value in found.items() if value not in (None, "")}
