"""The manifest's columns: which there must be, their types, and the rules every row must keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch.errors import UsageError
from stylize_batch.storage import checked_key

RESULT_COLUMNS = (
    "pair_id", "content", "style", "output", "status", "error",
    "content_loss", "style_loss", "content_distance", "alpha", "height", "width", "model",
)  # fmt: skip
"""The columns of the results; the manifest's other columns follow them unchanged."""

SETTINGS = ("content", "style", "alpha", "output")
"""Manifest columns the results show in a form of their own; every other column is carried as it is."""


class ManifestError(UsageError):
    """A manifest that cannot be run; the message names the row and what to do."""


def check_schema(schema: pa.Schema, where: str) -> None:
    """Check column names and types.

    Raises:
        ManifestError: a required column is missing, a type is wrong, a name is taken or stands twice.
    """
    names = schema.names
    for name in ("content", "style"):
        if name not in names:
            raise ManifestError(
                f"{where} has no column '{name}'; a manifest needs 'content' and 'style' (found: "
                f"{', '.join(names) or 'none'})"
            )
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(f"{where} has the column '{name}' twice; rename one")
        if (name in RESULT_COLUMNS and name not in SETTINGS) or name.startswith("stylize_batch."):
            raise ManifestError(f"{where} has a column '{name}', which the results use themselves; rename it")
    for name, expected, fits in (
        ("content", "string", _is_string),
        ("style", "string or list of strings", lambda kind: _is_string(kind) or _is_list(kind, _is_string)),
        ("style_weights", "list of numbers", lambda kind: _is_list(kind, _is_number)),
        ("alpha", "number", _is_number),
        ("preserve_color", "bool", pa.types.is_boolean),
        ("mask", "string or list of strings", lambda kind: _is_string(kind) or _is_list(kind, _is_string)),
        ("output", "string", _is_string),
    ):
        if name in names:
            kind = _plain(schema.field(name).type)
            if not fits(kind) and not pa.types.is_null(kind):
                raise ManifestError(f"{where}: column '{name}' is {kind}, it must be {expected}")


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_list(kind: pa.DataType, of: object) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(test(kind) for test in lists) and callable(of) and bool(of(kind.value_type))


def plain_strings(column: pa.Array) -> pa.Array:
    """Cast any string column (dictionary, large, view) to string."""
    return column.cast(pa.string())


def string_lists(column: pa.Array) -> list[list[str | None] | None]:
    """Return a string or list-of-strings column as lists, one per row; null stays None."""
    values = column.to_pylist()
    return [[value] if isinstance(value, str) else value for value in values]


def check_row(
    content: str | None,
    styles: Sequence[str | None] | None,
    weights: Sequence[float | None] | None,
    alpha: float | None,
    masks: Sequence[str | None] | None,
    output: str | None,
) -> None:
    """Check one row against the contract.

    Raises:
        ManifestError: without the row's place, which the caller adds.
    """
    if not content:
        raise ManifestError("'content' is empty")
    if not styles or not all(styles):
        raise ManifestError("'style' is empty")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ManifestError(f"alpha is {alpha:g}, it must be between 0 and 1")
    if weights is not None:
        if len(weights) != len(styles):
            raise ManifestError(f"{len(weights)} style_weights for {len(styles)} styles; give one per style")
        if any(weight is None or not math.isfinite(weight) or weight < 0 for weight in weights):
            raise ManifestError("style_weights must be numbers ≥ 0")
        if sum(weight or 0 for weight in weights) <= 0:
            raise ManifestError("style_weights sum to 0; at least one must be above")
    if masks:
        if not all(masks):
            raise ManifestError("'mask' is empty")
        check_masks(len(masks), len(styles), weighted=weights is not None)
    if output is not None:
        checked_key(output)


def check_masks(masks: int, styles: int, *, weighted: bool) -> None:
    """Check that so many masks fit so many styles.

    Raises:
        ManifestError: without the row's place, which the caller adds.
    """
    if weighted:
        raise ManifestError("masks and style weights cannot be combined")
    if masks != styles and not (masks == 1 and styles == 2):
        raise ManifestError(
            f"{masks} masks for {styles} styles; give one per style, or one mask for two styles"
        )


def number_column(column: pa.Array) -> list[float | None]:
    """Return a column of any integer or float width as float32 values."""
    return pc.cast(column, pa.float32(), safe=False).to_pylist()
