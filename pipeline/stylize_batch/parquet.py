"""Small Parquet files as bytes, so that each is written by one atomic put."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def dumps(table: pa.Table) -> bytes:
    """Serialise a table as a Parquet file."""
    sink = pa.BufferOutputStream()
    # In small files zstd finds repeated strings better, and sooner, than dictionaries do.
    with pq.ParquetWriter(sink, table.schema, compression="zstd", use_dictionary=False) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def loads(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some columns of it."""
    # `read_table` looks for a dataset first, which takes most of its time.
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(columns, use_threads=False)
