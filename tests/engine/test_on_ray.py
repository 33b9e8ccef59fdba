"""Starting and joining Ray, as far as it can be told without one."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import ray

from stylize_batch.engine.on_ray import RayEngine


@pytest.mark.parametrize("address", [None, "auto"])
def test_sigterm_while_ray_starts_is_an_interruption_and_the_handler_is_ours_again(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(*_: object, **__: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray's own does
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    ours = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            RayEngine(address, None, None, 0, 1)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, ours)
