"""Building a manifest from a dataset: contents and styles are listed, paired, named and written."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

from stylize_batch.errors import UsageError, counted
from stylize_batch.manifest.collect import Collected, collect
from stylize_batch.manifest.items import KEY, URI
from stylize_batch.manifest.lists import read_map
from stylize_batch.manifest.naming import (
    MARK,
    claims,
    folded,
    hashes,
    marked,
    picture_stem,
    safe_key,
    style_names,
)
from stylize_batch.manifest.pairing import Group, Hashes, Integers, draw, draw_alpha, make_pools, seeded
from stylize_batch.manifest.reach import refuse_credentials
from stylize_batch.manifest.schema import check_schema
from stylize_batch.parquet import with_python_times
from stylize_batch.root import Root, replacing
from stylize_batch.storage import absolute, failure, filesystem, kind, parent

if TYPE_CHECKING:
    from stylize_batch.progress import Observer

ORIGINAL = -1
"""In place of a style's number: the content as it is."""

ROW_GROUP = 131_072
"""Rows of a row group, and about what is in memory at once."""


BUILT_WITH = b"stylize_batch.built_with"
"""Parquet metadata key of the sources and settings that a manifest was built with, as JSON."""


def no_truth(value: Any) -> Any:
    """Return a setting that is a number, unless it is a bool, which pydantic takes for 0 or 1.

    Raises:
        ValueError: it is one.
    """
    if isinstance(value, bool):
        raise ValueError("it is true or false (YAML's yes or no); give a number")
    return value


Whole = Annotated[int, BeforeValidator(no_truth)]
Real = Annotated[float, BeforeValidator(no_truth)]


