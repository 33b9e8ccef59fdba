"""The styles to choose from, and which of them each content gets: those of a map, or drawn from pools."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stylize_batch.errors import UsageError
from stylize_batch.manifest.collect import Collected
from stylize_batch.manifest.drawing import Group, Hashes, Integers, draw, make_pools, seeded
from stylize_batch.manifest.items import KEY, URI
from stylize_batch.manifest.lists import read_map
from stylize_batch.manifest.pairing import Pairing
from stylize_batch.parquet import with_python_times

Map = dict[str, list[int]]
"""Numbers of the styles that each content gets, by its key."""

Choose = Callable[[list[str], list[Group], Hashes], tuple[Integers, Integers]]
"""(keys, groups, hashes) of contents → for each pair, the number of its content among them and of its style."""


class Styles(NamedTuple):
    """All styles, sorted by key, so that their numbers do not depend on the listing's order."""

    keys: list[str]
    uris: list[str]
    groups: list[Group]


def load_styles(found: Collected) -> Styles:
    """Read what was collected.

    Raises:
        UsageError: two styles have one key.
    """
    rows: list[tuple[str, str, Group]] = []
    for table in found.tables():
        columns = [table[KEY].to_pylist(), table[URI].to_pylist(), groups_of(table)]
        rows += zip(*columns, strict=True)
    rows.sort(key=lambda row: row[0])
    for one, other in pairwise(rows):
        if one[0] == other[0]:
            advice = (
                "remove one"
                if one[1] == other[1]
                else f"write {one[1]} and {other[1]} as paths from a folder above both, and put the list there"
            )
            raise UsageError(f"{found.source} names the style {one[0]!r} twice; {advice}")
    return Styles([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def groups_of(table: pa.Table) -> list[Group]:
    """Return the split and label of each item."""
    empty = [None] * len(table)
    known = with_python_times(
        table.select([name for name in ("split", "label") if name in table.column_names])
    )
    split, label = (
        known[name].to_pylist() if name in known.column_names else empty for name in ("split", "label")
    )
    return [Group(_hashable(one), _hashable(other)) for one, other in zip(split, label, strict=True)]


def _hashable(value: Any) -> Any:
    if value != value or value == "":  # NaN, or an empty field of a CSV file: no label
        return None
    return str(value) if isinstance(value, list | dict) else value


def load_map(uri: str, styles: Styles, source: str) -> Map:
    """Read which styles each content gets: rows of `content` and `style`, or a JSON object.

    Raises:
        UsageError: it cannot be read, or names a style that is not there or twice.
    """
    numbers = {key: number for number, key in enumerate(styles.keys)}
    found: Map = {}
    for row, (content, names) in enumerate(read_map(uri)):
        given = found.setdefault(content, [])
        for name in names:
            number = numbers.get(name)
            if number is None:
                raise UsageError(
                    f"{uri}, row {row}: the style {name!r} is not in {source}; names there are like {styles.keys[0]!r}"
                )
            if number in given:
                raise UsageError(f"{uri}, row {row}: {content!r} gets the style {name!r} twice; remove one")
            given.append(number)
    if not any(found.values()):
        raise UsageError(f"{uri} names no styles")
    return found


def most_styles(pairing: Pairing, styles: int, mapped: Map | None) -> int:
    """Return how many styles a content may get."""
    if mapped is not None:
        return max(map(len, mapped.values()))
    return styles if pairing.all_pairs else pairing.styles_per_content or 1


def chooser(pairing: Pairing, styles: Styles, groups: Counter[Group], mapped: Map | None) -> Choose:
    """Return what chooses styles for contents of these groups.

    Raises:
        UsageError: labels or splits are asked for and missing, or there are too few styles.
    """
    if mapped is not None:

        def look_up(keys: list[str], _groups: list[Group], _hashes: Hashes) -> tuple[Integers, Integers]:
            counts = [len(mapped[key]) for key in keys]
            return np.repeat(np.arange(len(keys)), counts), np.concatenate([mapped[key] for key in keys])

        return look_up
    if pairing.style_by_label:
        for who, found in (("contents", groups), ("styles", styles.groups)):
            if all(group.label is None for group in found):
                raise UsageError(
                    f"--style-by-label: the {who} have no labels; put them in folders by class, or give a list with "
                    "a column 'label'"
                )
    if pairing.separate_splits and all(group.split is None for group in groups):
        raise UsageError(
            "--separate-splits: the contents have no splits; put them in folders such as train/ and val/, or give a "
            "list with a column 'split'"
        )
    count = None if pairing.all_pairs else pairing.styles_per_content or 1
    pools = make_pools(
        groups,
        styles.groups,
        seeded(pairing.seed, styles.keys),
        count or 1,
        by_label=pairing.style_by_label,
        separate_splits=pairing.separate_splits,
    )

    def from_pools(keys: list[str], members: list[Group], contents: Hashes) -> tuple[Integers, Integers]:
        places: defaultdict[Group, list[int]] = defaultdict(list)
        for place, group in enumerate(members):
            places[group].append(place)
        rows: list[Integers] = []
        chosen: list[Integers] = []
        for group, each in places.items():
            pool, at = pools[group], np.array(each)
            if count is None:
                numbers = np.tile(pool, len(at))
            else:
                numbers = pool[draw(contents[at], len(pool), count)].ravel()
            rows.append(np.repeat(at, len(numbers) // len(at)))
            chosen.append(numbers)
        order = np.argsort(np.concatenate(rows), kind="stable")
        return np.concatenate(rows)[order], np.concatenate(chosen)[order]

    return from_pools
