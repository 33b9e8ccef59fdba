"""Small Parquet files as bytes, so that each is written by one atomic put; and what Parquet and Python can hold of columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stylize_batch.root import Root

RUN = b"stylize_batch.run"
"""Metadata key of the run that a file belongs to; one of another run does not count."""

MAX_LEVELS = 40
"""Types in types that a column may have: pyarrow reads no more than 100, of which a list is two."""

_MICROSECONDS: dict[int, Callable[[Any], pa.DataType]] = {
    pa.timestamp("ns").id: lambda kind: pa.timestamp("us", kind.tz),
    pa.duration("ns").id: lambda kind: pa.duration("us"),
    pa.time64("ns").id: lambda kind: pa.time64("us"),
}


def dumps(table: pa.Table) -> bytes:
    """Serialise a table as a Parquet file."""
    sink = pa.BufferOutputStream()
    # In small files zstd finds repeated strings better, and sooner, than dictionaries do.
    with pq.ParquetWriter(sink, table.schema, compression="zstd", use_dictionary=False) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def with_leaves(kind: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type with `leaf` of each type in it that holds no others; names and nullability stay."""
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(with_leaves(each.type, leaf)) for each in kind])
    if pa.types.is_map(kind):
        entries = (kind.key_field, kind.item_field)
        return pa.map_(*(each.with_type(with_leaves(each.type, leaf)) for each in entries), kind.keys_sorted)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        value = kind.value_field.with_type(with_leaves(kind.value_type, leaf))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(value, kind.list_size)
        return pa.large_list(value) if pa.types.is_large_list(kind) else pa.list_(value)
    return leaf(kind)


def with_python_times(table: pa.Table) -> pa.Table:
    """Return a table whose times Python can hold: of microseconds, finer digits dropped; a column with years beyond
    Python's, or with a time zone that this machine does not know, becomes text, in UTC (Arrow writes years beyond its own
    range as `<value out of range: …>`)."""
    fields = [field.with_type(with_leaves(field.type, _in_microseconds)) for field in table.schema]
    shown = table.cast(pa.schema(fields), safe=False)
    for place, field in enumerate(fields):
        as_text = with_leaves(field.type, text_for_times)
        if as_text == field.type:
            continue
        column = shown[field.name]
        try:
            column.to_pylist()
        except (OverflowError, ValueError):
            in_utc = column.cast(with_leaves(field.type, _without_zone))
            shown = shown.set_column(place, field.name, in_utc.cast(as_text))
    return shown


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    if kind.id in _MICROSECONDS and kind.unit == "ns":
        return _MICROSECONDS[kind.id](kind)
    return kind


def text_for_times(kind: pa.DataType) -> pa.DataType:
    """Return text in the place of a type of times, and any other as it is."""
    return pa.string() if pa.types.is_temporal(kind) else kind


def _without_zone(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def as_columns(rows: list[dict[str, Any]]) -> pa.Table:
    """Make columns of objects; one whose values have no common type, or one that Parquet cannot hold, becomes text."""
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError):
            columns[name] = as_text(values)
        else:
            if unfit(columns[name].type):
                columns[name] = as_text(values)
    return pa.table(columns)


def unfit(kind: pa.DataType, levels: int = MAX_LEVELS) -> bool:
    """Whether Parquet cannot hold a type: it has a struct without fields in it, or types in types without end."""
    if not levels or (pa.types.is_struct(kind) and not kind.num_fields):
        return True
    return any(unfit(kind.field(index).type, levels - 1) for index in range(kind.num_fields))


def as_text(values: list[Any]) -> pa.Array:
    """Make a column of text: what is text stays as it is, anything else is written as JSON."""
    texts = [
        value if value is None or isinstance(value, str) else json.dumps(value, default=str)
        for value in values
    ]
    return pa.array(texts, pa.string())


def loads(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some columns of it.

    Raises:
        ArrowException: it is damaged.
    """
    try:
        # `read_table` looks for a dataset first, which takes most of its time.
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            return file.read(columns, use_threads=False)
    except OSError as error:  # so pyarrow calls some damage, of bytes in memory too
        raise pa.ArrowInvalid(str(error)) from None


def read(root: Root, key: str, columns: list[str] | None = None) -> pa.Table | None:
    """Read a Parquet file under a root; None if there is none, or a damaged one, as a power cut may leave it.

    Raises:
        OSError: storage refused or did not answer.
    """
    try:
        return loads(root.read(key), columns)
    except (FileNotFoundError, pa.ArrowException):
        return None


def note(table: pa.Table, key: bytes) -> str | None:
    """Return what the metadata of a table's file says under a key."""
    found = (table.schema.metadata or {}).get(key)
    return None if found is None else found.decode("ascii", "replace")
