"""A run in numbers, gathered from its results one part at a time: memory does not grow with the rows."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch import parquet
from stylize_batch.manifest.schema import RESULT_COLUMNS
from stylize_batch.report.selection import Selection
from stylize_batch.results import FINISHED, Totals, totals_of

LOSSES = ("content_loss", "style_loss", "content_distance")

MAX_STYLES = 100_000
"""Distinct styles that are counted one by one."""

MAX_VALUES = 2_000
"""Distinct values of a column that rows are grouped by; one with more is no label."""

MAX_NUMBERS = 20
"""The same for columns of fractional numbers."""

MAX_COLUMNS = 8
"""Columns that rows are grouped by: the first of the manifest that can be."""

Numbers1D = npt.NDArray[np.float64]


class Distribution:
    """A distribution of positive numbers as counts in bins of equal ratio: fixed memory, quantiles to within 0.5 %.

    Attributes:
        count: numbers added; those that are not finite are left out.
        total: their sum.
        low: the smallest.
        high: the largest.
    """

    _PER_DECADE = 480
    _FIRST, _LAST = -9, 9

    def __init__(self) -> None:
        self._counts = np.zeros((self._LAST - self._FIRST) * self._PER_DECADE, np.int64)
        self.count = 0
        self.total = 0.0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Numbers1D) -> None:
        """Add numbers, NaN for those that are missing."""
        values = values[np.isfinite(values)]
        if not len(values):
            return
        self.count += len(values)
        self.total += float(values.sum())
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        exponents = np.log10(np.maximum(values, 10.0**self._FIRST)) - self._FIRST
        bins = np.minimum((exponents * self._PER_DECADE).astype(np.int64), len(self._counts) - 1)
        self._counts += np.bincount(bins, minlength=len(self._counts))

    @property
    def mean(self) -> float:
        """The mean; NaN of nothing."""
        return self.total / self.count if self.count else float("nan")

    def quantile(self, share: float) -> float:
        """Return the number that this share of all numbers (0..1) does not exceed."""
        place = int(np.searchsorted(np.cumsum(self._counts), share * self.count))
        return float(np.clip(self._centres()[min(place, len(self._counts) - 1)], self.low, self.high))

    def counts(self, edges: Numbers1D) -> npt.NDArray[np.int64]:
        """Count the numbers between each two of the edges, which rise; what lies outside counts in the outermost."""
        filled = np.flatnonzero(self._counts)
        places = np.searchsorted(edges, np.clip(self._centres()[filled], self.low, self.high), "right") - 1
        places = np.clip(places, 0, len(edges) - 2)
        return np.bincount(places, self._counts[filled], minlength=len(edges) - 1).astype(np.int64)

    def _centres(self) -> Numbers1D:
        return 10.0 ** ((np.arange(len(self._counts)) + 0.5) / self._PER_DECADE + self._FIRST)


class Group(NamedTuple):
    """Rows that share a value (None: they have none) and their mean losses, NaN where none was measured."""

    value: str | None
    rows: int
    failed: int
    content_loss: float
    style_loss: float


class Groups:
    """Rows counted by a value.

    Attributes:
        overflow: rows with a value that was not counted, because there were `limit` others before.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.overflow = 0
        self._places: dict[str | None, int] = {}
        self._sums = np.zeros((64, 5))  # rows, failed, measured, content loss, style loss

    def __len__(self) -> int:
        return len(self._places)

    def add(self, values: pa.Array, rows: npt.NDArray[np.int64], facts: Numbers1D) -> None:
        """Add values of rows.

        Args:
            values: strings [n].
            rows: the row that each is of [n]; a row may have several.
            facts: of the rows [rows, 5]: 1, failed, measured, content loss, style loss.
        """
        if not len(values):
            return
        encoded = pc.dictionary_encode(values, null_encoding="encode")
        places = np.array([self._place(value) for value in encoded.dictionary.to_pylist()], np.int64)
        pairs = np.unique(np.stack([places[encoded.indices.to_numpy()], rows]), axis=1)  # a style named twice
        known = pairs[:, pairs[0] >= 0]
        self.overflow += pairs.shape[1] - known.shape[1]
        np.add.at(self._sums, known[0], facts[known[1]])

    def _place(self, value: str | None) -> int:
        place = self._places.get(value)
        if place is None:
            place = len(self._places)
            if place == self.limit:
                return -1
            self._places[value] = place
            if place == len(self._sums):
                self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        return place

    def most(self, count: int) -> list[Group]:
        """Return the groups with the most failed rows, then the most rows, at most so many."""
        sums = self._sums[: len(self)]
        order = np.lexsort((-sums[:, 0], -sums[:, 1]))[:count]
        values = list(self._places)
        with np.errstate(invalid="ignore"):
            means = sums[:, 3:] / sums[:, 2:3]
        return [
            Group(values[place], int(sums[place, 0]), int(sums[place, 1]), *map(float, means[place]))
            for place in order
        ]


