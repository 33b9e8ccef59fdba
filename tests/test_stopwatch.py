"""Seconds by stage: each second of a thread is counted once, threads add up, and a line says where they went."""

from __future__ import annotations

import threading
import time

import pytest

from stylize_batch.stopwatch import Stopwatch, where_it_went


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
    assert sum(seconds.values()) == pytest.approx(passed, rel=0.4)


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


def test_a_stage_that_fails_is_counted() -> None:
    clock = Stopwatch()
    with pytest.raises(ValueError, match="bad"), clock("decode"):
        raise ValueError("bad")
    assert "decode" in clock.take()[0]


def test_shares_are_of_the_lanes_time_and_what_threads_do_is_told_in_the_same_measure() -> None:
    seconds = {"encode": 3.0, "stylize": 4.0, "metrics": 2.0, "wait": 1.0, "decode": 0.5, "codec": 0.2}
    assert where_it_went(seconds) == (
        "network 70 %, losses 20 %, waiting 10 %; beside it decoding 5 %, encoding 2 %"
    )


def test_shares_of_nothing_are_left_out() -> None:
    assert (
        where_it_went({"encode": 9.0, "wait": 1.0, "metrics": 0.04, "put": 0.01})
        == "network 90 %, waiting 10 %"
    )


def test_without_work_of_the_network_there_is_nothing_to_tell() -> None:
    assert where_it_went({}) == where_it_went({"decode": 1.0, "wait": 2.0}) == ""
