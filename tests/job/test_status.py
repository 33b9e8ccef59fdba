"""How far a run is, as another machine sees it: from the output root alone."""

from __future__ import annotations

import json
import os
import threading
import time
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import stylize_batch
from stylize_batch.errors import UsageError
from stylize_batch.job import lease as leases
from stylize_batch.job.lease import lease
from stylize_batch.job.status import status
from stylize_batch.results import FINISHED
from stylize_batch.root import Root
from tests.conftest import Cli, MakeManifest, Row


@pytest.fixture
def output(make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path) -> Path:
    """A finished run of 8 rows in 4 shards, of which two rows failed."""
    rows: list[Row] = [
        {"content": content, "style": [style]}
        for content in [*contents[:3], "missing.jpg"]
        for style in styles[:2]
    ]
    output = tmp_path / "out"
    stylize_batch.run(
        str(make_manifest(rows)),
        output=str(output),
        in_process=True,
        style_size=48,
        shard_pairs=2,
        device="cpu",
    )
    return output


def interrupt(output: Path, lost: int) -> None:
    """Make of a finished run one that stopped early."""
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**record, "state": "running"}))
    for part in sorted((output / "results").iterdir())[:lost]:
        part.unlink()


def left_by(output: Path, host: str, age: float) -> None:
    """Leave the lease of a driver on another machine, last renewed so many seconds ago."""
    holder = {"run": "other", "host": host, "pid": 4711, "place": "elsewhere", "born": "1", "renewals": 3}
    written = output / ".lease"
    written.write_text(json.dumps(holder))
    os.utime(written, (time.time() - age, time.time() - age))
    written.replace(output / "lease.json")


def test_a_finished_run_says_what_became_of_its_rows(output: Path) -> None:
    found = status(str(output))
    assert (found.state, found.pairs, found.ok, found.failed) == ("finished", 8, 6, 2)
    assert (found.shards, found.finished_shards) == (4, 4)
    assert found.kinds == {"NotFound": 2}
    assert found.host is None
    assert found.seconds_left is None


def test_a_run_that_nobody_works_on_is_stopped(output: Path) -> None:
    interrupt(output, lost=1)
    found = status(str(output))
    assert (found.state, found.finished_shards, found.ok + found.failed) == ("stopped", 3, 6)


def test_a_run_that_gave_up_is_not_told_to_be_repeated_as_it_was(output: Path, cli: Cli) -> None:
    record = json.loads((output / "run.json").read_text())
    record["settings"]["max_failed"] = "20%"  # of 8 rows
    (output / "run.json").write_text(json.dumps({**record, "state": "running"}))
    found = status(str(output))
    assert (found.state, found.failed, found.failures_allowed) == ("stopped", 2, 1)
    told = cli("status", str(output)).stderr
    assert "gave up: more rows failed than --max-failed allows (1)" in told
    assert "--retry-failed" in told
    assert "repeat the command" not in told


def test_a_finished_run_that_has_lost_results_has_something_to_go_on_with(output: Path) -> None:
    (output / "results" / "part-000001.parquet").unlink()
    (output / "results" / "part-000002.parquet").write_bytes(b"")
    found = status(str(output))
    assert (found.state, found.finished_shards, found.ok + found.failed) == ("stopped", 2, 4)


def test_a_run_at_work_tells_its_rate_and_what_is_left_from_the_times_of_its_parts(output: Path) -> None:
    interrupt(output, lost=1)
    for age, part in enumerate(sorted((output / "results").iterdir())):
        table = pq.read_table(part)
        finished = f"{time.time() - 60 + 4 * age}".encode()
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, FINISHED: finished}), part)
    with lease(Root(str(output)), "run"):
        found = status(str(output))
    assert (found.state, found.pid) == ("running", os.getpid())
    assert found.pairs_per_second == pytest.approx(4 / 8, rel=0.01)
    assert found.seconds_left == pytest.approx(2 / 0.5, rel=0.01)


def test_a_driver_on_another_machine_lives_while_it_renews_its_lease(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(output, lost=1)
    left_by(output, "node-7", age=1)
    found = status(str(output))
    assert (found.state, found.host, found.pid) == ("running", "node-7", 4711)

    # Its clock is an hour behind: only a renewal tells.
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    left_by(output, "node-7", age=3600)
    ended = threading.Event()

    def renew() -> None:
        for renewal in count():
            if ended.wait(0.3):
                return
            left_by(output, f"node-{renewal}", 3600)

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        assert status(str(output)).state == "running"
    finally:
        ended.set()
        renewing.join()
    left_by(output, "node-8", 3600)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.5)
    found = status(str(output))
    assert (found.state, found.host) == ("stopped", "node-8")


def test_where_there_is_no_run_status_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no run at .*run\.json"):
        status(str(tmp_path / "nothing"))
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"run\.json was not written by this version"):
        status(str(tmp_path))
