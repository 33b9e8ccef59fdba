"""Which pairs are shown: the same ones from any cutting into parts, never more than the caps."""

from __future__ import annotations

import random

import numpy as np

from stylize_batch.report.selection import EXAMPLES, EXTREMES, RANKED, SAMPLE, Selection
from stylize_batch.results import Outcome
from tests.conftest import Row
from tests.report.roots import identity, part, row


def rows() -> list[Row]:
    found: list[Row] = []
    for number in range(400):
        outcome = Outcome(None, 1.0 + number, 1000.0 - number, 1.0, 20, 30)
        if number % 4 == 0:
            kind = "NotFound" if number % 8 else "Undecodable"
            outcome = Outcome(error=f"{kind}: {number}")
        found.append(row(f"c{number // 2:03}", [f"s{number % 2}"], outcome))
    return found


def select(rows: list[Row], size: int) -> Selection:
    selection = Selection()
    for start in range(0, len(rows), size):
        table = part(rows[start : start + size])
        losses = {name: table[name].to_numpy().astype(np.float64) for name in RANKED}
        kinds = {str(error).partition(":")[0] for error in table["error"].to_pylist() if error}
        selection.add(table, losses, kinds)
    return selection


def test_the_sample_is_the_same_whatever_the_parts_and_even_over_the_rows() -> None:
    shuffled = rows()
    random.Random(0).shuffle(shuffled)
    one, other = select(rows(), 400).sample.rows, select(shuffled, 64).sample.rows
    assert one == other
    assert [each["pair_id"] for each in one] == sorted(map(identity, rows()))[:SAMPLE]
    assert 30 < sum(each["status"] == "failed" for each in one) < 70


def test_the_extremes_are_those_of_all_rows() -> None:
    selection = select(rows(), 64)
    assert [each["content_loss"] for each in selection.lowest["content_loss"].rows] == [2, 3, 4, 6]
    assert [each["style_loss"] for each in selection.highest["style_loss"].rows] == [999, 998, 997, 995]
    assert [each["content_loss"] for each in selection.highest["content_loss"].rows] == [400, 399, 398, 396]


def test_no_more_rows_are_shown_than_the_caps_allow_and_none_twice() -> None:
    selection = select(rows(), 64)
    chosen = selection.rows()
    assert len({each["pair_id"] for each in chosen}) == len(chosen)
    assert len(chosen) <= SAMPLE + 4 * EXTREMES + 2 * EXAMPLES
    assert {kind: len(kept.rows) for kind, kept in selection.failed.items()} == {
        "NotFound": EXAMPLES, "Undecodable": EXAMPLES,
    }  # fmt: skip


def test_examples_of_a_failure_are_of_different_contents() -> None:
    same = [row("c", [f"s{n}"], Outcome(error="NotFound: gone")) for n in range(9)]
    other = [row("d", ["s"], Outcome(error="NotFound: gone"))]
    assert {each["content"] for each in select([*same, *other], 10).failed["NotFound"].rows} == {"c", "d"}
