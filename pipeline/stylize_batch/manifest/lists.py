"""Lists of images, as sources and as style maps: CSV, JSON lines, JSON, COCO annotations, Parquet."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import io
import json
import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from csv import reader as rows_of
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pyarrow import csv
from pyarrow import json as json_lines

from stylize_batch.errors import UsageError, counted
from stylize_batch.manifest.items import KEY, URI
from stylize_batch.manifest.naming import key_below
from stylize_batch.manifest.schema import CATEGORIES, RESULT_COLUMNS, free_name
from stylize_batch.parquet import as_columns, as_text, text_for_times, unfit, with_leaves
from stylize_batch.storage import absolute, failure, filesystem, kind, parent

BATCH = 65_536
"""Items in memory at once while a source is read."""

LIST_BLOCK = 1 << 26
"""Bytes of a list that are read at once; the first of a CSV file decide its columns' types."""

PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")
"""Columns of a list, after `content` or `style`, that are taken for the images' paths."""

TEXT_COLUMNS = ("content", "style", *PATH_COLUMNS)
"""Columns of a CSV file that are text whatever they look like."""

NAME_COLUMNS = ("label", "split")
"""Columns of a CSV file that name classes: text unless they hold whole numbers alone, since 1.1 and 1.10 may be two."""

UNNAMED = ""
"""A column that is left out: pandas writes its index so."""

HEADER = 1 << 20
"""Bytes that hold a CSV file's header."""

SEPARATORS = {",": ("commas", ".csv"), "\t": ("tabs", ".tsv"), ";": ("semicolons", None)}
"""What columns of a CSV file are separated by, and the ending of its name that says so."""

LISTS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
"""Endings of their names."""

CARRIED = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "caption"}
"""Fields of COCO's annotations that reach the results; the area is made anew, of the box."""

RESERVED = {*RESULT_COLUMNS, "style_weights", "preserve_color", "mask", "style_label"}
"""Columns that a built manifest or its results have themselves; a list's own of that name get a prefix."""


def read_lists(uris: list[str], role: str, root: str | None, notes: list[str]) -> Iterator[pa.Table]:
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
                {
                    KEY: pa.array(
                        [_key(*each, base) for each in zip(paths, located, strict=True)], pa.string()
                    ),
                    URI: pa.array(located, pa.string()),
                }
            )
            for column in table.column_names:
                if column not in (name, UNNAMED):
                    values = table[column]
                    empty = unfit(values.type)
                    items = items.append_column(column, as_text(values.to_pylist()) if empty else values)
            unnamed = f"{uri}: a column without a name is left out, as pandas' index is"
            if UNNAMED in table.column_names and role == "content" and unnamed not in notes:
                notes.append(unnamed)
            items = with_free_names(items, uri, role, notes)
            metadata = table.schema.metadata or {}
            if CATEGORIES in metadata:
                items = items.replace_schema_metadata({CATEGORIES: metadata[CATEGORIES]})
            if schema is not None and not items.schema.equals(schema):
                odd = next((each for each in items.schema if each not in schema), None)
                named = f" (column '{odd.name}' of type {odd.type})" if odd else ""
                raise UsageError(f"{uri} has other columns or types than {uris[0]}{named}; all must be alike")
            if schema is not None and _categories(items.schema) != _categories(schema):
                raise UsageError(
                    f"{uri} has other 'categories' than {uris[0]}; give both all of them, each with one id, or build a "
                    "manifest of each file"
                )
            schema = items.schema
            yield items
    if schema is None:
        raise UsageError(f"{uris[0]} has no rows; it needs one for each image")


def _key(path: str, uri: str, base: str) -> str:
    """Return a row's path below the base. One that leaves it by `../` is named as written, without that: its absolute path
    would depend on where the base lies."""
    written = posixpath.normpath(path)
    if written.startswith("../") and not uri.startswith(base.rstrip("/") + "/"):
        return re.sub(r"^(\.\./)+", "", written)
    return key_below(uri, base)


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
        raise UsageError(f"cannot read the style map {uri}: {error}") from None
    except Exception as error:
        raise UsageError(f"cannot read the style map {uri}: {failure(error, absolute(uri))}") from None


def _categories(schema: pa.Schema) -> dict[int, dict[str, Any]]:
    """Return the categories of COCO annotations by their ids; other lists have none."""
    return {each["id"]: each for each in json.loads((schema.metadata or {}).get(CATEGORIES, b"[]"))}


