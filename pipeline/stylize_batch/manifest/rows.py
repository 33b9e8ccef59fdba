"""Rows of a manifest, each checked, in the form of the plan: streamed in bounded memory."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch.ahead import begun_ahead
from stylize_batch.errors import UsageError
from stylize_batch.images.encode import Format
from stylize_batch.manifest.identity import DEFAULTS, controls, output_keys, pair_ids
from stylize_batch.manifest.reach import Reach
from stylize_batch.manifest.schema import (
    SETTINGS,
    ManifestError,
    check_row,
    list_column,
    number_column,
    number_lists,
    plain_strings,
    remarkable_rows,
    string_lists,
)
from stylize_batch.manifest.source import Source, first_line, read_batches

CHECK_THREADS = 2


class Rows(NamedTuple):
    """Checked rows of a file, from its row `start` on, in the form of the plan."""

    uri: str
    start: int
    table: pa.Table


def checked_rows(source: Source, format: Format, limit: int | None, allowed: Reach) -> Iterator[Rows]:
    """Check the rows and bring them into the form of the plan, batch by batch, some at once."""

    def canonical(some: tuple[str, int, pa.RecordBatch]) -> Rows:
        return _canonical(*some, format, allowed)

    with ThreadPoolExecutor(CHECK_THREADS) as threads:
        for _, rows in begun_ahead(threads, canonical, _limited(source, limit), CHECK_THREADS):
            yield rows.result()


def _limited(source: Source, limit: int | None) -> Iterator[tuple[str, int, pa.RecordBatch]]:
    left = limit
    for uri, start, batch in read_batches(source):
        yield uri, start, batch.slice(0, left)
        if left is not None:
            left -= batch.num_rows
            if left <= 0:
                return


def _canonical(uri: str, start: int, batch: pa.RecordBatch, format: Format, allowed: Reach) -> Rows:
    try:
        batch.validate(full=True)  # invalid UTF-8
        allowed.check(batch, uri, start)
        names = batch.schema.names
        contents = plain_strings(batch["content"])
        styles = list_column(batch["style"])
        weights = number_lists(batch["style_weights"]) if "style_weights" in names else None
        alphas = number_column(batch["alpha"]) if "alpha" in names else None
        if "preserve_color" in names:  # null where all are, as pandas writes it
            at = names.index("preserve_color")
            batch = batch.set_column(at, "preserve_color", batch["preserve_color"].cast(pa.bool_()))
        colors = batch["preserve_color"] if "preserve_color" in names else None
        masks = batch["mask"] if "mask" in names else None
        outputs = plain_strings(batch["output"]) if "output" in names else None
        others = [column for column in (weights, masks) if column is not None]
        for row in remarkable_rows(contents, styles, alphas, colors, outputs, others).tolist():
            weight, alpha, color, mask, output = (
                None if column is None else column[row].as_py()
                for column in (weights, alphas, colors, masks, outputs)
            )
            listed = [mask] if isinstance(mask, str) else mask
            try:
                check_row(contents[row].as_py(), styles[row].as_py(), weight, alpha, color, listed, output)
            except UsageError as error:
                raise ManifestError(f"{uri}, row {start + row}: {error}") from None
        identities = pair_ids(contents, styles, _settings(weights, alphas, colors, masks))
        first_styles = pc.list_element(pc.list_slice(styles, 0, 1, return_fixed_size_list=True), 0)
        shares = pa.array(np.ones(len(batch), np.float32)) if alphas is None else alphas.fill_null(1.0)
        columns = {
            "pair_id": identities,
            "content": contents,
            "style": styles,
            "alpha": pc.if_else(first_styles.is_valid(), shares, pa.scalar(None, pa.float32())),
            "output": output_keys(outputs, contents, first_styles, identities, format),
        }
        for name in names:
            if name not in SETTINGS:
                columns[name] = batch[name]
        return Rows(uri, start, pa.table(columns))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ManifestError(
            f"{uri} holds what cannot be read, near row {start}: {first_line(error)}"
        ) from None


def _settings(
    weights: pa.Array | None, alphas: pa.Array | None, colors: pa.Array | None, masks: pa.Array | None
) -> pa.Array | str:
    """Write what `controls` does for every row, or once for all."""
    present = [column for column in (weights, alphas, colors, masks) if column is not None]
    if not present:
        return DEFAULTS
    empty = [None] * len(present[0])
    columns = (
        empty if weights is None else weights.to_pylist(),
        empty if alphas is None else alphas.to_pylist(),
        empty if colors is None else colors.to_pylist(),
        # `check_row` has seen to it that none in a list is missing.
        empty if masks is None else cast("list[list[str] | None]", string_lists(masks)),
    )
    return pa.array([controls(*row) for row in zip(*columns, strict=True)], pa.string())
