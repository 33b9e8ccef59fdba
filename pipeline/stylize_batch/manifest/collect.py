"""Sources of contents and styles: image trees, lists and archives become one stream of tables of items.

An item has a key (its path below the source, by which it is hashed and named), a URI, and whatever its source says
of it: `label` and `split` from a tree's folders, a list's own columns, COCO's boxes.
"""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pyarrow import csv
from pyarrow import json as json_lines

from stylize_batch.errors import JobFailedError, UsageError
from stylize_batch.images.decode import SUFFIXES
from stylize_batch.manifest.schema import RESULT_COLUMNS
from stylize_batch.manifest.unpack import KEY, URI, image_column, open_embedded, unpack
from stylize_batch.parquet import as_columns, as_text, holds_nothing
from stylize_batch.storage import Root, absolute, failure, filesystem, is_uri, join, parent

if TYPE_CHECKING:
    from stylize_batch.progress import Observer

BATCH = 65_536
"""Items in memory at once while a source is read."""

LIST_BLOCK = 1 << 26
"""Bytes of a list that are read at once; the first of a CSV file decide its columns' types."""

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev")
"""Names of a tree's first folders that are taken for splits, where all first folders have one."""

PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")
"""Columns of a list, after `content` or `style`, that are taken for the images' paths."""

TEXT_COLUMNS = ("content", "style", *PATH_COLUMNS)
"""Columns of a CSV file that are text whatever they look like."""

ENDINGS = 5
"""Endings of names that a note about files left out counts one by one."""

ARCHIVES = (".tar", ".tar.gz", ".tgz")
LISTS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
RESERVED = {*RESULT_COLUMNS, "style_weights", "preserve_color", "mask", "style_label"}
"""Columns that a built manifest or its results have themselves; a list's own of that name get a prefix."""


class Collected(NamedTuple):
    """The items of a source, spilled to a local file.

    Attributes:
        source: as given.
        items: how many.
        path: the spill.
        folders: columns that are folders of the keys (`split`, `label`), and which folder each is.
        notes: one line for each thing a user should know of.
        problems: one line for each thing that was there and could not be read.
    """

    source: str
    items: int
    path: Path
    folders: dict[str, int]
    notes: list[str]
    problems: list[str]

    def tables(self) -> Iterator[pa.Table]:
        """Read the items back: key, URI, `split` and `label` where there are any, and carried columns."""
        with pa.ipc.open_stream(str(self.path)) as reader:
            for batch in reader:
                table = _table(batch)
                for name, place in self.folders.items():
                    if name not in table.column_names:
                        values = [_folder(key, place) for key in table[KEY].to_pylist()]
                        table = table.append_column(name, pa.array(values, pa.string()))
                yield table


class _Source(NamedTuple):
    """A source's kind, as tables of key, URI and carried columns."""

    tables: Iterator[pa.Table]
    skip: int | None
    """First parts of a key that are an archive's path; None where folders mean nothing."""
    notes: list[str]
    problems: list[str]