def _path_column(schema: pa.Schema, role: str, uri: str) -> str:
    for name in (role, *PATH_COLUMNS):
        if name in schema.names:
            found = schema.field(name).type
            if pa.types.is_nested(found) or pa.types.is_binary(found):
                raise UsageError(f"{uri}: column '{name}' is {found}, it must be string")
            return name
    names = ", ".join(schema.names) or "none"
    raise UsageError(
        f"{uri} has no column of paths; name it '{role}' or '{PATH_COLUMNS[0]}' (found: {names})"
    )


def with_free_names(items: pa.Table, where: str, role: str, notes: list[str]) -> pa.Table:
    """Rename the columns whose names a manifest or its results need; those of contents are carried, and noted."""
    names = items.column_names
    for place, name in enumerate(names[2:], 2):
        if name in RESERVED or name.startswith("stylize_batch."):
            names[place] = free_name(name, {*RESERVED, *names})
            note = f"{where}: column '{name}' is carried as '{names[place]}', since the name is taken"
            if role == "content" and note not in notes:
                notes.append(note)
    return items.rename_columns(names)


def _check_exists(uri: str, where: str) -> None:
    fs, path = filesystem(uri)
    if kind(fs, path) is None:
        advice = "write / for \\" if "\\" in uri else "say where its paths start: --content-root"
        raise UsageError(f"{uri}, the first of {where}, does not exist; {advice}")


def _raw_tables(
    uri: str, notes: list[str], text: Iterable[str] = TEXT_COLUMNS, *, pairs: bool = False
) -> Iterator[pa.Table]:
    """Read a list by the ending of its name; `text` names columns of CSV files that hold no numbers."""
    suffix = _suffix(uri)
    if suffix in (".csv", ".tsv"):
        yield from _csv_tables(uri, text)
        return
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as handle:
        if suffix == ".parquet":
            with pq.ParquetFile(handle) as file:
                _refuse_repeated(file.schema_arrow.names, uri)
                yield from map(as_table, file.iter_batches(batch_size=BATCH))
        elif suffix == ".json":
            yield from map(as_table, _json_table(handle, uri, notes, pairs).to_batches(max_chunksize=BATCH))
        elif suffix not in LISTS:
            raise UsageError(f"{uri} is no list; its name must end in one of {', '.join(LISTS)}")
        else:
            yield from map(as_table, _json_lines(handle).to_batches(max_chunksize=BATCH))


def _json_lines(handle: Any) -> pa.Table:
    """Read JSON lines. Text that looks like a time, which Arrow takes for one, stays text, as it is in JSON."""
    options = json_lines.ReadOptions(block_size=LIST_BLOCK)
    table = json_lines.read_json(handle, options)
    fields = [field for field in table.schema if not unfit(field.type)]
    written = [field.with_type(with_leaves(field.type, text_for_times)) for field in fields]
    if written == fields:
        return table
    names = table.column_names
    del table  # or two would be in memory
    handle.seek(0)
    known = json_lines.ParseOptions(explicit_schema=pa.schema(written))
    return json_lines.read_json(handle, options, known).select(names)


def _csv_tables(uri: str, text: Iterable[str]) -> Iterator[pa.Table]:
    """Read a CSV file, whose first block decides the types of columns that are not `text`.

    Raises:
        UsageError: a column is of another type further on.
    """
    with _csv_file(uri) as handle:
        reader = _csv_reader(handle, uri, text)
        names = _stripped(reader.schema)
        try:
            yield from (as_table(batch).rename_columns(names) for batch in reader)
        except pa.ArrowInvalid as error:
            found = re.match(r"In CSV column #(\d+): (.*)", str(error), re.DOTALL)
            if found is None:
                raise
            name, reason = names[int(found[1])], found[2]
            if "invalid UTF8" in reason:
                raise _not_utf8(uri, f"column '{name}'") from None
            raise UsageError(
                f"{uri}: column '{name}' is of another type at its beginning ({reason}); move such a row to the top of the "
                "file, or save the list as Parquet"
            ) from None


def _not_utf8(uri: str, where: str) -> UsageError:
    return UsageError(f"{uri} is not UTF-8 in its {where}; save it as UTF-8")


