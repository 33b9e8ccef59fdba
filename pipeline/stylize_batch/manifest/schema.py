"""The manifest's columns: which there must be, their types, and the rules every row must keep."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch.errors import UsageError, counted, printable
from stylize_batch.manifest.naming import MAX_NAME, checked_key

RESULT_COLUMNS = (
    "pair_id", "content", "style", "output", "status", "error",
    "content_loss", "style_loss", "content_distance", "alpha", "height", "width", "model",
)  # fmt: skip
"""The columns of the results; the manifest's other columns follow them unchanged."""

SETTINGS = ("content", "style", "alpha", "output")
"""Manifest columns the results show in a form of their own; every other column is carried as it is."""


DECIDING = ("content", "style", "style_weights", "alpha", "preserve_color", "mask", "output")
"""Manifest columns that decide what is made; the others are only carried to the results."""

CATEGORIES = b"stylize_batch.categories"
"""Parquet metadata key of the categories of COCO annotations, as a JSON list of what stands there."""

ALIKE = 0.8
"""Share of equal letters above which a carried column's name may be a misspelling of a deciding one's."""

MAX_MESSAGE = 1000
"""Characters of an error's message."""


class ManifestError(UsageError):
    """A manifest that cannot be run; the message names the row and what to do.

    It quotes what the manifest holds, so it is cut and made printable here.
    """

    def __init__(self, message: str) -> None:
        short = message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "…"
        super().__init__(printable(short, " "))


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a column's name, with `source_` in front as often as others have it."""
    while name in taken:
        name = f"source_{name}"
    return name


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
        ("content", "string", is_string),
        ("style", "string or list of strings", _is_string_or_list),
        ("style_weights", "list of numbers", lambda kind: _is_list(kind, _is_number)),
        ("alpha", "number", _is_number),
        ("preserve_color", "bool", pa.types.is_boolean),
        ("mask", "string or list of strings", _is_string_or_list),
        ("output", "string", is_string),
    ):
        if name in names:
            kind = _plain(schema.field(name).type)
            if not fits(kind) and not pa.types.is_null(kind):
                raise ManifestError(f"{where}: column '{name}' is {kind}, it must be {expected}")


