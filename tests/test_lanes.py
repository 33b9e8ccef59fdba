"""Pictures side by side on a CPU: how many, on how many cores, and what happens at the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
import torch

from stylize_batch.lanes import Lanes
from stylize_batch.stopwatch import Stopwatch

PASS = 1000

torch.get_num_threads()  # settled here for this thread: one that asks later gets what some lane was given last


def lanes(cores: int = 4) -> Lanes:
    return Lanes(cores, PASS, Stopwatch())


def test_as_many_small_pictures_as_cores_are_at_work_at_once() -> None:
    together = threading.Barrier(4)

    def unit() -> Iterator[int]:
        together.wait(timeout=30)  # breaks unless all four are there
        yield torch.get_num_threads()

    with lanes() as open_lanes:
        assert [each.result() for each in [open_lanes.submit(PASS // 4, unit) for _ in range(4)]] == [[1]] * 4


@pytest.mark.parametrize(("pixels", "cores"), [(1, 1), (250, 1), (251, 2), (600, 3), (1000, 4), (9999, 4)])
def test_a_picture_gets_cores_by_its_share_of_a_pass(pixels: int, cores: int) -> None:
    with lanes() as open_lanes:
        assert open_lanes.submit(pixels, lambda: [torch.get_num_threads()]).result() == [cores]


def test_pictures_at_work_never_fill_more_than_a_pass() -> None:
    lock = threading.Lock()
    pixels = most = 0

    def unit(size: int) -> Iterator[None]:
        nonlocal pixels, most
        with lock:
            pixels += size
            most = max(most, pixels)
        torch.mm(torch.rand(200, 200), torch.rand(200, 200))
        with lock:
            pixels -= size
        yield

    with lanes() as open_lanes:
        sizes = [100, 500, 900, 250, 250, 1000, 300, 700] * 8
        for each in [open_lanes.submit(size, lambda size=size: unit(size)) for size in sizes]:
            each.result()
    assert 900 <= most <= PASS


def test_at_the_end_units_stop_between_two_pictures_and_others_do_not_begin() -> None:
    begun = threading.Event()
    closing = threading.Event()
    made: list[int] = []

    def unit() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            begun.set()
            closing.wait(timeout=30)
            yield number

    with lanes(1) as open_lanes:
        open_lanes.submit(PASS, unit)
        later = open_lanes.submit(PASS, unit)
        begun.wait(timeout=30)
        threading.Timer(0.1, closing.set).start()
    assert closing.is_set()  # what is at work has come to its end
    assert made == [0]
    assert later.cancelled()


def test_a_thread_at_work_is_not_forgotten_when_whoever_waits_for_it_is_interrupted() -> None:
    begun, closing = threading.Event(), threading.Event()
    at_work: list[threading.Thread] = []

    def unit() -> Iterator[bool]:
        at_work.append(threading.current_thread())
        begun.set()
        yield closing.wait(timeout=30)

    open_lanes = lanes()
    open_lanes.submit(1, unit)
    begun.wait(timeout=30)

    def close_interrupted() -> None:
        threading.Timer(0.1, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
        open_lanes.__exit__(None, None, None)
        threading.Event().wait(timeout=30)  # for the signal, should it come only now

    # What a shell starts beside itself ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            close_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert at_work[0].is_alive()  # Python waits for it at the end
    closing.set()
    at_work[0].join()


def test_an_error_of_a_unit_reaches_who_asks_for_it_and_frees_its_cores() -> None:
    def broken() -> Iterator[None]:
        yield
        raise MemoryError

    with lanes() as open_lanes:
        with pytest.raises(MemoryError):
            open_lanes.submit(PASS, broken).result()
        assert open_lanes.submit(PASS, lambda: [7]).result() == [7]


def test_only_lanes_that_have_nothing_to_do_are_said_to_wait() -> None:
    clock = Stopwatch()
    busy = threading.Event()
    with Lanes(1, PASS, clock) as open_lanes:
        first = open_lanes.submit(1, lambda: [busy.wait(timeout=0.2)])
        open_lanes.submit(1, lambda: [None]).result()  # it waits for a core, not for a picture
        assert first.result() == [False]
    seconds, _ = clock.take()
    assert seconds["wait"] < 0.1


def test_each_lane_begins_with_what_it_was_told_to() -> None:
    here = threading.local()

    def begin() -> None:
        here.begun = True

    with Lanes(2, PASS, Stopwatch(), begin) as open_lanes:
        units = [open_lanes.submit(1, lambda: [here.begun]) for _ in range(8)]
        assert all(unit.result() == [True] for unit in units)
