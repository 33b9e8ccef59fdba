"""Processes that work on their own, without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from pathlib import Path

import pyarrow as pa

from stylize_batch import worker
from stylize_batch.engine import ray_actor
from stylize_batch.manifest.shards import Shard
from stylize_batch.results import Outcome
from tests.conftest import worker_settings

class Worker:
    def __init__(self, settings, model, heard):
        self._heard = heard

    def stylize(self, shard, plan, bank, alone):
        for pair in plan["pair_id"].to_pylist():
            time.sleep(float(sys.argv[2]))
            self._heard(pair, Outcome())

worker.Worker = Worker
ray_actor.ray.get = lambda ref: None
ray_actor.HANGING_ALONE_SECONDS = 2.0
plan = pa.table({"pair_id": ["a", "b", "c", "d"]})
ray_actor.stylize_alone(worker_settings(Path(sys.argv[1])), b"", Shard(0, 4), plan, ["bank"])
print("done", flush=True)
"""


@pytest.mark.parametrize(("seconds", "ends"), [(0.7, False), (60.0, True)])
def test_a_process_on_its_own_ends_if_it_finishes_no_picture_for_long_and_says_where_it_was(
    tmp_path: Path, seconds: float, ends: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(seconds)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.stdout, " in stylize" in done.stderr) == ("" if ends else "done\n", ends), done.stderr
