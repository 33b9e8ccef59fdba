"""Small Parquet files as bytes, so that each is written by one atomic put."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def with_python_times(table: pa.Table) -> pa.Table:
    """Return a table whose times Python can hold: of microseconds, finer digits dropped; a column with years beyond
    Python's, or with a time zone that this machine does not know, becomes text."""
    fields = [
        field.with_type(_MICROSECONDS[field.type.id](field.type))
        if field.type.id in _MICROSECONDS and field.type.unit == "ns"
        else field
        for field in table.schema
    ]
    shown = table.cast(pa.schema(fields), safe=False)
    for place, field in enumerate(fields):
        if pa.types.is_temporal(field.type):
            try:
                shown[field.name].to_pylist()
            except (OverflowError, ValueError):
                shown = shown.set_column(place, field.name, _as_text(shown[field.name]))
    return shown


def _as_text(times: pa.ChunkedArray) -> pa.ChunkedArray:
    zoned = pa.types.is_timestamp(times.type) and times.type.tz
    return (times.cast(pa.timestamp(times.type.unit)) if zoned else times).cast(pa.string())


def loads(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some columns of it."""
    # `read_table` looks for a dataset first, which takes most of its time.
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(columns, use_threads=False)
