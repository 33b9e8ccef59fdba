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


def without_nanoseconds(table: pa.Table) -> pa.Table:
    """Return a table whose times have microseconds, as Python's have; finer digits are dropped."""
    fields = [
        field.with_type(_MICROSECONDS[field.type.id](field.type))
        if field.type.id in _MICROSECONDS and field.type.unit == "ns"
        else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields), safe=False)


def loads(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some columns of it."""
    # `read_table` looks for a dataset first, which takes most of its time.
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(columns, use_threads=False)