class Pairing(BaseModel):
    """Which contents there are and which styles each gets, with the names of `manifest build`'s options.

    Attributes:
        styles_per_content: styles drawn for each content, no style twice.
        all_pairs: every style for every content instead.
        style_map: list of contents and their styles instead: CSV, JSON, JSON lines or Parquet.
        seed: of everything drawn.
        style_by_label: contents of one label get styles of one label.
        separate_splits: no style is shared between splits.
        alpha: content-style trade-off: a number, or a range `0.5..1` it is drawn from.
        preserve_color: value of the column of that name.
        keep_originals: each content as it is, beside its stylized pictures.
        sample: only so many contents, drawn; they get the styles they would get among all.
        content_root: what the relative paths of a list of contents start from; the list's folder by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    styles_per_content: Whole | None = None
    all_pairs: bool = False
    style_map: str | None = None
    seed: Whole = 0
    style_by_label: bool = False
    separate_splits: bool = False
    alpha: str | None = None
    preserve_color: bool = False
    keep_originals: bool = False
    sample: Whole | None = None
    content_root: str | None = None

    @field_validator("alpha", mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value


@dataclass
class Built:
    """What was built.

    Attributes:
        output: the manifest.
        rows: of it.
        contents: that are in it.
        styles: to choose from.
        used: styles that are in it.
        splits: contents of each.
        labels: different ones of the contents.
        notes: one line for each thing a user should know of.
        problems: one line for each thing that was there and could not be read.
    """

    output: str
    rows: int
    contents: int
    styles: int
    used: int
    splits: dict[str, int]
    labels: int
    notes: list[str]
    problems: list[str]


def build(
    content: str,
    style: str,
    output: str,
    pairing: Pairing,
    *,
    unpack: str | None = None,
    observer: Observer,
) -> Built:
    """Pair a source of contents with a source of styles and write the manifest, whole or not at all.

    Args:
        content: folder, list, COCO annotations or archives; see `collect`.
        style: the same.
        output: path or URI of the manifest; what lies below its folder is named relative to it.
        pairing: which styles each content gets.
        unpack: folder or URI that archives are extracted to.
        observer: hears of progress.

    Raises:
        UsageError: a source, an option or their combination cannot be used; nothing was written.
        JobFailedError: archives could not be unpacked to the end; repeating the call goes on.
    """
    alpha = _checked(pairing)
    refuse_credentials(
        content=content,
        style=style,
        output=output,
        style_map=pairing.style_map,
        content_root=pairing.content_root,
        unpack=unpack,
    )
    settings = settings_of(content, style, pairing, unpack)
    if not output.endswith(".parquet"):
        raise UsageError(f"-o {output}: a manifest's name ends in .parquet")
    if absolute(output) in {absolute(each) for each in (content, style, pairing.style_map) if each}:
        raise UsageError(f"-o {output} is what the manifest is built of; give it another name")
    read_settings(output)  # only a manifest that was built may be replaced
    unpacked = Root(unpack) if unpack else None
    with tempfile.TemporaryDirectory(prefix="stylize-batch-build-", ignore_cleanup_errors=True) as folder:
        listed = collect(style, "style", Path(folder), unpacked=unpacked, observer=observer)
        styles = _load_styles(listed)
        contents = collect(
            content, "content", Path(folder), root=pairing.content_root, unpacked=unpacked, observer=observer
        )
        mapped = _load_map(pairing.style_map, styles, style) if pairing.style_map else None
        most = _most_styles(pairing, len(styles.keys), mapped) + pairing.keep_originals
        names = style_names(styles.keys) if most > 1 else None
        room = MARK + (1 + max(len(name.encode()) for name in names) if names else 0)
        survey = _survey(contents, pairing, room, names or [], mapped)
        choose = _chooser(pairing, styles, survey.groups, mapped)
        rows = _Rows(parent(absolute(output)), pairing, alpha, styles, names, room)
        tables = rows.tables(contents, survey, choose, max(1, ROW_GROUP // most))
        observer.phase("Pairing", survey.contents)
        _put(tables, output, settings, lambda: observer.advance(rows.contents, 0))
    splits: Counter[str] = Counter()
    for group, count in rows.groups.items():
        if group.split is not None:
            splits[str(group.split)] += count
    return Built(
        output=absolute(output),
        rows=rows.pairs,
        contents=rows.contents,
        styles=len(styles.keys),
        used=int(rows.used.sum()),
        splits=dict(splits),
        labels=len({group.label for group in rows.groups} - {None}),
        notes=listed.notes + contents.notes,
        problems=listed.problems + contents.problems,
    )


def settings_of(content: str, style: str, pairing: Pairing, unpack: str | None = None) -> dict[str, Any]:
    """Return what decides a manifest, besides what lies at its sources: equal settings build equal manifests."""
    places = {"content_root": pairing.content_root, "style_map": pairing.style_map, "unpack": unpack}
    drawn = not pairing.all_pairs and pairing.style_map is None
    return {
        "content": absolute(content),
        "style": absolute(style),
        **pairing.model_dump(),
        "styles_per_content": (pairing.styles_per_content or 1) if drawn else None,
        **{name: place and absolute(place) for name, place in places.items()},
    }


def read_settings(manifest: str) -> dict[str, Any] | None:
    """Return the `settings_of` a manifest that was built; None if there is no such file.

    Raises:
        UsageError: there is something else, or it cannot be read.
    """
    uri = absolute(manifest)
    try:
        fs, path = filesystem(uri)
        if kind(fs, path) is None:
            return None
        with fs.open(path, "rb") as handle:
            metadata: dict[bytes, bytes] = pq.read_schema(handle).metadata or {}
        return json.loads(metadata[BUILT_WITH])
    except UsageError:
        raise
    except (pa.ArrowException, KeyError, ValueError):
        raise UsageError(
            f"{manifest} is there and is no manifest that was built; move it or choose another --output"
        ) from None
    except Exception as error:
        raise UsageError(f"cannot read the manifest {manifest}: {failure(error, uri)}") from None


def _checked(pairing: Pairing) -> tuple[float, float] | None:
    """Refuse what contradicts itself; returns the range of α."""
    ways = {
        "--styles-per-content": pairing.styles_per_content is not None,
        "--all-pairs": pairing.all_pairs,
        "--style-map": pairing.style_map is not None,
    }
    given = [name for name, present in ways.items() if present]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other")
    if pairing.styles_per_content is not None and pairing.styles_per_content < 1:
        raise UsageError("--styles-per-content must be at least 1")
    if pairing.sample is not None and pairing.sample < 1:
        raise UsageError("--sample must be at least 1")
    for name, present in (
        ("--style-by-label", pairing.style_by_label),
        ("--separate-splits", pairing.separate_splits),
    ):
        if present and pairing.style_map is not None:
            raise UsageError(f"{name} has no meaning with --style-map, which names the styles")
    if pairing.alpha is None:
        return None
    low, dots, high = pairing.alpha.partition("..")
    try:
        bounds = float(low), float(high if dots else low)
    except ValueError:
        raise UsageError(f"--alpha {pairing.alpha}: give a number (0.8) or a range (0.5..1)") from None
    if not all(0 <= bound <= 1 for bound in bounds):
        raise UsageError(f"--alpha {pairing.alpha}: it must lie between 0 and 1")
    if bounds[0] > bounds[1]:
        raise UsageError(f"--alpha {pairing.alpha} is reversed; write {high}..{low}")
    return bounds


class _Styles(NamedTuple):
    """All styles, sorted by key, so that their numbers do not depend on the listing's order."""

    keys: list[str]
    uris: list[str]
    groups: list[Group]


