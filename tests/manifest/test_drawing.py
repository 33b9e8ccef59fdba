"""Drawing: the same seed gives the same pairs everywhere, every content its number of styles, every style its share."""

from __future__ import annotations

import time
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.errors import UsageError
from stylize_batch.manifest.drawing import Group, draw, draw_alpha, make_pools, seeded

KEYS = ["train/dog/0001.jpg", "train/dog/0002.jpg", "val/cat/ü.png"]


def test_a_seed_gives_these_pairs_on_every_machine() -> None:
    contents = seeded(7, KEYS)
    assert contents.tolist() == [7902405043712844234, 9843784114476940934, 12922290294762865515]
    styles = [[64302, 52784, 64930, 71469], [16626, 63528, 27711, 3443], [45045, 77225, 17915, 2400]]
    assert draw(contents, 80_000, 4).tolist() == styles
    assert draw(seeded(8, KEYS), 80_000, 4).tolist() != styles
    assert draw(contents, 7, 6).tolist() == [[3, 6, 1, 4, 5, 2], [3, 5, 4, 0, 6, 2], [0, 3, 4, 2, 1, 6]]
    alpha = draw_alpha(contents, np.arange(3), 0.5, 1.0)
    assert alpha.tolist() == [0.9805248975753784, 0.5161668658256531, 0.5089777112007141]


@given(styles=st.integers(1, 40), count=st.integers(1, 40), seed=st.integers(0, 2**63))
def test_no_content_gets_a_style_twice(styles: int, count: int, seed: int) -> None:
    count = min(count, styles)
    drawn = draw(seeded(seed, [str(key) for key in range(50)]), styles, count)
    assert drawn.shape == (50, count)
    assert drawn.min() >= 0
    assert drawn.max() < styles
    assert all(len(set(row)) == count for row in drawn.tolist())


def test_many_styles_per_content_cost_in_proportion_to_their_number() -> None:
    contents = seeded(0, [str(key) for key in range(64)])
    began = time.process_time()
    drawn = draw(contents, 2000, 2000)
    assert time.process_time() - began < 3  # and 16 s where each step looks at all earlier ones
    assert np.array_equal(np.sort(drawn), np.tile(np.arange(2000), (64, 1)))


@given(st.integers(1, 20), st.integers(0, 19))
def test_asking_for_more_styles_keeps_those_drawn_before(styles: int, fewer: int) -> None:
    contents = seeded(0, KEYS)
    assert np.array_equal(
        draw(contents, styles, styles)[:, :fewer], draw(contents, styles, min(fewer, styles))
    )


@pytest.mark.parametrize(("styles", "count"), [(40, 1), (40, 3), (7, 6)])
def test_styles_are_used_evenly_at_every_step(styles: int, count: int) -> None:
    contents = 20_000
    drawn = draw(seeded(1, [f"n{key:08d}.JPEG" for key in range(contents)]), styles, count)
    expected = contents / styles
    for step in range(count):
        used = np.bincount(drawn[:, step], minlength=styles)
        assert np.abs(used - expected).max() < 5 * np.sqrt(expected)


def test_styles_of_one_content_are_independent() -> None:
    drawn = draw(seeded(3, [str(key) for key in range(30_000)]), 6, 2)
    pairs = np.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36).reshape(6, 6)
    assert np.diag(pairs).sum() == 0
    expected = 30_000 / 30
    assert np.abs(pairs[~np.eye(6, dtype=bool)] - expected).max() < 5 * np.sqrt(expected)


def test_alpha_is_even_over_its_range() -> None:
    alpha = draw_alpha(seeded(0, [str(key) for key in range(20_000)]), np.zeros(20_000, np.int64), 0.2, 0.6)
    assert alpha.dtype == np.float32
    assert 0.2 <= alpha.min() < 0.201
    assert 0.599 < alpha.max() <= 0.6 + 1e-7
    assert np.abs(np.histogram(alpha, 10)[0] - 2000).max() < 250


def groups(labels: str, split: str | None = None) -> list[Group]:
    return [Group(split, label) for label in labels]


def pools(
    contents: dict[Group, int],
    styles: list[Group],
    least: int = 1,
    *,
    by_label: bool = False,
    splits: bool = False,
) -> dict[Group, list[int]]:
    order = seeded(0, [str(number) for number in range(len(styles))])
    made = make_pools(contents, styles, order, least, by_label=by_label, separate_splits=splits)
    return {group: pool.tolist() for group, pool in made.items()}


def test_by_default_every_content_may_get_every_style() -> None:
    assert pools({Group("train", "a"): 2, Group(None, None): 1}, groups("xyx")) == {
        Group("train", "a"): [0, 1, 2],
        Group(None, None): [0, 1, 2],
    }


def test_by_label_same_names_meet_and_the_rest_is_dealt_without_repetition() -> None:
    found = pools(dict.fromkeys(groups("abcd"), 1), groups("ayxzyx"), by_label=True)
    assert found[Group(None, "a")] == [0]
    assert sorted(found[Group(None, label)] for label in "bcd") == [[1, 4], [2, 5], [3]]


def test_by_label_styles_are_dealt_again_when_there_are_too_few() -> None:
    found = pools(dict.fromkeys(groups("abcd"), 1), groups("xy"), by_label=True)
    assert sorted(found.values()) == [[0], [0], [1], [1]]


@given(train=st.integers(1, 500), val=st.integers(1, 500), styles=st.integers(4, 60))
def test_splits_share_no_style_and_leave_none_out(train: int, val: int, styles: int) -> None:
    contents = {Group("train", "a"): train, Group("val", "a"): val}
    found = list(pools(contents, groups("x" * styles), 2, splits=True).values())
    assert sorted(found[0] + found[1]) == list(range(styles))
    assert min(map(len, found)) >= 2
    assert len(found[0]) == pytest.approx(2 + (styles - 4) * train / (train + val), abs=1)


def test_styles_that_come_in_splits_stay_in_theirs() -> None:
    styles = groups("xx", "val") + groups("x", "train")
    found = pools({Group("train", None): 9, Group("val", None): 1}, styles, splits=True)
    assert found == {Group("train", None): [2], Group("val", None): [0, 1]}


def test_splits_and_labels_together() -> None:
    contents = {Group(split, label): 1 for split in ("train", "val") for label in "ab"}
    found = pools(contents, groups("ab" * 4), 2, by_label=True, splits=True)
    assert all(len(pool) == 2 for pool in found.values())
    assert sorted(chain(*found.values())) == list(range(8))


@pytest.mark.parametrize(
    ("contents", "styles", "least", "by_label", "splits", "message"),
    [
        (
            groups("a"),
            groups("xx"),
            3,
            False,
            False,
            "3 styles per content are asked for, but there are only 2;",
        ),
        (groups("a"), groups("axx"), 2, True, False, "only 1 for the contents of label 'a';"),
        (
            groups("a", "train") + groups("a", "val"),
            groups("xxx"),
            2,
            False,
            True,
            "for the contents of split 'val';",
        ),
        (groups("a", "val"), groups("x", "train"), 1, False, True, "only 0 for the contents of split 'val';"),
    ],
)
def test_more_styles_than_there_are_is_refused(
    contents: list[Group], styles: list[Group], least: int, by_label: bool, splits: bool, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        pools(dict.fromkeys(contents, 1), styles, least, by_label=by_label, splits=splits)
    assert message in str(caught.value)
