"""Building a manifest from a dataset: contents and styles are listed, paired, named and written."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stylize_batch.errors import UsageError
from stylize_batch.manifest.built import ROW_GROUP, put_built, read_settings, settings_of
from stylize_batch.manifest.choosing import (
    Choose,
    Styles,
    chooser,
    groups_of,
    load_map,
    load_styles,
    most_styles,
)
from stylize_batch.manifest.collect import Collected, collect
from stylize_batch.manifest.drawing import Group, Integers, draw_alpha, seeded
from stylize_batch.manifest.items import KEY, URI
from stylize_batch.manifest.naming import MARK, claims, hashes, marked, picture_stem, safe_key, style_names
from stylize_batch.manifest.pairing import Pairing, checked
from stylize_batch.manifest.reach import refuse_credentials
from stylize_batch.manifest.survey import Survey, survey
from stylize_batch.root import Root
from stylize_batch.storage import absolute, parent

if TYPE_CHECKING:
    from stylize_batch.progress import Observer

ORIGINAL = -1
"""In place of a style's number: the content as it is."""


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
    alpha = checked(pairing)
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
        styles = load_styles(listed)
        contents = collect(
            content, "content", Path(folder), root=pairing.content_root, unpacked=unpacked, observer=observer
        )
        mapped = load_map(pairing.style_map, styles, style) if pairing.style_map else None
        most = most_styles(pairing, len(styles.keys), mapped) + pairing.keep_originals
        names = style_names(styles.keys) if most > 1 else None
        room = MARK + (1 + max(len(name.encode()) for name in names) if names else 0)
        surveyed = survey(contents, pairing, room, names or [], mapped)
        choose = chooser(pairing, styles, surveyed.groups, mapped)
        rows = _Rows(parent(absolute(output)), pairing, alpha, styles, names, room)
        tables = rows.tables(contents, surveyed, choose, max(1, ROW_GROUP // most))
        observer.phase("Pairing", surveyed.contents)
        put_built(tables, output, settings, lambda: observer.advance(rows.contents, 0))
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


class _Rows:
    """Makes the manifest's rows, and counts them."""

    def __init__(
        self,
        base: str,
        pairing: Pairing,
        alpha: tuple[float, float] | None,
        styles: Styles,
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

    def tables(self, contents: Collected, surveyed: Survey, choose: Choose, step: int) -> Iterator[pa.Table]:
        """Yield the rows of so many contents at once."""
        for table in contents.tables():
            if surveyed.last is not None:
                draws = seeded(self._pairing.seed, table[KEY].to_pylist())
                table = table.filter(pa.array(draws <= surveyed.last))
            for start in range(0, len(table), step):
                yield self._table(table.slice(start, step), surveyed.taken, choose)

    def _table(self, items: pa.Table, taken: frozenset[int], choose: Choose) -> pa.Table:
        keys: list[str] = items[KEY].to_pylist()
        contents = seeded(self._pairing.seed, keys)
        groups = groups_of(items)
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
