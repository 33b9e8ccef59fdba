"""Images that the rows of a Parquet file hold, as Hugging Face `datasets` has them."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stylize_batch.errors import counted
from stylize_batch.images.decode import FORMATS, SUFFIXES
from stylize_batch.manifest import extraction
from stylize_batch.manifest.extraction import TOO_MUCH, Extraction, most_bytes
from stylize_batch.manifest.source import decoded, decoded_schema, gathered

LOOK_ROWS, LOOK_BYTES = 16, 1 << 22
"""Rows of a column, and bytes of a file at once, that are read to see whether it holds images."""


def open_embedded(handle: Any) -> pq.ParquetFile:
    """Open a Parquet file that may hold images, of which a look takes no whole row group."""
    return pq.ParquetFile(handle, buffer_size=LOOK_BYTES, pre_buffer=False)


def image_column(file: pq.ParquetFile) -> str | None:
    """Return the first column that embeds image files: a struct with binary `bytes`, or else bytes that are an image."""
    return next(iter(_image_columns(file)), None)


def _image_columns(file: pq.ParquetFile) -> list[str]:
    structs: list[str] = []
    plain: list[str] = []
    for column in file.schema_arrow:
        kind = column.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            structs += [column.name] if _is_bytes(kind.field("bytes").type) else []
        elif _is_bytes(kind) and _begins_with_an_image(file, column.name):
            plain.append(column.name)
    return structs + plain


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _begins_with_an_image(file: pq.ParquetFile, column: str) -> bool:
    for batch in file.iter_batches(LOOK_ROWS, columns=[column], use_threads=False):
        cells = [cell for cell in batch.column(0).to_pylist() if cell]
        if cells:  # one of them may be damaged
            return any(_embedded_name(cell, None, 0) for cell in cells)
    return False


def extract_rows(handle: Any, size: int | None, out: Extraction) -> pa.Table:
    """Extract the rows of a Parquet file; returns their other columns, but for those of other images."""
    with open_embedded(handle) as file:
        schema = file.schema_arrow
        columns = _image_columns(file)
        if not columns:
            return pa.table({})
        image, *others = columns
        carried = [name for name in schema.names if name not in columns]
        if others:
            out.note(f"columns of other images are left out: {', '.join(others)}")
        kept: list[pa.RecordBatch] = []
        row = empty = 0
        first_empty = ""
        left = most_bytes(size)
        # So few at a time that they are not too much even if each holds all that the row group holds once.
        groups = (file.metadata.row_group(index) for index in range(file.num_row_groups))
        largest = max((group.total_byte_size for group in groups), default=0)
        few = min(max(1, 2 * extraction.SLACK // max(1, largest)), extraction.PUTS)
        batches = file.iter_batches(few, columns=[image, *carried])
        for some in gathered(map(decoded, batches), extraction.SLACK, extraction.PUTS):
            batch = pa.concat_batches(some)
            left -= batch.nbytes
            if left < 0:
                out.problem(f"is damaged ({TOO_MUCH}); what came before is kept")
                break
            rows: list[int] = []
            for place, cell in enumerate(batch[image].to_pylist()):
                data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
                name = _embedded_name(data, path, row + place)
                if data is None or name is None:
                    first_empty = first_empty if empty else f"row {row + place}"
                    if data is None and path and not empty:
                        first_empty += f", which only names the file {path}"
                    empty += 1
                    continue
                if out.fits(f"row {row + place}", len(data)):
                    out.add(name, data)
                    rows.append(place)
            kept.append(batch.select(carried).take(pa.array(rows, pa.int64())))
            row += len(batch)
        if empty:
            out.problem(f"{counted(empty, 'row holds', 'rows hold')} no image, such as {first_empty}")
        found = pa.Table.from_batches(
            kept, decoded_schema(pa.schema([schema.field(name) for name in carried]))
        )
        return _with_label_names(found, schema.metadata or {})


def _with_label_names(table: pa.Table, metadata: dict[bytes, bytes]) -> pa.Table:
    """Add the names of labels that are numbers, as Hugging Face `datasets` notes them: `label_name` beside `label`."""
    try:
        features: dict[str, Any] = json.loads(metadata[b"huggingface"])["info"]["features"]
        labels = {
            column: dict(enumerate(map(str, feature["names"])))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return table
    for column, names in labels.items():
        named = f"{column}_name"
        numbered = column in table.column_names and pa.types.is_integer(table[column].type)
        if numbered and named not in table.column_names:
            values = [names.get(each) for each in table[column].to_pylist()]
            table = table.append_column(named, pa.array(values, pa.string()))
    return table


def _embedded_name(data: bytes | None, path: str | None, row: int) -> str | None:
    if not data:
        return None
    if path and path.lower().endswith(SUFFIXES):
        return path
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
            return f"{path or f'{row:08d}'}{FORMATS.get(str(image.format), '.jpg')}"  # an MPO opens as a JPEG
    except Exception:
        return None
