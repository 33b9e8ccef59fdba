"""The engine without Ray: what it does about trouble that is no row's fault."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stylize_batch.engine import in_process
from stylize_batch.engine.base import MAX_SYSTEMIC
from stylize_batch.engine.in_process import InProcessEngine
from stylize_batch.errors import DeviceError, JobFailedError, SystemicError
from stylize_batch.results import Totals
from stylize_batch.settings import ShardReport
from stylize_batch.styles import bank_of
from tests.conftest import worker_settings

FAILS = 3


@pytest.fixture
def engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> InProcessEngine:
    """An engine whose worker fails at one shard, with the error the test names."""
    tried: Counter[int] = Counter()

    class Worker:
        def __init__(self, *_: object) -> None: ...

        def run_shard(self, shard: int, _: Any, *, alone: bool) -> ShardReport:
            tried[shard] += 1
            assert tried[shard] <= MAX_SYSTEMIC + 1, "the work does not end"
            if shard == FAILS:
                raise request.param
            return ShardReport(shard, Totals())

    monkeypatch.setattr(in_process, "Worker", Worker)
    engine = InProcessEngine()
    engine.start([worker_settings(tmp_path)], b"")
    return engine


def shards_done(engine: InProcessEngine, reason: str) -> list[int]:
    """Return the shards an engine finishes before it ends the job for a reason."""
    done: list[int] = []
    with pytest.raises(JobFailedError, match=reason):
        done.extend(report.shard for report in engine.run_shards(list(range(6)), bank_of([], {})))
    return done


@pytest.mark.parametrize("engine", [SystemicError("cannot use /out: no space")], indirect=True)
def test_a_shard_whose_pictures_can_never_be_written_ends_the_job_after_all_others_are_done(
    engine: InProcessEngine,
) -> None:
    assert shards_done(engine, "cannot use /out: no space") == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("engine", [DeviceError("CUDA error: unspecified launch failure")], indirect=True)
def test_a_device_that_is_lost_ends_the_job_with_what_to_do(engine: InProcessEngine) -> None:
    assert shards_done(engine, "launch failure; repeat the command to go on") == [0, 1, 2]