def _csv_file(uri: str) -> Any:
    """Open a CSV file. Arrow reads ahead of who takes its rows, in a thread of its own, which must not wait for Python when
    an error ends the process: that aborts it (exit status 134). So it gets files of this machine without Python."""
    fs, path = filesystem(uri)
    return pa.OSFile(path, "rb") if isinstance(fs, LocalFileSystem) else fs.open(path, "rb")


def _csv_reader(handle: Any, uri: str, text: Iterable[str], **options: Any) -> Any:
    """Begin to read a CSV file.

    Raises:
        UsageError: its header is not UTF-8, its columns are separated by something else, or two have one name.
    """
    separator = "\t" if _suffix(uri) == ".tsv" else ","
    typed = {*text, UNNAMED}
    named = [name for name in _header(uri, separator) if name.strip() in typed]
    reader = csv.open_csv(
        handle,
        csv.ReadOptions(block_size=LIST_BLOCK),
        csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        csv.ConvertOptions(column_types=dict.fromkeys(named, pa.string()), **options),
    )
    try:
        names = _stripped(reader.schema)
    except UnicodeDecodeError:
        raise _not_utf8(uri, "header") from None
    _refuse_repeated(names, uri)
    return reader


def _header(uri: str, separator: str) -> list[str]:
    """Return the names of a CSV file's columns as they are written, blanks around them included.

    Raises:
        UsageError: the file is UTF-16, or its columns are separated by something else.
    """
    with _csv_file(uri) as handle:  # not the reader's, which may be a stream that cannot go back
        head: bytes = handle.read(HEADER)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head.partition(b"\n")[0]:
        raise UsageError(f"{uri} is UTF-16; save it as CSV UTF-8")
    lines = io.StringIO(head.decode("utf-8-sig", "replace"), newline="")
    names = next(filter(None, rows_of(lines, delimiter=separator)), [])
    for other, (name, ending) in SEPARATORS.items():
        if len(names) == 1 and other in names[0]:
            advice = f", or name it {ending}" if ending else ""
            raise UsageError(
                f"{uri} separates columns by {name}; separate them by {SEPARATORS[separator][0]}{advice}"
            )
    return names


def _stripped(schema: pa.Schema) -> list[str]:
    """Return the names of a CSV file's columns without the blanks of `path, label`."""
    return [name.strip() for name in schema.names]


def _refuse_repeated(names: list[str], uri: str) -> None:
    for name, count in Counter(names).items():
        if count > 1 and name != UNNAMED:
            raise UsageError(f"{uri} has the column '{name}' {count} times; rename or remove all but one")


def _text_columns(uri: str) -> set[str]:
    """Return the columns of a CSV file that are text, by its first block: what only looks like numbers, as 007 does, too,
    and what is empty there, since anything may follow.

    Raises:
        UsageError: the file is not UTF-8, or no CSV file.
    """
    with _csv_file(uri) as handle:
        found = _csv_reader(handle, uri, TEXT_COLUMNS).schema
    schema = pa.schema([field.with_name(field.name.strip()) for field in found])
    for field in schema:
        if pa.types.is_binary(field.type):
            raise _not_utf8(uri, f"column '{field.name}'")
    text = {field.name for field in schema if _is_text(field)}
    numbers = {field.name: field.type for field in schema if _is_number(field.type)}
    if numbers:
        with _csv_file(uri) as handle:
            reader = _csv_reader(handle, uri, [*TEXT_COLUMNS, *numbers], strings_can_be_null=True)
            first = as_table(reader.read_next_batch()).rename_columns(schema.names)
        text.update(name for name, kind in numbers.items() if _changed_as_numbers(first[name], kind))
    return text


def _is_text(field: pa.Field) -> bool:
    named = field.name in NAME_COLUMNS and not pa.types.is_integer(field.type)
    return named or pa.types.is_string(field.type) or pa.types.is_null(field.type)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _changed_as_numbers(texts: pa.ChunkedArray, kind: pa.DataType) -> bool:
    """Whether some of the texts would not be what they are once they are numbers, as 007 would be 7.

    Among floats that holds of whole numbers only, and of what is too large for one: codes look like these, and digits
    behind a point are a measurement's.
    """
    texts = pc.utf8_trim_whitespace(texts)
    if pa.types.is_integer(kind):
        return pc.all(pc.match_substring_regex(texts, r"^(0|-?[1-9]\d*)$")).as_py() is False
    codes = pc.match_substring_regex(texts, r"^(\+\d+|-?0\d+|-?\d{16,})$")
    endless = pc.and_(pc.is_inf(texts.cast(kind)), pc.match_substring_regex(texts, r"\d"))
    return pc.any(pc.or_(codes, endless)).as_py() is True


