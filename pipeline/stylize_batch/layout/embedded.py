"""Parquet files with the pictures in a column of their own, as Hugging Face `datasets` has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from stylize_batch.layout.container import Read
from stylize_batch.manifest.schema import free_name
from stylize_batch.results import OF_OUTCOME

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

FEATURES = {b"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}}).encode()}
"""Schema metadata by which `datasets` knows the column for images; it finds the other columns' types by itself."""

GROUP_ROWS, GROUP_BYTES = 100, 16 << 20
"""Rows of a row group, and bytes of their pictures, about: what is in memory at once, here and at who reads one row."""


class ImageParquet:
    """A shard's pictures as a Parquet file: `image`, then all that is known of them."""

    extension = ".parquet"

    def write(self, file: IO[bytes], rows: pa.Table, keys: Sequence[str], read: Read) -> None:
        """See `Form`."""
        known = rows.drop_columns(OF_OUTCOME)
        names = known.column_names
        known = known.rename_columns([free_name(each, names) if each == "image" else each for each in names])
        schema = pa.schema([pa.field("image", IMAGE), *known.schema], FEATURES)
        # Pictures are compressed already, and all but the whole file.
        with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
            for start, images in _groups(keys, read):
                columns = [images, *known.slice(start, len(images)).columns]
                writer.write_table(pa.table(columns, schema))

    def location(self, container: str, key: str) -> str:
        """See `Form`; the row is found by its `pair_id`."""
        return container


def _groups(keys: Sequence[str], read: Read) -> Iterator[tuple[int, pa.Array]]:
    """Yield the pictures of a row group at a time, and the first one's row."""
    start, images, size = 0, list[dict[str, object]](), 0
    for row, key in enumerate(keys):
        data = read(row)
        images.append({"bytes": data, "path": key})
        size += len(data)
        if len(images) == GROUP_ROWS or size >= GROUP_BYTES or row + 1 == len(keys):
            yield start, pa.array(images, IMAGE)
            start, images, size = row + 1, [], 0
