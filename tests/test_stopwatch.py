"""Seconds by stage: each second of a thread is counted once, and threads add up."""

from __future__ import annotations

import threading
import time

import pytest

from stylize_batch.stopwatch import Stopwatch


def test_a_stage_inside_another_is_not_counted_twice() -> None:
    clock = Stopwatch()
    started = time.perf_counter()
    with clock("stylize"):
        time.sleep(0.01)
        for _ in range(2):
            with clock("metrics"):
                time.sleep(0.02)
    passed = time.perf_counter() - started
    seconds, _ = clock.take()
    assert seconds["metrics"] >= 0.04
    assert seconds["stylize"] >= 0.01
    assert sum(seconds.values()) == pytest.approx(passed, abs=2e-3)


def test_threads_add_up_and_do_not_count_each_others_stages() -> None:
    clock = Stopwatch()
    both = threading.Barrier(2)

    def work(stage: str) -> None:
        with clock(stage):
            both.wait()
            time.sleep(0.02)
            both.wait()

    threads = [threading.Thread(target=work, args=(stage,)) for stage in ("fetch", "decode")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, _ = clock.take()
    assert min(seconds["fetch"], seconds["decode"]) >= 0.02
    assert clock.take() == ({}, {})