def _load_styles(found: Collected) -> _Styles:
    rows: list[tuple[str, str, Group]] = []
    for table in found.tables():
        columns = [table[KEY].to_pylist(), table[URI].to_pylist(), _groups(table)]
        rows += zip(*columns, strict=True)
    rows.sort(key=lambda row: row[0])
    for one, other in pairwise(rows):
        if one[0] == other[0]:
            raise UsageError(f"{found.source} names the style {one[0]!r} twice; remove one")
    return _Styles([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def _groups(table: pa.Table) -> list[Group]:
    empty = [None] * len(table)
    known = with_python_times(
        table.select([name for name in ("split", "label") if name in table.column_names])
    )
    split, label = (
        known[name].to_pylist() if name in known.column_names else empty for name in ("split", "label")
    )
    return [Group(_hashable(one), _hashable(other)) for one, other in zip(split, label, strict=True)]


def _hashable(value: Any) -> Any:
    if value != value:  # NaN: no label
        return None
    return str(value) if isinstance(value, list | dict) else value


Map = dict[str, list[int]]
Choose = Callable[[list[str], list[Group], Hashes], tuple[Integers, Integers]]
"""(keys, groups, hashes) of contents → for each pair, the number of its content among them and of its style."""


def _load_map(uri: str, styles: _Styles, source: str) -> Map:
    """Read which styles each content gets: rows of `content` and `style`, or a JSON object."""
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


def _most_styles(pairing: Pairing, styles: int, mapped: Map | None) -> int:
    if mapped is not None:
        return max(map(len, mapped.values()))
    return styles if pairing.all_pairs else pairing.styles_per_content or 1


class _Survey(NamedTuple):
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


def _survey(
    contents: Collected, pairing: Pairing, room: int, styles: list[str], mapped: Map | None
) -> _Survey:
    groups: Counter[Group] = Counter()
    keys: list[Hashes] = []
    draws: list[Hashes] = []
    claimed: list[Hashes] = []
    missing: list[str] = []
    for table in contents.tables():
        batch: list[str] = table[KEY].to_pylist()
        groups.update(_groups(table))
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
        seen: set[str] = set()
        for key in (key for table in contents.tables() for key in table[KEY].to_pylist()):
            if key in seen:
                raise UsageError(f"{contents.source} names {key!r} twice; keep one row for each image")
            if hashes([key])[0] in twice:
                seen.add(key)
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
    return _Survey(groups, frozenset(map(int, _repeated(claimed))), count, last)


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


def _chooser(pairing: Pairing, styles: _Styles, groups: Counter[Group], mapped: Map | None) -> Choose:
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


class _Rows:
    """Makes the manifest's rows, and counts them."""

    def __init__(
        self,
        base: str,
        pairing: Pairing,
        alpha: tuple[float, float] | None,
        styles: _Styles,
        names: list[str] | None,
        room: int,
    ) -> None:
        self.contents = 0
        self.groups: Counter[Group] = Counter()
        self.pairs = 0
        self.used = np.zeros(len(styles.keys), bool)
        self._base = base.rstrip("/") + "/"
        self._pairing, self._alpha = pairing, alpha
        self._names, self._room = names, room
        self._style_uris = pa.array([self._relative(uri) for uri in styles.uris], pa.string())
        labels = [None if group.label is None else str(group.label) for group in styles.groups]
        self._style_labels = pa.array(labels, pa.string()) if any(labels) else None

    def tables(self, contents: Collected, survey: _Survey, choose: Choose, step: int) -> Iterator[pa.Table]:
        """Yield the rows of so many contents at once."""
        for table in contents.tables():
            if survey.last is not None:
                draws = seeded(self._pairing.seed, table[KEY].to_pylist())
                table = table.filter(pa.array(draws <= survey.last))
            for start in range(0, len(table), step):
                yield self._table(table.slice(start, step), survey.taken, choose)

    def _table(self, items: pa.Table, taken: frozenset[int], choose: Choose) -> pa.Table:
        keys: list[str] = items[KEY].to_pylist()
        contents = seeded(self._pairing.seed, keys)
        groups = _groups(items)
        rows, styles = choose(keys, groups, contents)
        if self._pairing.keep_originals:  # behind the others of their contents, whose draws stay as they are
            rows = np.concatenate([rows, np.arange(len(keys))])
            order = np.argsort(rows, kind="stable")
            rows, styles = rows[order], np.concatenate([styles, np.full(len(keys), ORIGINAL)])[order]
        original = styles == ORIGINAL
        chosen = pa.array(styles, mask=original)
        uris = pa.array([self._relative(uri) for uri in items[URI].to_pylist()], pa.string())
        columns: dict[str, Any] = {
            "content": uris.take(pa.array(rows)),
            "style": self._style_uris.take(chosen),
        }
        if self._pairing.keep_originals:
            ends = np.concatenate([[0], np.cumsum(~original)]).astype(np.int32)
            columns["style"] = pa.ListArray.from_arrays(ends, columns["style"].drop_null())
        if self._alpha is not None:
            ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
            columns["alpha"] = pa.array(draw_alpha(contents[rows], ranks, *self._alpha), mask=original)
        if self._pairing.preserve_color:
            columns["preserve_color"] = pa.array(~original)
        columns["output"] = pa.array(self._outputs(keys, taken, rows, styles), pa.string())
        if self._style_labels is not None:
            columns["style_label"] = self._style_labels.take(chosen)
        for name in items.column_names:
            if name not in (KEY, URI):
                columns[name] = items[name].take(pa.array(rows))
        self.contents += len(keys)
        self.groups.update(groups)
        self.pairs += len(rows)
        self.used[styles[~original]] = True
        return pa.table(columns, metadata=items.schema.metadata)

    def _outputs(self, keys: list[str], taken: frozenset[int], rows: Integers, styles: Integers) -> list[str]:
        pictures: list[tuple[str, str]] = []
        for key in keys:
            stem, suffix = picture_stem(safe_key(key, self._room))
            if taken and not taken.isdisjoint(hashes(claims(stem, suffix)).tolist()):
                stem = marked(stem, "", key)
            pictures.append((stem, suffix))
        if self._names is None:
            return [stem + suffix for stem, suffix in (pictures[row] for row in rows.tolist())]
        names = self._names
        styled = ["" if style == ORIGINAL else f"-{names[style]}" for style in styles.tolist()]
        return [
            f"{pictures[row][0]}{style}{pictures[row][1]}"
            for row, style in zip(rows.tolist(), styled, strict=True)
        ]

    def _relative(self, uri: str) -> str:
        return uri.removeprefix(self._base)


def _put(
    tables: Iterator[pa.Table], output: str, settings: dict[str, Any], advanced: Callable[[], None]
) -> None:
    """Write a Parquet file row group by row group, and put it in place when it is whole."""
    first = next(tables)
    check_schema(first.schema, output)
    metadata = {**(first.schema.metadata or {}), BUILT_WITH: json.dumps(settings).encode()}
    schema = first.schema.with_metadata(metadata)
    try:
        with replacing(output) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in chain([first], tables):
                writer.write_table(table, row_group_size=ROW_GROUP)
                advanced()
    except UsageError:
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(f"cannot write the manifest {output}: {reason}") from None
