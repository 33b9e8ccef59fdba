"""Archives of images (WebDataset tar, Parquet with embedded images) become files under a folder of their own.

Each archive's index is written last, so an archive is done when its index exists: a repeated command goes on with
the next one. Members are written by `Root.put` under safe names; nothing is ever extracted by path.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from stylize_batch import parquet
from stylize_batch.errors import JobFailedError, RowError, UsageError, counted, os_errors_as
from stylize_batch.manifest.embedded import extract_rows
from stylize_batch.manifest.extraction import Extraction
from stylize_batch.manifest.items import KEY, URI
from stylize_batch.manifest.naming import digest, safe_key, shortened
from stylize_batch.manifest.webdataset import extract_members
from stylize_batch.root import Root
from stylize_batch.storage import filesystem, fingerprint

if TYPE_CHECKING:
    from stylize_batch.progress import Observer

MARK_KEY = "unpacked.json"
"""Says that a folder is ours to write to."""

MAX_ARCHIVE_NAME = 64
"""Bytes of an archive's name in the folder's name."""

_META = b"stylize_batch.archive"

_SPLIT_FILE = re.compile(r"(train|validation|val|test)-\d+-of-\d+\b")
"""The name of a split's part, as Hugging Face `datasets` writes them."""


class Unpacked(NamedTuple):
    """Archives that have been unpacked.

    Attributes:
        root: the folder.
        indexes: key of each archive's index.
        prefixes: what each archive's keys begin with.
        schema: of all the indexes together.
        notes: one line for each thing a user should know of.
        problems: one line for each thing that could not be unpacked.
    """

    root: Root
    indexes: list[str]
    prefixes: list[str]
    schema: pa.Schema
    notes: list[str]
    problems: list[str]

    def tables(self) -> Iterator[pa.Table]:
        """Read the indexes: key, URI and the columns of the archives."""
        for index, prefix in zip(self.indexes, self.prefixes, strict=True):
            table = parquet.loads(self.root.read(index))
            columns: dict[str, Any] = {}
            for name, kind in zip(self.schema.names, self.schema.types, strict=True):
                column = table[name] if name in table.column_names else pa.nulls(len(table))
                if kind == pa.string() and column.type != kind:
                    column = parquet.as_text(column.to_pylist())
                columns[name] = column
            columns[KEY] = pa.array([prefix + key for key in table[KEY].to_pylist()], pa.string())
            columns[URI] = pa.array([self.root.uri_of(key) for key in table[URI].to_pylist()], pa.string())
            yield pa.table(columns).cast(self.schema)


def unpack(archives: list[str], base: str | None, root: Root, role: str, observer: Observer) -> Unpacked:
    """Extract the images of archives, those that earlier calls have not finished.

    Args:
        archives: URIs of tar files or of Parquet files with an image column.
        base: the folder the archives lie in: each one's keys begin with its path below it, so that one that is added
            changes no keys of the others. None for a source that is an archive by itself.
        root: empty, or filled by an earlier call.
        role: `content` or `style`: a subfolder, so that both can be unpacked to one root.

    Raises:
        UsageError: the root is in use for something else, or an archive is damaged.
        JobFailedError: an archive cannot be read; repeating the call goes on.
    """
    with os_errors_as(UsageError, f"cannot unpack to {root.uri}"):
        if not root.exists(MARK_KEY):
            if not root.empty():
                raise UsageError(
                    f"{root.uri} is not empty and holds no {MARK_KEY}; give --unpack an empty folder"
                )
            root.put(MARK_KEY, b"{}\n")
    observer.phase(f"Unpacking {role} archives", len(archives))
    indexes: list[str] = []
    schemas: list[pa.Schema] = []
    notes: list[str] = []
    problems: list[str] = []
    for done, uri in enumerate(archives, 1):
        index, found = _unpack_one(uri, root, role)
        indexes.append(index)
        schemas.append(found.schema.remove_metadata())
        notes += found.notes
        problems += found.problems
        observer.advance(done, 0)
    root.clear_temporaries()
    schema = _common_schema(schemas, base, notes)
    prefixes = [""] if base is None else _prefixes([uri[len(base) :].lstrip("/") for uri in archives])
    return Unpacked(root, indexes, prefixes, schema, notes, problems)


