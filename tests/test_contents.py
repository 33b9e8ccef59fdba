"""Loading ahead: how far, what is left when nobody wants the rest, and what failures keep alive."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from stylize_batch import contents as loading
from stylize_batch.ahead import begun_ahead
from stylize_batch.contents import (
    LOOKAHEAD,
    STYLES_AHEAD,
    STYLES_KEPT,
    Content,
    ContentLoader,
    Loaded,
    Pair,
    StyleImages,
    StyleLoad,
)
from stylize_batch.errors import RowError
from stylize_batch.images import mask
from stylize_batch.images.decode import decode_whole
from stylize_batch.stopwatch import Stopwatch
from tests.conftest import worker_settings


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def pair(*masks: str) -> Pair:
    return Pair(0, "output", 1.0, ["style"], None, list(masks), False)


def test_no_more_calls_are_begun_than_the_next_ones(threads: ThreadPoolExecutor) -> None:
    taken = iter(range(1000))
    calls = begun_ahead(threads, str, taken, LOOKAHEAD)
    assert [next(calls)[1].result() for _ in range(5)] == ["0", "1", "2", "3", "4"]
    assert next(taken) == 5 + LOOKAHEAD


def test_who_stops_early_leaves_no_content_to_be_loaded(
    tmp_path: Path, contents: list[str], threads: ThreadPoolExecutor
) -> None:
    looked_at: list[tuple[int, ...]] = []
    stopped = threading.Event()

    def large(shape: tuple[int, ...]) -> bool:
        looked_at.append(shape)
        return len(looked_at) > 1 and not stopped.wait(30)

    loader = ContentLoader(worker_settings(tmp_path), threads, Stopwatch(), large)
    for _, loaded in loader.load_ahead([Content(uri, [pair()]) for uri in contents * 5]):
        assert isinstance(loaded, Loaded)
        break
    stopped.set()
    threads.shutdown()
    assert len(looked_at) <= 2  # the one taken, and the one in hand


def test_contents_that_fill_the_memory_are_decoded_only_when_their_turn_has_come(
    tmp_path: Path, contents: list[str], threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    by: list[threading.Thread] = []

    def noted(data: bytes, **options: Any) -> Any:
        by.append(threading.current_thread())
        return decode_whole(data, **options)

    monkeypatch.setattr(loading, "decode_whole", noted)
    loader = ContentLoader(worker_settings(tmp_path), threads, Stopwatch(), lambda _: True)
    for number, (_, loaded) in enumerate(loader.load_ahead([Content(uri, [pair()]) for uri in contents]), 1):
        assert isinstance(loaded, Loaded)
        assert by == [threading.current_thread()] * number


def test_a_content_or_mask_that_cannot_be_loaded_keeps_nothing_alive(
    tmp_path: Path, contents: list[str], threads: ThreadPoolExecutor
) -> None:
    page, absent = tmp_path / "page.png", str(tmp_path / "absent.png")
    page.write_text("<html>")
    given = [Content(str(page), [pair()]), Content(absent, [pair()]), Content(contents[0], [pair(absent)])]
    for large in (True, False):  # decoded in the caller's thread, or in theirs
        loader = ContentLoader(
            worker_settings(tmp_path), threads, Stopwatch(), lambda shape, large=large: large
        )
        failures = [
            each
            for _, loaded in loader.load_ahead(given)
            for each in (loaded.masks.values() if isinstance(loaded, Loaded) else [loaded])
        ]
        assert [error.kind for error in failures if isinstance(error, RowError)] == [
            "Undecodable",
            "NotFound",
            "NotFound",
        ]
        for error in failures:
            assert isinstance(error, RowError)
            assert error.__traceback__ is error.__context__ is None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError, ""),
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_colours_for_which_there_is_no_memory_fail_the_content_that_preserves_them_alone(
    error: type[Exception],
    text: str,
    tmp_path: Path,
    contents: list[str],
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "colors", Mock(side_effect=error(text)))
    loader = ContentLoader(worker_settings(tmp_path), threads, Stopwatch(), lambda _: False)
    given = [Content(uri, [pair()._replace(preserve_color=bool(at))]) for at, uri in enumerate(contents[:2])]
    (_, plain), (_, preserved) = loader.load_ahead(given)
    assert isinstance(plain, Loaded)
    assert str(preserved) == "OutOfMemory: the image does not fit into memory"


def test_a_mask_that_does_not_fit_into_memory_leaves_the_other_masks_and_the_content(
    tmp_path: Path, contents: list[str], threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask, "fit_mask", Mock(side_effect=[MemoryError, np.zeros((1, 1), np.uint8)]))
    loader = ContentLoader(worker_settings(tmp_path), threads, Stopwatch(), lambda _: False)
    ((_, loaded),) = loader.load_ahead([Content(contents[0], [pair(contents[1], contents[2])])])
    assert isinstance(loaded, Loaded)
    found = sorted(str(each) for each in loaded.masks.values() if isinstance(each, RowError))
    assert [text.rpartition(": ")[2] for text in found] == ["the image does not fit into memory"]


def test_styles_are_loaded_ahead_of_the_pair_in_hand_even_after_pairs_that_failed() -> None:
    begun: list[str] = []

    def load(uri: str) -> Future[StyleLoad]:
        begun.append(uri)
        loading: Future[StyleLoad] = Future()
        loading.set_result(RowError("NotFound", uri))
        return loading

    order = [f"{place}.jpg" for place in range(100)]
    images = StyleImages(order, load)
    for place in range(0, 60, 2):  # pairs of two styles each, of which none was taken
        images.reach(2)
        assert begun == order[: place + STYLES_AHEAD]
    images.reach(2)
    with pytest.raises(RowError, match=r"60\.jpg"):
        images.take("60.jpg")
    assert begun == order[: 61 + STYLES_AHEAD]


def test_of_the_styles_of_a_long_shard_the_recent_ones_stay_in_memory_and_no_others() -> None:
    begun: list[weakref.ref[Future[StyleLoad]]] = []
    often = 0

    def load(uri: str) -> Future[StyleLoad]:
        nonlocal often
        often += uri == "often.jpg"
        loading: Future[StyleLoad] = Future()
        begun.append(weakref.ref(loading))
        return loading

    images = StyleImages([style for place in range(200) for style in ("often.jpg", f"{place}.jpg")], load)
    for _ in range(200):
        images.reach(2)
        assert sum(each() is not None for each in begun) <= STYLES_KEPT
    assert len(begun) == 201
    assert often == 1
