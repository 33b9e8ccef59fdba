"""Which styles a content gets: drawn by a hash of (seed, content key), so equal on every machine, in any order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stylize_batch.errors import UsageError, counted
from stylize_batch.manifest.naming import hashes

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_STEP = 0x9E3779B97F4A7C15
_ALPHA = np.uint64(0xA1FA)
"""Separates the draws of α from those of styles."""


class Group(NamedTuple):
    """What pools are made for: a content's split and label, None where it has none."""

    split: Hashable
    label: Hashable


def seeded(seed: int, keys: Sequence[str]) -> Hashes:
    """Return a 64-bit hash of (seed, key) for each key."""
    return hashes(f"{seed}\0{key}" for key in keys)


def draw(contents: Hashes, styles: int, count: int) -> Integers:
    """Draw styles for each content without repetition: [N, count] numbers below `styles`, each as likely.

    The first `count` steps of a Fisher-Yates shuffle: a larger count adds styles and keeps those drawn before.
    """
    steps = np.arange(count)
    draws = _mix(contents[:, None] + (steps + 1).astype(np.uint64) * np.uint64(_STEP))
    places = steps + (draws % (styles - steps).astype(np.uint64)).astype(np.int64)
    # Of each content's styles, only the places that some step looks at are kept, each once.
    first = styles * np.arange(len(contents))[:, None]
    looked_at, at = np.unique(np.stack([first + steps, first + places]), return_inverse=True)
    held = looked_at % styles
    here, there = at.reshape(2, *places.shape)
    chosen = np.empty_like(places)
    for step in range(count):
        chosen[:, step] = held[there[:, step]]
        held[there[:, step]] = held[here[:, step]]
    return chosen


def draw_alpha(contents: Hashes, ranks: Integers, low: float, high: float) -> npt.NDArray[np.float32]:
    """Draw α for each pair evenly from low..high, by its content's hash and its rank among the content's pairs."""
    numbers = _mix(_mix(contents ^ _ALPHA) + (ranks + 1).astype(np.uint64) * np.uint64(_STEP))
    return (low + (high - low) * (numbers >> np.uint64(11)) * 2.0**-53).astype(np.float32)


def _mix(x: Hashes) -> Hashes:
    """Scramble 64-bit numbers (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def make_pools(
    contents: Mapping[Group, int],
    styles: Sequence[Group],
    order: Hashes,
    least: int,
    *,
    by_label: bool,
    separate_splits: bool,
) -> dict[Group, Integers]:
    """Return the styles that each group of contents may get, as numbers in rising order.

    Args:
        contents: contents of each group.
        styles: split and label of each style.
        order: seeded hashes of the styles, in whose order they are dealt.
        least: styles a pool must have.
        by_label: a content label gets the styles of one style label: the one of its name, else one dealt in turn.
        separate_splits: no style is in the pools of two splits. Styles that come in splits keep theirs; others are
            dealt in proportion to the contents.

    Raises:
        UsageError: a pool would have fewer than `least` styles.
    """
    numbers = np.argsort(order)
    pools: dict[tuple[Hashable, Hashable], Integers] = {(None, None): numbers}
    style_label: dict[Hashable, Hashable] = {}
    if by_label:
        members: defaultdict[Hashable, list[int]] = defaultdict(list)
        for number in numbers:
            members[styles[number].label].append(number)
        pools = {(None, label): np.array(each) for label, each in members.items()}
        style_label = _deal_labels({group.label for group in contents}, list(members))
    if separate_splits:
        sizes: Counter[Hashable] = Counter()
        for group in sorted(contents, key=lambda group: str(group.split)):
            sizes[group.split] += contents[group]
        own = any(style.split is not None for style in styles)
        cut = _own_splits if own else partial(_dealt_splits, least=least)
        pools = {
            (split, label): part
            for (_, label), pool in pools.items()
            for split, part in cut(pool, styles, sizes).items()
        }
    pools = {key: np.sort(pool) for key, pool in pools.items()}
    chosen: dict[Group, Integers] = {}
    for group in contents:
        pool = pools[group.split if separate_splits else None, style_label.get(group.label)]
        if len(pool) < least:
            traits = ((separate_splits, "split", group.split), (by_label, "label", group.label))
            of = " and ".join(f"{name} '{value}'" for asked, name, value in traits if asked)
            raise UsageError(
                f"{counted(least, 'style per content is', 'styles per content are')} asked for, "
                f"but there are only {len(pool)}"
                f"{f' for the contents of {of}' if of else ''}; lower --styles-per-content or add styles"
            )
        chosen[group] = pool
    return chosen


def _deal_labels(contents: set[Hashable], styles: Sequence[Hashable]) -> dict[Hashable, Hashable]:
    """Give each content label a style label; one that is added can change those of the others."""
    names = {str(label): label for label in styles}
    same = {label: names[str(label)] for label in contents if str(label) in names}
    taken = set(same.values())
    free = [label for label in styles if label not in taken] or styles
    rest = sorted(contents - set(same), key=str)
    return same | {label: free[turn % len(free)] for turn, label in enumerate(rest)}


def _own_splits(
    pool: Integers, styles: Sequence[Group], sizes: Mapping[Hashable, int]
) -> dict[Hashable, Integers]:
    return {split: pool[[styles[number].split == split for number in pool]] for split in sizes}


def _dealt_splits(
    pool: Integers, styles: Sequence[Group], sizes: Mapping[Hashable, int], least: int
) -> dict[Hashable, Integers]:
    """Cut a pool into slices, one a split: `least` styles each, the rest in proportion to the splits' contents.

    So contents that are added, and another `least`, move styles from one split to another.
    """
    spare = max(0, len(pool) - least * len(sizes))
    ends = [
        least * place + spare * before // sum(sizes.values())
        for place, before in enumerate(accumulate(sizes.values()), 1)
    ]
    return {split: pool[begin:end] for split, begin, end in zip(sizes, [0, *ends[:-1]], ends, strict=True)}