def _common_schema(schemas: list[pa.Schema], base: str | None, notes: list[str]) -> pa.Schema:
    """Return all columns of some schemas; one without a type that suits them all is text, and noted."""
    fields: list[pa.Field] = []
    for name in dict.fromkeys(name for schema in schemas for name in schema.names):
        each = [pa.schema([schema.field(name)]) for schema in schemas if name in schema.names]
        try:
            fields += pa.unify_schemas(each, promote_options="permissive")
        except pa.ArrowException:
            notes.append(f"{base}: column '{name}' has different types in the archives, and becomes text")
            fields.append(pa.field(name, pa.string()))
    return pa.schema(fields)


class _Finished(NamedTuple):
    schema: pa.Schema
    notes: list[str]
    problems: list[str]


def _unpack_one(uri: str, root: Root, role: str) -> tuple[str, _Finished]:
    """Unpack an archive unless its index says that this has been done; returns the index's key."""
    name = f"{shortened(safe_key(_without_suffix(uri.rpartition('/')[2])), MAX_ARCHIVE_NAME)}-{digest(uri)}"
    index = f"{role}/index/{name}.parquet"
    try:
        version = fingerprint(uri)
        finished = _read_finished(root, index, version)
        if finished is not None:
            return index, finished
        out = Extraction(root, f"{role}/images/{name}", uri)
        fs, path = filesystem(uri)
        with fs.open(path, "rb") as handle:
            if uri.lower().endswith(".parquet"):
                columns = extract_rows(handle, fs.size(path), out)
            else:
                columns = extract_members(handle, fs.size(path), uri.lower().endswith("gz"), out)
        out.put()
        part = _SPLIT_FILE.match(uri.rpartition("/")[2])
        if (
            part and role == "content" and "split" not in columns.column_names
        ):  # styles of one split serve all
            columns = columns.append_column("split", pa.array([part[1]] * len(out.keys), pa.string()))
        if not out.keys:
            out.problem("no images in it")
        if out.beside:
            out.note(
                f"{counted(out.beside, 'image is', 'images are')} left out, each beside others of its sample"
            )
        if out.unused:
            out.note(
                f"{counted(len(out.unused), 'member is', 'members are')} left out, named from the first dot on "
                f"neither like an image nor .cls, .json or .txt {out.unused}"
            )
        if out.alone:
            out.note(
                f"{counted(len(out.alone), 'member is', 'members are')} left out, whose sample has no image "
                f"{out.alone}; put the members of a sample one after another, under names that are the same up to the first dot"
            )
        table = pa.table({KEY: pa.array(out.keys, pa.string()), URI: pa.array(out.objects, pa.string())})
        for column in columns.column_names:
            if column not in (KEY, URI):
                table = table.append_column(column, columns[column])
        meta = {"version": version, "notes": out.notes, "problems": out.problems}
        table = table.replace_schema_metadata({_META: json.dumps(meta).encode()})
        root.put(index, parquet.dumps(table))
    except RowError as error:
        raise JobFailedError(f"cannot read the archive {uri}: {error}") from None
    except pa.ArrowException as error:
        raise UsageError(f"the archive {uri} is damaged: {error}") from None
    except OSError as error:
        raise JobFailedError(f"cannot unpack {uri}: {error}") from None
    return index, _Finished(table.schema, out.notes, out.problems)


def _read_finished(root: Root, index: str, version: str) -> _Finished | None:
    try:
        schema = parquet.loads(root.read(index)).schema
        meta = json.loads(schema.metadata[_META])
        return _Finished(schema, meta["notes"], meta["problems"]) if meta["version"] == version else None
    except (FileNotFoundError, pa.ArrowException, ValueError, TypeError, KeyError):
        return None  # a power cut may leave an index empty or damaged


def _prefixes(names: list[str]) -> list[str]:
    """Return a folder for each archive, named without its ending unless another's name has the same beginning."""
    stems = Counter(map(_without_suffix, names))
    return [f"{stem if stems[stem := _without_suffix(name)] == 1 else name}/" for name in names]


def _without_suffix(name: str) -> str:
    for suffix in (".tar", ".tar.gz", ".tgz", ".parquet"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
