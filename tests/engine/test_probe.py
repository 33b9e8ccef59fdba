"""Nodes are blamed for what they lack, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.exceptions import RayTaskError

from stylize_batch.engine import probe
from stylize_batch.errors import JobFailedError, SystemicError
from stylize_batch.root import Root


def test_a_damaged_plan_is_not_taken_for_a_node_that_lacks_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(answer: object, timeout: float) -> object:
        raise RayTaskError("_probe", "", SystemicError("plan/shard-000000.parquet is damaged"))

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(JobFailedError, match="is damaged"):
        probe._answer(Root(str(tmp_path)), None)  # pyright: ignore[reportPrivateUsage]
