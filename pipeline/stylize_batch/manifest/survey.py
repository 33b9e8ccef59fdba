"""A first look at all contents: what must be known of them before the first is paired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stylize_batch.errors import UsageError, counted
from stylize_batch.manifest.choosing import Map, groups_of
from stylize_batch.manifest.collect import Collected
from stylize_batch.manifest.drawing import Group, Hashes, seeded
from stylize_batch.manifest.items import KEY, URI
from stylize_batch.manifest.naming import claims, folded, hashes, picture_stem, safe_key
from stylize_batch.manifest.pairing import Pairing


class Survey(NamedTuple):
    """What must be known of all contents before the first is paired.

    Attributes:
        groups: contents by split and label.
        taken: hashes of picture names that more than one content would have.
        contents: that get rows.
        last: the highest seeded hash of those, if they are a sample.
    """

    groups: Counter[Group]
    taken: frozenset[int]
    contents: int
    last: np.uint64 | None


def survey(contents: Collected, pairing: Pairing, room: int, styles: list[str], mapped: Map | None) -> Survey:
    """Look at all contents, which get pictures of names with so much room.

    Raises:
        UsageError: a key is there twice, or is no name for a picture, or the contents are not those of the map.
    """
    groups: Counter[Group] = Counter()
    keys: list[Hashes] = []
    draws: list[Hashes] = []
    claimed: list[Hashes] = []
    missing: list[str] = []
    for table in contents.tables():
        batch: list[str] = table[KEY].to_pylist()
        groups.update(groups_of(table))
        keys.append(hashes(batch))
        pictures = [picture_stem(safe_key(key, room)) for key in batch]
        claimed.append(hashes(name for picture in pictures for name in claims(*picture)))
        if pairing.keep_originals:
            claimed.append(hashes(_claims_of_originals(pictures, styles)))
        if pairing.sample is not None:
            draws.append(seeded(pairing.seed, batch))
        if mapped is not None:
            missing += [key for key in batch if not mapped.get(key)]
    twice = _repeated(keys)
    if len(twice):
        seen: dict[str, str] = {}
        for table in contents.tables():
            for key, uri in zip(table[KEY].to_pylist(), table[URI].to_pylist(), strict=True):
                if key in seen:
                    advice = (
                        "keep one row for each image"
                        if seen[key] == uri
                        else f"write {seen[key]} and {uri} as paths from a folder above both, and name it with --content-root"
                    )
                    raise UsageError(f"{contents.source} names {key!r} twice; {advice}")
                if hashes([key])[0] in twice:
                    seen[key] = uri
    if missing:
        raise UsageError(
            f"the style map has no styles for {counted(len(missing), 'content')}, such as {missing[0]!r}"
        )
    if mapped is not None and len(mapped) > contents.items:
        for table in contents.tables():
            for key in table[KEY].to_pylist():
                mapped.pop(key)
        raise UsageError(
            f"the style map names {counted(len(mapped), 'content that is', 'contents that are')} not in {contents.source}, such as {next(iter(mapped))!r}"
        )
    count, last = contents.items, None
    if pairing.sample is not None and pairing.sample < count:
        count = pairing.sample
        last = np.partition(np.concatenate(draws), count - 1)[count - 1]
    return Survey(groups, frozenset(map(int, _repeated(claimed))), count, last)


def _claims_of_originals(pictures: list[tuple[str, str]], styles: list[str]) -> Iterator[str]:
    """Yield the pictures whose stylized siblings an original's name could be: `dog-wave` may be `dog` in `wave`."""
    endings = set(map(folded, styles))
    for stem, suffix in pictures:
        sibling, _, ending = stem.rpartition("-")
        if folded(ending) in endings:
            yield from claims(sibling, suffix)


def _repeated(batches: list[Hashes]) -> Hashes:
    joined = np.sort(np.concatenate(batches))
    return np.unique(joined[1:][joined[1:] == joined[:-1]])
