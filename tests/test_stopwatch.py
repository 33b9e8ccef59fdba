"""The stopwatch: seconds counted once each, and a line that says where they went."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stylize_batch.stopwatch import Stopwatch, where_it_went


def test_time_inside_an_inner_stage_counts_for_that_one_alone() -> None:
    clock = Stopwatch()
    started = time.perf_counter()
    with clock("stylize"):
        time.sleep(0.02)
        for _ in range(2):
            with clock("metrics"):
                time.sleep(0.02)
    whole = time.perf_counter() - started
    seconds, _ = clock.take()
    assert seconds["metrics"] >= 0.04
    assert seconds["stylize"] >= 0.02
    assert sum(seconds.values()) <= whole


def test_threads_add_up_and_do_not_take_from_each_other() -> None:
    clock = Stopwatch()

    def work(stage: str) -> None:
        with clock(stage):
            time.sleep(0.02)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, ["decode", "decode", "fetch", "put"]))
    seconds, _ = clock.take()
    assert seconds["decode"] >= 0.04
    assert min(seconds["fetch"], seconds["put"]) >= 0.02
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


def test_without_work_of_the_network_there_is_nothing_to_tell() -> None:
    assert where_it_went({}) == where_it_went({"decode": 1.0, "wait": 2.0}) == ""