def collect(
    source: str,
    role: str,
    folder: Path,
    *,
    root: str | None = None,
    unpacked: Root | None = None,
    observer: Observer,
) -> Collected:
    """Read a source to its end.

    Args:
        source: folder, image, list (CSV, JSON, JSON lines, Parquet), COCO annotations, or archives (WebDataset tar,
            Parquet with embedded images); path or URI; a glob of files of one kind.
        role: `content` or `style`.
        folder: local, for the spill.
        root: what a list's relative paths start from; its own folder by default.
        unpacked: where archives are extracted.

    Raises:
        UsageError: there is nothing, or something that cannot be used.
    """
    try:
        found = _open(source, role, root, unpacked, observer)
        if root is not None and found.skip is not None:
            raise UsageError(f"--content-root is for lists, whose paths it completes; {source} is none")
        return _spill(source, role, found, folder / f"{role}.arrow", observer)
    except (UsageError, JobFailedError):
        raise
    except UnicodeEncodeError as error:
        name = error.object[:200].encode("utf-8", "backslashreplace").decode()
        raise UsageError(f"{source} holds the name {name}, which is not UTF-8; rename it") from None
    except (pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read {source}: {' '.join(str(error).split())}") from None
    except Exception as error:
        raise UsageError(f"cannot read {source}: {failure(error, absolute(source))}") from None


def _spill(source: str, role: str, found: _Source, path: Path, observer: Observer) -> Collected:
    count = 0
    folders: set[tuple[str | None, str | None]] = set()
    tops: set[str | None] = set()
    observer.phase(f"Listing {role}s", None, 0, lambda: 0)
    writer: Any = None
    try:
        for table in found.tables:
            if writer is None:
                writer = pa.ipc.new_stream(str(path), table.schema)
            if found.skip is not None:
                keys = table[KEY].to_pylist()
                folders.update((_folder(key, found.skip), _folder(key, found.skip + 1)) for key in keys)
                tops.update(_folder(key, 0) for key in keys if found.skip > 1)
            writer.write_table(table, max_chunksize=BATCH)
            count += len(table)
            observer.advance(count, 0)
    finally:
        if writer is not None:
            writer.close()
    if not count:
        found_instead = "".join(f"; {line}" for line in [*found.problems, *found.notes][:1])
        raise UsageError(f"no images in {source}; expected {', '.join(SUFFIXES)} files{found_instead}")
    columns = _folder_columns(folders, found.skip or 0)
    if tops and all(top and top.lower() in SPLITS for top in tops):  # archives in folders of splits
        columns = {"split": 0, **columns}
    return Collected(source, count, path, columns, found.notes, found.problems)


def _folder(key: str, place: int) -> str | None:
    parts = key.split("/", place + 1)
    return parts[place] if len(parts) > place + 1 else None


def _folder_columns(folders: set[tuple[str | None, str | None]], skip: int) -> dict[str, int]:
    firsts = {first for first, _ in folders} - {None}
    if not firsts:
        return {}
    if not all(first and first.lower() in SPLITS for first in firsts):
        return {"label": skip}
    labels = any(second for _, second in folders)
    return {"split": skip, "label": skip + 1} if labels else {"split": skip}


def _open(source: str, role: str, root: str | None, unpacked: Root | None, observer: Observer) -> _Source:
    """Find out what a source is."""
    uri = absolute(source)
    fs, path = filesystem(uri)
    base = parent(uri)
    if fs.isdir(path):
        base = uri.rstrip("/")
        if unpacked is not None and f"{unpacked.uri.rstrip('/')}/".startswith(f"{base}/"):
            raise UsageError(
                f"--unpack {unpacked.uri} lies in {source}, where it would be listed too; name another"
            )
        names = _lone_archives(fs, path)
        if not names:
            notes: list[str] = []
            return _Source(_tree(fs, path.rstrip("/"), base, notes), 0, notes, [])
    elif fs.isfile(path):
        names = [path]
    else:
        names = sorted(fs.glob(path)) if any(character in path for character in "*?[") else []
        if not names:
            raise UsageError(
                f"there is no {role} source {source}; give a folder, a list, an image or archives"
            )
        base = parent(uri[: min(uri.index(character) for character in "*?[" if character in uri)] + "x")
    uris = [str(fs.unstrip_protocol(name)) if is_uri(uri) else name for name in names]
    if all(name.lower().endswith(SUFFIXES) for name in uris):
        return _Source(_items((_key(each, base), each) for each in uris), 0, [], [])
    if _are(uris, ARCHIVES) or (_are(uris, (".parquet",)) and _embedded(uris[0])):
        if unpacked is None:
            raise UsageError(
                f"{source} holds images in archives; extract them first: stylize-batch manifest build … --unpack DIR"
            )
        found = unpack(uris, base, unpacked, role, observer)
        tables = (_with_free_names(table, source, role, found.notes) for table in found.tables())
        depths = {prefix.count("/") for prefix in found.prefixes}
        if len(depths) > 1:
            found.notes.append(
                f"{source}: archives lie in folders of different depth, so that no folder is a label"
            )
        return _Source(tables, depths.pop() if len(depths) == 1 else None, found.notes, found.problems)
    if _are(uris, LISTS):
        notes = []
        return _Source(_lists(uris, role, root, notes), None, notes, [])
    raise UsageError(
        f"{source} is no {role} source; give a folder of images, a list ({', '.join(LISTS)}), "
        f"an image or archives ({', '.join(ARCHIVES)}, .parquet)"
    )


def _are(uris: list[str], suffixes: tuple[str, ...]) -> bool:
    return all(uri.lower().endswith(suffixes) for uri in uris)


def _embedded(uri: str) -> bool:
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as handle, open_embedded(handle) as file:
        return image_column(file) is not None


def _entries(fs: Any, folder: str) -> Iterator[tuple[str, bool]]:
    """List a folder: name, and whether it is a folder. Hidden names are left out."""
    if isinstance(fs, LocalFileSystem):  # names only: a flat folder may hold a million
        with os.scandir(folder) as found:
            yield from ((entry.name, entry.is_dir()) for entry in found if not entry.name.startswith("."))
        return
    for info in fs.ls(folder, detail=True):
        name = str(info["name"]).rstrip("/")
        if name != folder.rstrip("/") and not name.rpartition("/")[2].startswith("."):
            yield name.rpartition("/")[2], info["type"] == "directory"


def _lone_archives(fs: Any, folder: str) -> list[str]:
    """Return the archives of a folder that holds nothing else to take images from."""
    entries = list(_entries(fs, folder))
    if any(is_folder or name.lower().endswith(SUFFIXES) for name, is_folder in entries):
        return []
    names = sorted(name for name, _ in entries)
    # A Parquet file beside tars is what was built of them.
    tars, tables = (
        [name for name in names if name.lower().endswith(each)] for each in (ARCHIVES, ".parquet")
    )
    return [join(folder, name) for name in tars or tables]


def _tree(fs: Any, folder: str, uri: str, notes: list[str]) -> Iterator[pa.Table]:
    """Walk a folder, sorted, with one folder's names in memory at a time; what is not named as an image is noted."""
    local = isinstance(fs, LocalFileSystem)
    left_out: Counter[str] = Counter()
    example = ""

    def walk(below: str, above: tuple[str, ...]) -> Iterator[str]:
        here = join(folder, below).rstrip("/")
        if local:
            above = (*above, os.path.realpath(here))
            if above[-1] in above[:-1]:  # a link that leads back up
                return
        entries = sorted(_entries(fs, here))
        yield from (below + name for name, is_folder in entries if not is_folder)
        for name, is_folder in entries:
            if is_folder:
                yield from walk(f"{below}{name}/", above)

    def images() -> Iterator[tuple[str, str]]:
        nonlocal example
        for key in walk("", ()):
            if key.lower().endswith(SUFFIXES):
                yield key, join(uri, key)
            else:
                left_out[os.path.splitext(key)[1].lower() or "no ending"] += 1  # noqa: PTH122 (a key)
                example = example or key

    yield from _items(images())
    if left_out:
        endings = ", ".join(f"{ending} {count}" for ending, count in left_out.most_common(ENDINGS))
        more = ", …" if len(left_out) > ENDINGS else ""
        notes.append(
            f"{uri}: {left_out.total()} files are left out, whose names do not end like an image's ({endings}{more}), such "
            f"as {example}; a list can name them"
        )


def _items(found: Iterable[tuple[str, str]]) -> Iterator[pa.Table]:
    items = iter(found)
    while batch := list(islice(items, BATCH)):
        keys, uris = zip(*batch, strict=True)
        yield pa.table({KEY: pa.array(keys, pa.string()), URI: pa.array(uris, pa.string())})


def _key(uri: str, root: str) -> str:
    """Return an absolute URI's path below a root, or without its protocol where it lies elsewhere."""
    prefix = root.rstrip("/") + "/"
    return uri[len(prefix) :] if uri.startswith(prefix) else uri.partition("://")[2] or uri.lstrip("/")


def _lists(uris: list[str], role: str, root: str | None, notes: list[str]) -> Iterator[pa.Table]:
    """Read lists as one: paths made absolute, columns of reserved names renamed."""
    schema: pa.Schema | None = None
    # Of one dataset: a column that is text in one file is text in all.
    text = set(TEXT_COLUMNS).union(*(_text_columns(uri) for uri in uris if _suffix(uri) in (".csv", ".tsv")))
    for uri in uris:
        base = absolute(root) if root else parent(uri)
        row = 0
        for table in _raw_tables(uri, notes, text):
            name = _path_column(table.schema, role, uri)
            paths = table[name].cast(pa.string()).to_pylist()
            for place, path in enumerate(paths, row):
                if not path:
                    raise UsageError(f"{uri}, row {place}: '{name}' is empty")
            located = [absolute(path, base) for path in paths]
            if row == 0 and located:
                _check_exists(located[0], uri)
            row += len(paths)
            items = pa.table(
                {KEY: pa.array([_key(each, base) for each in located]), URI: pa.array(located, pa.string())}
            )
            for column in table.column_names:
                if column != name:
                    values = table[column]
                    empty = holds_nothing(values.type)
                    items = items.append_column(column, as_text(values.to_pylist()) if empty else values)
            items = _with_free_names(items, uri, role, notes)
            if schema is not None and not items.schema.equals(schema):
                odd = next((each for each in items.schema if each not in schema), None)
                named = f" (column '{odd.name}' of type {odd.type})" if odd else ""
                raise UsageError(f"{uri} has other columns or types than {uris[0]}{named}; all must be alike")
            schema = items.schema
            yield items


def read_map(uri: str) -> Iterator[tuple[str, list[str]]]:
    """Read a list of contents and their styles: columns `content` and `style`, or an object of the one by the other.

    Raises:
        UsageError: it cannot be read, or lacks a column.
    """
    try:
        for table in _raw_tables(absolute(uri), [], pairs=True):
            for name in ("content", "style"):
                if name not in table.column_names:
                    raise UsageError(
                        f"the style map {uri} has no column '{name}'; it needs 'content' and 'style'"
                    )
            for content, styles in zip(table["content"].to_pylist(), table["style"].to_pylist(), strict=True):
                listed = [styles] if isinstance(styles, str) else styles or []
                named = isinstance(listed, list) and all(isinstance(style, str) for style in listed)
                if not (named and isinstance(content, str)):
                    raise UsageError(
                        f"the style map {uri} names {content!r} and {styles!r}; both must be text, or the styles a list of it"
                    )
                yield content, listed
    except UsageError:
        raise
    except (pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read the style map {uri}: {' '.join(str(error).split())}") from None
    except Exception as error:
        raise UsageError(f"cannot read the style map {uri}: {failure(error, absolute(uri))}") from None


def _path_column(schema: pa.Schema, role: str, uri: str) -> str:
    for name in (role, *PATH_COLUMNS):
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind):
                raise UsageError(f"{uri}: column '{name}' is {kind}, it must be string")
            return name
    raise UsageError(
        f"{uri} has no column of paths; name it '{role}' or '{PATH_COLUMNS[0]}' "
        f"(found: {', '.join(schema.names) or 'none'})"
    )


def _with_free_names(items: pa.Table, where: str, role: str, notes: list[str]) -> pa.Table:
    """Rename the columns whose names a manifest or its results need; those of contents are carried, and noted."""
    names = items.column_names
    for place, name in enumerate(names[2:], 2):
        if name in RESERVED or name.startswith("stylize_batch."):
            while names[place] in RESERVED or names.count(names[place]) > 1 or names[place] == name:
                names[place] = f"source_{names[place]}"
            note = f"{where}: column '{name}' is carried as '{names[place]}', since the name is taken"
            if role == "content" and note not in notes:
                notes.append(note)
    return items.rename_columns(names)


def _check_exists(uri: str, where: str) -> None:
    fs, path = filesystem(uri)
    if not fs.exists(path):
        raise UsageError(
            f"{uri}, the first of {where}, does not exist; say where its paths start: --content-root"
        )


def _raw_tables(
    uri: str, notes: list[str], text: Iterable[str] = TEXT_COLUMNS, *, pairs: bool = False
) -> Iterator[pa.Table]:
    """Read a list by the ending of its name; `text` names columns of CSV files that hold no numbers."""
    suffix = _suffix(uri)
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as handle:
        if suffix in (".csv", ".tsv"):
            yield from map(_table, _csv_reader(handle, uri, text))
        elif suffix == ".parquet":
            with pq.ParquetFile(handle) as file:
                yield from map(_table, file.iter_batches(batch_size=BATCH))
        elif suffix == ".json":
            yield from map(_table, _json_table(handle, uri, notes, pairs).to_batches(max_chunksize=BATCH))
        elif suffix not in LISTS:
            raise UsageError(f"{uri} is no list; its name must end in one of {', '.join(LISTS)}")
        else:
            yield from map(
                _table,
                json_lines.read_json(handle, json_lines.ReadOptions(block_size=LIST_BLOCK)).to_batches(
                    max_chunksize=BATCH
                ),
            )


def _csv_reader(handle: Any, uri: str, text: Iterable[str], **options: Any) -> Any:
    return csv.open_csv(
        handle,
        csv.ReadOptions(block_size=LIST_BLOCK),
        csv.ParseOptions(delimiter="\t" if _suffix(uri) == ".tsv" else ",", newlines_in_values=True),
        csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), **options),
    )