def misspellings(names: Sequence[str]) -> list[str]:
    """Return a line for each column that is carried, and whose name is nearly that of one that decides the pictures."""
    lines: list[str] = []
    for name in names:
        near = [] if name in DECIDING else difflib.get_close_matches(name.lower(), DECIDING, 1, ALIKE)
        if near and near[0] not in names:
            lines.append(
                f"column '{name}' is carried to the results and decides nothing; did you mean '{near[0]}'?"
            )
    return lines


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_string(kind: pa.DataType) -> bool:
    """Whether a type is one of strings, which may stand in a dictionary."""
    kind = _plain(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _is_string_or_list(kind: pa.DataType) -> bool:
    return is_string(kind) or _is_list(kind, is_string)


def _is_list(kind: pa.DataType, of: Callable[[pa.DataType], bool]) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(test(kind) for test in lists) and of(kind.value_type)


def plain_strings(column: pa.Array) -> pa.Array:
    """Cast any string column (dictionary, large, view) to string."""
    return column.cast(pa.string())


def string_lists(column: pa.Array) -> list[list[str | None] | None]:
    """Return a string or list-of-strings column as lists, one per row; null stays None."""
    values = column.to_pylist()
    return [[value] if isinstance(value, str) else value for value in values]


def list_column(column: pa.Array) -> pa.Array:
    """Return a string or list-of-strings column as list<string>; a single string is a list of one."""
    if is_string(column.type):
        return pa.ListArray.from_arrays(np.arange(len(column) + 1, dtype=np.int32), plain_strings(column))
    return _cast_lists(column, pa.string())


def number_lists(column: pa.Array) -> pa.Array:
    """Return a column of lists of integers, floats or decimals as list<float32>; what is too large becomes infinite."""
    return _cast_lists(column, pa.float32())


def _cast_lists(column: pa.Array, of: pa.DataType) -> pa.Array:
    if "list_view" in str(column.type):  # pyarrow 26 loses rows when it casts one
        column = pa.array(column.to_pylist(), pa.list_(column.type.value_type))
    return column.cast(pa.list_(of), safe=False)


# Outputs that `checked_key` lets pass, if they are short: plain names, none beginning with a dot.
_PLAIN_KEY = r"^[A-Za-z0-9_][A-Za-z0-9_ ().,=+-]*(/[A-Za-z0-9_][A-Za-z0-9_ ().,=+-]*)*$"


def remarkable_rows(
    contents: pa.Array,
    styles: pa.Array,
    alphas: pa.Array | None,
    colors: pa.Array | None,
    outputs: pa.Array | None,
    others: Sequence[pa.Array],
) -> npt.NDArray[np.int64]:
    """Return the rows that may break a rule of `check_row`, told apart in bulk: few, in most manifests.

    Args:
        contents: strings.
        styles: lists of strings.
        alphas: float32.
        colors: booleans.
        outputs: strings.
        others: columns, present in the manifest, whose every value is to be looked at.
    """
    filled = pc.greater(pc.binary_length(styles.values), 0).fill_null(False)
    known = pc.and_(pc.greater(pc.binary_length(contents), 0), styles.is_valid())
    plain = known.fill_null(False)
    if pc.any(pc.invert(filled)).as_py():
        plain = pc.and_(
            plain, pa.array([style is not None and all(style) for style in styles.to_pylist()], pa.bool_())
        )
    styled = pc.greater(pc.list_value_length(styles), 0).fill_null(False)
    if alphas is not None:
        least = pc.cast(pc.invert(styled), pa.float32())  # without styles only the default, 1
        inside = pc.and_(pc.greater_equal(alphas, least), pc.less_equal(alphas, 1))
        plain = pc.and_(plain, inside.fill_null(True))
    if colors is not None:
        plain = pc.and_(plain, pc.or_(styled, pc.invert(colors.fill_null(False))))
    if outputs is not None:
        named = pc.and_(
            pc.match_substring_regex(outputs, _PLAIN_KEY), pc.less_equal(pc.binary_length(outputs), MAX_NAME)
        )
        plain = pc.and_(plain, named.fill_null(True))
    for column in others:
        plain = pc.and_(plain, column.is_null())
    return np.flatnonzero(~plain.to_numpy(zero_copy_only=False))


def check_row(
    content: str | None,
    styles: Sequence[str | None] | None,
    weights: Sequence[float | None] | None,
    alpha: float | None,
    preserve_color: bool | None,
    masks: Sequence[str | None] | None,
    output: str | None,
) -> None:
    """Check one row against the contract. An empty list of styles asks for the content itself.

    Raises:
        ManifestError: without the row's place, which the caller adds.
    """
    if not content:
        raise ManifestError("'content' is empty")
    if styles is None or not all(styles):
        raise ManifestError("'style' is empty")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ManifestError(f"alpha is {alpha:g}, it must be between 0 and 1")
    if not styles and (alpha not in (None, 1) or weights is not None or preserve_color or masks):
        raise ManifestError("a row without styles keeps the content as it is; leave its controls null")
    if weights is not None:
        if len(weights) != len(styles):
            raise ManifestError(
                f"{counted(len(weights), 'style weight')} for {counted(len(styles), 'style')}; give one per style"
            )
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


def number_column(column: pa.Array) -> pa.Array:
    """Return a column of integers, floats or decimals as float32."""
    return pc.cast(column, pa.float32(), safe=False)


def check_masks(masks: int, styles: int, *, weighted: bool) -> None:
    """Check that so many masks fit so many styles.

    Raises:
        ManifestError: without the row's place, which the caller adds.
    """
    if weighted:
        raise ManifestError("masks and style weights cannot be combined")
    if masks != styles and not (masks == 1 and styles == 2):
        raise ManifestError(
            f"{counted(masks, 'mask')} for {counted(styles, 'style')}; give one per style, or one mask for two styles"
        )
