"""Files of manifests that were built: each names the sources and settings it was built with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stylize_batch.errors import UsageError
from stylize_batch.manifest.pairing import Pairing
from stylize_batch.manifest.schema import check_schema
from stylize_batch.root import replacing
from stylize_batch.storage import absolute, failure, filesystem, kind

ROW_GROUP = 131_072
"""Rows of a row group, and about what is in memory at once."""

BUILT_WITH = b"stylize_batch.built_with"
"""Parquet metadata key of the sources and settings that a manifest was built with, as JSON."""


def settings_of(content: str, style: str, pairing: Pairing, unpack: str | None = None) -> dict[str, Any]:
    """Return what decides a manifest, besides what lies at its sources: equal settings build equal manifests."""
    places = {"content_root": pairing.content_root, "style_map": pairing.style_map, "unpack": unpack}
    drawn = not pairing.all_pairs and pairing.style_map is None
    return {
        "content": absolute(content),
        "style": absolute(style),
        **pairing.model_dump(),
        "styles_per_content": (pairing.styles_per_content or 1) if drawn else None,
        **{name: place and absolute(place) for name, place in places.items()},
    }


def read_settings(manifest: str) -> dict[str, Any] | None:
    """Return the `settings_of` a manifest that was built; None if there is no such file.

    Raises:
        UsageError: there is something else, or it cannot be read.
    """
    uri = absolute(manifest)
    try:
        fs, path = filesystem(uri)
        if kind(fs, path) is None:
            return None
        with fs.open(path, "rb") as handle:
            metadata: dict[bytes, bytes] = pq.read_schema(handle).metadata or {}
        return json.loads(metadata[BUILT_WITH])
    except UsageError:
        raise
    except (pa.ArrowException, KeyError, ValueError):
        raise UsageError(
            f"{manifest} is there and is no manifest that was built; move it or choose another --output"
        ) from None
    except Exception as error:
        raise UsageError(f"cannot read the manifest {manifest}: {failure(error, uri)}") from None


def put_built(
    tables: Iterator[pa.Table], output: str, settings: dict[str, Any], advanced: Callable[[], None]
) -> None:
    """Write a Parquet file row group by row group, and put it in place when it is whole.

    Raises:
        UsageError: it cannot be written, or a column has a name of the results' own.
    """
    first = next(tables)
    check_schema(first.schema, output)
    metadata = {**(first.schema.metadata or {}), BUILT_WITH: json.dumps(settings).encode()}
    schema = first.schema.with_metadata(metadata)
    try:
        with replacing(output) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in chain([first], tables):
                writer.write_table(table, row_group_size=ROW_GROUP)
                advanced()
    except UsageError:
        raise
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(f"cannot write the manifest {output}: {reason}") from None
