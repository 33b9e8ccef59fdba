"""Metadata of an image folder, by which `datasets.load_dataset("imagefolder", …)` knows each picture's labels, source and
losses.

`metadata.parquet` lies in `images/`, for `data_files="out/images/**"`; where the tree begins with splits, in each split's
folder, the only place the loader looks for it with `data_dir="out/images"`. Class folders still load as such: it is no
picture.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from stylize_batch.manifest.collect import SPLITS
from stylize_batch.manifest.naming import METADATA
from stylize_batch.manifest.schema import RESULT_COLUMNS, free_name
from stylize_batch.results import OF_OUTCOME, read_parts
from stylize_batch.root import Root

CONTROLS = ("style_weights", "preserve_color", "mask")
"""Columns of a manifest that say how pictures are made, and nothing of what they show."""

GROUP_ROWS = 65_536
"""Rows of a row group, about: what is in memory at once for each split."""


def describes(schema: pa.Schema) -> bool:
    """Whether results carry columns that a loader may want."""
    return not {*schema.names} <= {*RESULT_COLUMNS, *CONTROLS}


def write(root: Root, run: str, shards: int) -> list[str]:
    """Write the metadata of all pictures of a run of so many shards, and return the keys of the files."""
    images = root.uri_of("images") + "/"
    splits = _has_splits(root, run, shards, images)
    with ExitStack() as held:
        files: dict[str, _Spooled] = {}
        for table in read_parts(root, run, shards=shards):
            for folder, rows in _by_folder(_described(table, images), splits):
                if folder not in files:
                    files[folder] = _Spooled(held, root.spool(), rows.schema)
                files[folder].add(rows)
        keys: list[str] = []
        for folder, file in sorted(files.items()):
            file.close()
            keys.append(f"images/{folder}{METADATA}")
            root.put_large(keys[-1], file.copy_to)
        return keys


class _Spooled:
    """A Parquet file that grows a row group at a time."""

    def __init__(self, held: ExitStack, spool: IO[bytes], schema: pa.Schema) -> None:
        self._spool = held.enter_context(spool)
        # Should something fail, it is closed before the spool: it would write to that when it is collected.
        self._writer = held.enter_context(pq.ParquetWriter(spool, schema, compression="zstd"))
        self._tables: list[pa.Table] = []
        self._rows = 0

    def add(self, rows: pa.Table) -> None:
        self._tables.append(rows)
        self._rows += len(rows)
        if self._rows >= GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def copy_to(self, file: IO[bytes]) -> None:
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, file)

    def _flush(self) -> None:
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables), row_group_size=2 * GROUP_ROWS)
            self._tables, self._rows = [], 0


def _described(table: pa.Table, images: str) -> pa.Table:
    """Return the rows with a picture: `file_name`, below `images/`, then all that is known of it."""
    table = table.filter(table["output"].is_valid()).replace_schema_metadata(None)
    names = [output.removeprefix(images) for output in table["output"].to_pylist()]
    table = table.drop_columns(OF_OUTCOME)
    table = table.rename_columns(_without_references(table.column_names))
    return table.add_column(0, "file_name", pa.array(names, pa.string()))


def _without_references(names: list[str]) -> list[str]:
    """Rename carried columns that the loader would take for pictures beside the metadata."""
    kept: list[str] = []
    for name in names:
        if name.endswith(("file_name", "file_names")):
            name = free_name(f"source_{name.replace('file_name', 'file')}", {*names, *kept})
        kept.append(name)
    return kept


def _has_splits(root: Root, run: str, shards: int, images: str) -> bool:
    """Whether all pictures lie in folders of splits: a class may be named `train`, too."""
    return all(
        output.removeprefix(images).partition("/")[0].lower() in SPLITS
        for table in read_parts(root, run, ["output"], shards)
        for output in table["output"].drop_null().to_pylist()
    )


def _by_folder(table: pa.Table, splits: bool) -> Iterator[tuple[str, pa.Table]]:
    """Split rows by the folder of their split, whose name `file_name` then lacks; `` for a tree without splits."""
    if not splits:
        yield "", table
        return
    folders = [name.partition("/")[0] + "/" for name in table["file_name"].to_pylist()]
    for folder in dict.fromkeys(folders):
        rows = table.filter(pa.array([each == folder for each in folders]))
        names = [name.removeprefix(folder) for name in rows["file_name"].to_pylist()]
        yield folder, rows.set_column(0, "file_name", pa.array(names, pa.string()))
