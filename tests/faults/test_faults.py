"""The short version of `python -m tests.faults`: every kind of fault, a few times."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stylize_batch.s3 import PATIENCE
from tests.faults.faults import IN_PROCESS, KILLS, PROCESSES, STORAGE, Bench, Fault, inflict
from tests.faults.job import Damage
from tests.faults.processes import left_over


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Inputs and servers for all faults. In the end nothing may run; Ray's agents have had their minute by then."""
    bench = Bench(tmp_path_factory.mktemp("faults"), seed=1)
    yield bench
    bench.close()
    for env in bench.environments:
        assert not left_over(env, seconds=90)


# Not poison, which tests/integration/test_ray.py has already, and one of each signal.
SHORT = [*KILLS, *PROCESSES[:2], *PROCESSES[3:5], PROCESSES[-1], *STORAGE[:2], STORAGE[-1]]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault, id=f"{fault.name} ({fault.where})", marks=[pytest.mark.cluster] * ("nodes" in fault.where)
        )
        for fault in SHORT
    ],
)
def test_nothing_is_lost_doubled_or_left_over(bench: Bench, fault: Fault) -> None:
    times = 4 if fault == SHORT[0] else 1
    damage = inflict(bench, fault, times, patient=False)
    assert (damage.lost, damage.duplicated, damage.left_over) == (0, 0, 0), damage.details
    assert damage.times >= times


def test_ctrl_c_does_not_wait_for_storage_that_does_not_answer(bench: Bench) -> None:
    job = bench.s3_job(bench.new_environment(), IN_PROCESS, bench.proxy.port)
    process = job.start()
    while job.phase() != "shards":
        assert process.poll() is None
        time.sleep(0.05)
    with bench.proxy.spoiling(["reset"], 1.0):
        time.sleep(2.0)
        interrupted = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        job.finish(process, status=130)
        assert time.monotonic() - interrupted < PATIENCE / 2


def test_damage_is_seen(bench: Bench) -> None:
    job = bench.local_job(bench.new_environment(), IN_PROCESS)
    job.finish(job.start())
    root = Path(job.output)
    missing, half, wrong = sorted((root / "images").iterdir())[-3:]
    missing.unlink()
    wrong.write_bytes(half.read_bytes())
    half.write_bytes(half.read_bytes()[:-200])
    first, second, *_ = sorted((root / "results").iterdir())
    first.unlink()
    (root / "results" / "part-000099.parquet").write_bytes(second.read_bytes())
    (root / ".tmp").mkdir()
    damage = Damage()
    job.check(bench.pictures, damage)
    assert damage.lost == 3 + 3, damage.details  # the pictures, and the rows of the first part
    assert damage.duplicated == 3, damage.details  # the rows of the second
    assert damage.left_over == 3 + 1 + 1, damage.details  # the pictures of lost rows, the part, the folder