def _suffix(uri: str) -> str:
    return os.path.splitext(uri)[1].lower()  # noqa: PTH122 (a URI)


def as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def _json_table(handle: Any, uri: str, notes: list[str], pairs: bool) -> pa.Table:
    def without_outlines(object: dict[str, Any]) -> dict[str, Any]:
        if "segmentation" in object and "image_id" in object and object.keys().isdisjoint(TEXT_COLUMNS):
            object["segmentation"] = bool(object["segmentation"])  # most of COCO's bytes
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
    except (KeyError, TypeError, AttributeError) as error:
        if isinstance(error, KeyError) and "images" in found:
            raise UsageError(
                f"{uri}: an image, an annotation or a category has no field {error}; add it to each"
            ) from None
        raise UsageError(
            f"{uri} is neither COCO annotations nor a list of objects with a path each"
        ) from None


def _coco_table(found: Any, uri: str, notes: list[str]) -> pa.Table:
    """Return a row per image of COCO annotations, with those of its annotations as lists of equal length.

    The categories are in the metadata: there are some that no image has.

    Raises:
        UsageError: an annotation's category is not among those that the file names, or a field has the wrong type.
    """

    def typed(values: list[Any], kind: pa.DataType | None, field: str) -> pa.Array:
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, OverflowError) as error:
            wanted = kind.value_type if kind is not None and pa.types.is_list(kind) else kind or "of one type"
            raise UsageError(f"{uri}: {field} must be {wanted}; correct it in the file ({error})") from None

    categories = [{"name": str(category["id"]), **category} for category in found.get("categories") or []]
    names = {category["id"]: category["name"] for category in categories}
    typed([*names], pa.int64(), "'id' of categories")
    annotations: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in found.get("annotations") or []:
        if "iscrowd" in annotation:
            with suppress(ValueError, TypeError):  # `typed` names the field
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
            f"{uri}: {counted(count, 'annotation is', 'annotations are')} left out, of images it does not list, "
            f"such as image_id {min(strangers, key=str)}"
        )
    present = {key for each in annotations.values() for annotation in each for key in annotation}
    lost = {key for each in chain.from_iterable(annotations.values()) for key, value in each.items() if value}
    if lost - CARRIED:
        notes.append(
            f"{uri}: left out of its annotations: {', '.join(sorted(lost - CARRIED))}; boxes, categories and captions are carried"
        )
    images: list[dict[str, Any]] = found["images"]
    twice = [id for id, count in Counter(image["id"] for image in images).items() if count > 1]
    if twice:
        raise UsageError(
            f"{uri}: {counted(len(twice), 'image id stands', 'image ids stand')} there twice, "
            f"such as {twice[0]}; give each image its own"
        )
    columns: dict[str, pa.Array] = {
        "file_name": typed([image["file_name"] for image in images], pa.string(), "'file_name' of images"),
        "image_id": typed([image["id"] for image in images], None, "'id' of images"),
        "height": typed([image.get("height") for image in images], pa.int32(), "'height' of images"),
        "width": typed([image.get("width") for image in images], pa.int32(), "'width' of images"),
    }
    for column, key, element in (
        ("annotation_ids", "id", pa.int64()),
        ("category_ids", "category_id", pa.int64()),
        ("boxes", "bbox", pa.list_(pa.float64())),
        ("iscrowd", "iscrowd", pa.int8()),
        ("captions", "caption", pa.string()),
    ):
        if key in present:
            values = [[each.get(key) for each in annotations[image["id"]]] for image in images]
            columns[column] = typed(values, pa.list_(element), f"'{key}' of annotations")
    if "category_ids" in columns:
        named = [[names.get(each) for each in ids] for ids in columns["category_ids"].to_pylist()]
        columns["categories"] = pa.array(named, pa.list_(pa.string()))
    return pa.table(columns, metadata={CATEGORIES: json.dumps(categories).encode()})
