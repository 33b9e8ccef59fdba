"""Which pairs the report shows: a sample, the extremes of the losses, and examples of each kind of failure."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch.parquet import with_python_times

Row = dict[str, Any]

SAMPLE = 200
"""Pairs drawn from all rows: those with the smallest identities, which are hashes, so that every run draws the same."""

EXTREMES = 4
"""Pairs shown at each end of a loss."""

EXAMPLES = 4
"""Failed rows shown of each kind."""

RANKED = ("style_loss", "content_loss")
"""The losses whose extremes are shown."""


class Smallest:
    """The rows with the smallest keys of all rows that were added. Of equal keys the first added stay."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[tuple[Any, Row]] = []

    def add(self, keys: npt.NDArray[Any], rows: pa.Table) -> None:
        """Add rows with their keys (numbers or strings; NaN leaves the row out)."""
        order = np.argsort(keys, kind="stable")[: self._count]
        if keys.dtype.kind == "f":
            order = order[~np.isnan(keys[order])]
        if len(self._kept) == self._count:
            order = order[keys[order] < self._kept[-1][0]]
        if len(order):
            found = zip(keys[order].tolist(), rows.take(pa.array(order)).to_pylist(), strict=True)
            self._kept = sorted([*self._kept, *found], key=lambda each: each[0])[: self._count]

    @property
    def rows(self) -> list[Row]:
        """The rows, by rising key."""
        return [row for _, row in self._kept]


class Selection:
    """The pairs to show, chosen while the results pass by.

    Attributes:
        sample: of all rows.
        lowest: by loss.
        highest: by loss.
        failed: by kind.
    """

    def __init__(self) -> None:
        self.sample = Smallest(SAMPLE)
        self.lowest = {name: Smallest(EXTREMES) for name in RANKED}
        self.highest = {name: Smallest(EXTREMES) for name in RANKED}
        self.failed: dict[str, Smallest] = {}

    def add(
        self, part: pa.Table, losses: Mapping[str, npt.NDArray[np.float64]], kinds: Iterable[str]
    ) -> None:
        """Add the rows of a part with their losses and the kinds of failure that occur in it."""
        shown = with_python_times(
            part.select([field.name for field in part.schema if not _is_binary(field.type)])
        )
        self.sample.add(_identities(shown), shown)
        for name in RANKED:
            self.lowest[name].add(losses[name], shown)
            self.highest[name].add(-losses[name], shown)
        for kind in kinds:
            rows = _one_per_content(shown.filter(pc.starts_with(shown["error"], f"{kind}:")))
            self.failed.setdefault(kind, Smallest(EXAMPLES)).add(_identities(rows), rows)

    def rows(self) -> list[Row]:
        """Return every chosen row once: pictures first, and of those the sample."""
        chosen = [self.sample, *self.lowest.values(), *self.highest.values(), *self.failed.values()]
        rows = {row["pair_id"]: row for each in chosen for row in each.rows}
        return sorted(rows.values(), key=lambda row: row["status"] != "ok")


def _identities(rows: pa.Table) -> npt.NDArray[np.str_]:
    return np.array(rows["pair_id"].to_pylist(), dtype=np.str_)


def _one_per_content(rows: pa.Table) -> pa.Table:
    """Keep a content's first row: all its rows lie in one part, and often fail alike."""
    _, first = np.unique(np.array(rows["content"].to_pylist(), dtype=np.str_), return_index=True)
    return rows.take(pa.array(np.sort(first)))


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