def _text_columns(uri: str) -> set[str]:
    """Return the columns of a CSV file that are text, by its first block: what only looks like numbers, as 007 does, too.

    Raises:
        UsageError: the file is not UTF-8.
    """
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as handle:
        schema = _csv_reader(handle, uri, TEXT_COLUMNS).schema
    for field in schema:
        if pa.types.is_binary(field.type):
            raise UsageError(f"{uri} is not UTF-8 in its column '{field.name}'; save it as UTF-8")
    text = {field.name for field in schema if pa.types.is_string(field.type)}
    numbers = [field.name for field in schema if pa.types.is_integer(field.type)]
    if numbers:
        with fs.open(path, "rb") as handle:
            first = _csv_reader(
                handle, uri, [*TEXT_COLUMNS, *numbers], strings_can_be_null=True
            ).read_next_batch()
        text.update(name for name in numbers if not all(map(_is_number, first[name].to_pylist())))
    return text


def _is_number(text: str | None) -> bool:
    return not text or re.fullmatch(r"0|-?[1-9]\d*", text.strip()) is not None


def _suffix(uri: str) -> str:
    return os.path.splitext(uri)[1].lower()  # noqa: PTH122 (a URI)


def _table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def _json_table(handle: Any, uri: str, notes: list[str], pairs: bool) -> pa.Table:
    def without_outlines(object: dict[str, Any]) -> dict[str, Any]:
        if "image_id" in object:
            object.pop("segmentation", None)  # most of COCO's bytes; `annotation_ids` leads back to them
        return object

    found: Any = json.load(handle, object_hook=without_outlines)
    if isinstance(found, list) and all(isinstance(each, dict) for each in found):
        return as_columns(found)
    if pairs and isinstance(found, dict):
        styles = [[each] if isinstance(each, str) else each for each in found.values()]
        return pa.table(
            {"content": pa.array(found, pa.string()), "style": pa.array(styles, pa.list_(pa.string()))}
        )
    try:
        return _coco_table(found, uri, notes)
    except pa.ArrowException:
        raise
    except (KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{uri} is neither COCO annotations nor a list of objects with a path each"
        ) from None


