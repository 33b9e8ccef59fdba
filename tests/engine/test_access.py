"""What a node that comes during a run must find, and what it is not blamed for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from stylize_batch.engine import access
from stylize_batch.engine.access import check_newcomer
from stylize_batch.errors import RowError, SystemicError
from stylize_batch.manifest.shards import put_shard
from stylize_batch.root import Root
from stylize_batch.settings import WorkerSettings
from tests.conftest import worker_settings


@pytest.fixture
def planned(tmp_path: Path) -> WorkerSettings:
    """Settings of a run with one photograph."""
    settings = worker_settings(tmp_path)
    put_shard(Root(settings.root), 0, pa.table({"content": ["photo.jpg"]}), settings.run)
    return settings


def test_a_newcomer_that_finds_plan_and_photograph_may_work(planned: WorkerSettings, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    check_newcomer(planned)


def test_a_newcomer_without_the_photograph_is_named(planned: WorkerSettings, tmp_path: Path) -> None:
    lacks = (
        rf"node \S+ cannot read what others can: NotFound: {tmp_path}/photo.jpg does not exist; nodes need"
    )
    with pytest.raises(SystemicError, match=lacks):
        check_newcomer(planned)


def test_a_newcomer_without_the_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SystemicError, match=rf"node \S+ does not share {tmp_path}/out; with several nodes use"
    ):
        check_newcomer(worker_settings(tmp_path))


def test_a_newcomer_that_may_not_read_the_output_is_named(
    planned: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Root, "read", raising(PermissionError("Forbidden")))
    with pytest.raises(SystemicError, match=rf"node \S+ cannot use {planned.root}: Forbidden; nodes need"):
        check_newcomer(planned)


def test_a_newcomer_is_not_blamed_for_storage_that_does_not_answer(
    planned: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "fingerprint", raising(RowError("StorageError", "no answer", transient=True)))
    check_newcomer(planned)


def raising(error: Exception) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise error

    return call
