"""Joining a cluster, as far as it can be told without one."""

from __future__ import annotations

import pytest
import ray

from stylize_batch.engine.cluster import CLIENT_ATTEMPTS, join
from stylize_batch.errors import UsageError

DEAD = "Initialization failure from server: RuntimeError: Starting Ray client server failed."


@pytest.mark.parametrize(
    ("message", "failures", "asked"),
    [(DEAD, CLIENT_ATTEMPTS - 1, CLIENT_ATTEMPTS), (DEAD, 99, CLIENT_ATTEMPTS), ("no such cluster", 99, 1)],
)
def test_a_head_whose_process_for_the_driver_dies_is_asked_again_and_others_are_not(
    message: str, failures: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def init(address: str, **_: object) -> None:
        attempts.append(address)
        if len(attempts) <= failures:
            raise ConnectionAbortedError(message)

    monkeypatch.setattr(ray, "init", init)
    if failures >= CLIENT_ATTEMPTS:
        with pytest.raises(UsageError, match=message):
            join("auto")
    else:
        join("auto")
    assert len(attempts) == asked