def _coco_table(found: Any, uri: str, notes: list[str]) -> pa.Table:
    """Return a row per image of COCO annotations, with those of its annotations as lists of equal length.

    Raises:
        UsageError: an annotation's category is not among those that the file names.
    """
    names = {
        category["id"]: category.get("name", str(category["id"]))
        for category in found.get("categories") or []
    }
    annotations: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in found.get("annotations") or []:
        if "iscrowd" in annotation:
            annotation["iscrowd"] = int(annotation["iscrowd"] or 0)
        annotations[annotation["image_id"]].append(annotation)
    if names:
        for annotation in chain.from_iterable(annotations.values()):
            if "category_id" in annotation and annotation["category_id"] not in names:
                raise UsageError(
                    f"{uri}: annotation {annotation.get('id')} has the category_id {annotation['category_id']}, which is "
                    "not among the file's categories; add it there or remove the annotation"
                )
    strangers = annotations.keys() - {image["id"] for image in found["images"]}
    if strangers:
        count = sum(len(annotations[image]) for image in strangers)
        notes.append(
            f"{uri}: {count} annotations are left out, whose images it does not list, such as image_id {min(strangers, key=str)}"
        )
    present = {key for each in annotations.values() for annotation in each for key in annotation}
    images: list[dict[str, Any]] = found["images"]
    columns: dict[str, pa.Array] = {
        "file_name": pa.array([image["file_name"] for image in images], pa.string()),
        "image_id": pa.array([image["id"] for image in images]),
        "height": pa.array([image.get("height") for image in images], pa.int32()),
        "width": pa.array([image.get("width") for image in images], pa.int32()),
    }
    for column, key, kind in (
        ("annotation_ids", "id", pa.int64()),
        ("category_ids", "category_id", pa.int64()),
        ("boxes", "bbox", pa.list_(pa.float64())),
        ("iscrowd", "iscrowd", pa.int8()),
        ("captions", "caption", pa.string()),
    ):
        if key in present:
            values = [[each.get(key) for each in annotations[image["id"]]] for image in images]
            columns[column] = pa.array(values, pa.list_(kind))
    if "category_ids" in columns:
        named = [[names.get(each) for each in ids] for ids in columns["category_ids"].to_pylist()]
        columns["categories"] = pa.array(named, pa.list_(pa.string()))
    return pa.table(columns)