class RunNumbers:
    """Everything the report says in numbers, and the pairs it shows.

    Attributes:
        totals: counts and sums.
        losses: by name, the distribution of each loss.
        styles: rows by style; a row with several styles counts for each, one without any under None.
        finished: when each part was written (seconds since 1970) and the pictures in it.
        selection: the pairs to show.
    """

    def __init__(self, parts: Iterable[pa.Table]) -> None:
        """Read all parts once.

        Args:
            parts: results, with their schema's metadata.
        """
        self.totals = Totals()
        self.losses = {name: Distribution() for name in LOSSES}
        self.styles = Groups(MAX_STYLES)
        self.finished: list[tuple[float, int]] = []
        self.selection = Selection()
        self._columns: dict[str, Groups | None] | None = None
        for part in parts:
            if len(part):
                self._add(part.combine_chunks())

    def columns(self) -> dict[str, Groups]:
        """Return the groups of rows by each column that groups them: with two values or more, and far fewer than rows."""
        pairs = self.totals.pairs
        found = {
            name: groups
            for name, groups in (self._columns or {}).items()
            if groups is not None and 2 <= len(groups) <= max(2, pairs // 2)
        }
        return dict(list(found.items())[:MAX_COLUMNS])

    def _add(self, part: pa.Table) -> None:
        totals = totals_of(part)
        self.totals.add(totals)
        written = parquet.note(part, FINISHED)
        if written is not None:
            self.finished.append((float(written), totals.ok))
        losses = {name: part[name].to_numpy().astype(np.float64) for name in LOSSES}
        for name, values in losses.items():
            self.losses[name].add(values)
        failed = pc.equal(part["status"], "failed").to_numpy()
        measured = np.isfinite(losses["style_loss"])
        facts = np.stack(
            [
                np.ones(len(part)),
                failed,
                measured,
                np.where(measured, losses["content_loss"], 0.0),
                np.where(measured, losses["style_loss"], 0.0),
            ],
            axis=1,
        )
        self._add_styles(part["style"].combine_chunks(), facts)
        self._add_columns(part, facts)
        self.selection.add(part, losses, totals.kinds)

    def _add_styles(self, styles: pa.ListArray, facts: Numbers1D) -> None:
        rows = pc.list_parent_indices(styles).to_numpy().astype(np.int64)
        self.styles.add(pc.list_flatten(styles), rows, facts)
        without = np.setdiff1d(np.arange(len(styles)), rows)
        if len(without):
            self.styles.add(pa.nulls(len(without), pa.string()), without, facts)

    def _add_columns(self, part: pa.Table, facts: Numbers1D) -> None:
        if self._columns is None:
            self._columns = {
                name: Groups(limit)
                for name in sorted_columns(part.schema.names)
                if (limit := _most_values(part.schema.field(name).type))
            }
        rows = np.arange(len(part))
        for name, groups in self._columns.items():
            if groups is None:
                continue
            groups.add(pc.cast(part[name].combine_chunks(), pa.string()), rows, facts)
            if groups.overflow:
                self._columns[name] = None


def sorted_columns(names: Sequence[str]) -> list[str]:
    """Return the columns worth grouping by, labels and splits first, α last: the manifest's own and α."""
    own = [name for name in names if name not in RESULT_COLUMNS]
    first = [name for name in ("label", "split") if name in own]
    return [*first, *(name for name in own if name not in first), "alpha"]


def _most_values(kind: pa.DataType) -> int:
    """Return how many values a column of a type may have for its rows to be grouped by them; 0 for none."""
    if pa.types.is_floating(kind):
        return MAX_NUMBERS
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return MAX_VALUES if text or pa.types.is_integer(kind) or pa.types.is_boolean(kind) else 0
