"""Small Parquet files as bytes, so that each is written by one atomic put."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq


def dumps(table: pa.Table) -> bytes:
    """Serialise a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def loads(data: bytes) -> pa.Table:
    """Read a Parquet file."""
    return pq.read_table(io.BytesIO(data))
