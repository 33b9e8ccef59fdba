"""Archives of images (WebDataset tar, Parquet with embedded images) become files under a folder of their own.

Each archive's index is written last, so an archive is done when its index exists: a repeated command goes on with
the next one. Members are written by `Root.put` under safe names; nothing is ever extracted by path.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stylize_batch import parquet
from stylize_batch.errors import JobFailedError, RowError, UsageError, os_errors_as
from stylize_batch.images.decode import FORMATS, SUFFIXES
from stylize_batch.manifest.naming import MARK, digest, folded, marked, safe_key, shortened
from stylize_batch.manifest.source import decoded, decoded_schema, gathered
from stylize_batch.storage import Root, filesystem, fingerprint, join

if TYPE_CHECKING:
    from stylize_batch.progress import Observer

KEY, URI = "stylize_batch.key", "stylize_batch.uri"
"""Columns of an item: its path below its source, and where it is."""

MARK_KEY = "unpacked.json"
"""Says that a folder is ours to write to."""

MAX_ARCHIVE_NAME = 64
"""Bytes of an archive's name in the folder's name."""

MAX_MEMBER = 256 << 20
"""Bytes of one member; a larger one is left out."""

SLACK = 64 << 20
"""Bytes a tar file may hold between two members: headers, or what is left of a damaged member."""

MAX_EXPANSION, LEAST = 200, 1 << 30
"""A compressed archive may hold so many times its own bytes (and a gigabyte in any case)."""

PUT_THREADS = 16
PUTS = 64
"""Images in memory at once."""

LOOK_ROWS, LOOK_BYTES = 16, 1 << 22
"""Rows of a column, and bytes of a file at once, that are read to see whether it holds images."""

ENDINGS = 5
"""Endings of names that a note about files left out counts one by one."""

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


class LeftOut:
    """Files that are left out, counted by the endings of their names."""

    def __init__(self) -> None:
        self._endings: Counter[str] = Counter()
        self._example = ""

    def add(self, name: str) -> None:
        """Count one."""
        self._endings[os.path.splitext(name)[1].lower() or "no ending"] += 1  # noqa: PTH122 (a key)
        self._example = self._example or name

    def __len__(self) -> int:
        return self._endings.total()

    def __str__(self) -> str:
        endings = ", ".join(f"{ending} {count}" for ending, count in self._endings.most_common(ENDINGS))
        return f"({endings}{', …' if len(self._endings) > ENDINGS else ''}), such as {self._example}"


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
        out = _Extraction(root, f"{role}/images/{name}", uri)
        fs, path = filesystem(uri)
        with fs.open(path, "rb") as handle:
            if uri.lower().endswith(".parquet"):
                columns = _from_parquet(handle, fs.size(path), out)
            else:
                columns = _from_tar(handle, fs.size(path), uri.lower().endswith("gz"), out)
        out.put()
        part = _SPLIT_FILE.match(uri.rpartition("/")[2])
        if (
            part and role == "content" and "split" not in columns.column_names
        ):  # styles of one split serve all
            columns = columns.append_column("split", pa.array([part[1]] * len(out.keys), pa.string()))
        if not out.keys:
            out.problem("no images in it")
        if out.beside:
            out.note(f"{out.beside} images beside others of their sample are left out")
        if out.unused:
            out.note(
                f"{len(out.unused)} members are left out, whose names from the first dot on are neither an image's nor .cls, .json "
                f"or .txt {out.unused}"
            )
        if out.alone:
            out.note(
                f"{len(out.alone)} members are left out, whose sample has no image {out.alone}; put the members of a sample "
                "one after another, under names that are the same up to the first dot"
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


class _Extraction:
    """Writes images under distinct safe names, some at a time, and keeps count of them."""

    def __init__(self, root: Root, folder: str, archive: str) -> None:
        self.keys: list[str] = []
        self.objects: list[str] = []
        self.beside = 0
        self.unused, self.alone = LeftOut(), LeftOut()
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._root, self._folder, self._archive = root, folder, archive
        self._seen: set[int] = set()
        self._pending: list[tuple[str, bytes]] = []

    def note(self, what: str) -> None:
        """Remember a line for the user."""
        self.notes.append(f"{self._archive}: {what}")

    def problem(self, what: str) -> None:
        """Remember what could not be unpacked."""
        self.problems.append(f"{self._archive}: {what}")

    def add(self, name: str, data: bytes) -> None:
        """Take an image."""
        key = safe_key(name, room=MARK)
        if hash(folded(key)) in self._seen:
            stem, dot, suffix = key.rpartition(".")
            key = marked(stem or suffix, dot + suffix if stem else "", f"{name}\0{len(self.keys)}")
        self._seen.add(hash(folded(key)))
        self.keys.append(key)
        self.objects.append(join(self._folder, key))
        self._pending.append((self.objects[-1], data))
        if len(self._pending) >= PUTS or sum(len(each) for _, each in self._pending) > SLACK:
            self.put()

    def put(self) -> None:
        """Write what has been taken."""
        with ThreadPoolExecutor(PUT_THREADS) as threads:
            list(threads.map(self._root.put, *zip(*self._pending, strict=True)))
        self._pending.clear()


def _from_parquet(handle: Any, size: int | None, out: _Extraction) -> pa.Table:
    """Extract the rows of a Parquet file; returns their other columns, those of bytes left out."""
    with open_embedded(handle) as file:
        schema = file.schema_arrow
        columns = _image_columns(file)
        if not columns:
            return pa.table({})
        image, *left = columns
        carried = [name for name in schema.names if name not in (image, *left)]
        if left:
            out.note(f"columns of other images are left out: {', '.join(left)}")
        kept: list[pa.RecordBatch] = []
        row = empty = 0
        first_empty = 0
        left = _most(size)
        # So few at a time that they are not too much even if each holds all that the row group holds once.
        groups = (file.metadata.row_group(index) for index in range(file.num_row_groups))
        largest = max((group.total_byte_size for group in groups), default=0)
        few = min(max(1, 2 * SLACK // max(1, largest)), PUTS)
        batches = file.iter_batches(few, columns=[image, *carried])
        for some in gathered(map(decoded, batches), SLACK, PUTS):
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
                    first_empty = first_empty if empty else row + place
                    empty += 1
                    continue
                if len(data) > MAX_MEMBER:
                    out.problem(
                        f"row {row + place} has {len(data)} bytes, the limit is {MAX_MEMBER}; left out"
                    )
                    continue
                out.add(name, data)
                rows.append(place)
            kept.append(batch.select(carried).take(pa.array(rows, pa.int64())))
            row += len(batch)
        if empty:
            out.problem(f"{empty} rows hold no image, such as row {first_empty}")
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


def _from_tar(handle: Any, size: int | None, compressed: bool, out: _Extraction) -> pa.Table:
    """Extract the images of a tar file; returns columns made of the members beside them (WebDataset).

    Members whose names agree up to the first dot are one sample: `.cls` is its label, the fields of `.json` and the
    text of `.txt` are columns.
    """
    rows: list[dict[str, Any]] = []
    sample = _Sample("")
    headers = _header_class()
    total = _most(size) if compressed else None
    stream: Any = _Bounded(gzip.GzipFile(fileobj=handle) if compressed else handle, total)
    try:
        # Damaged headers are skipped and remembered: what follows them is still there.
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=headers, ignore_zeros=True) as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"].clear()  # tarfile keeps all it has seen
                stream.allow(member.size + SLACK)
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                suffix = suffix.lower()
                is_image = f".{suffix}".endswith(SUFFIXES)
                if not stem or member.isdir():
                    continue
                if not (is_image or suffix in _SIDECARS):
                    out.unused.add(member.name)
                    continue
                if not member.isfile() or member.issparse():
                    out.problem(f"{member.name} is a link, a device or sparse, and no plain file; left out")
                    continue
                if member.size > MAX_MEMBER:
                    out.problem(f"{member.name} has {member.size} bytes, the limit is {MAX_MEMBER}; left out")
                    continue
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                if f"{folder}/{stem}" != sample.base:
                    rows += sample.extract(out)
                    sample = _Sample(f"{folder}/{stem}")
                if is_image:
                    sample.images.append((member.name, data))
                    # More than memory shall hold: numbered frames, most likely, and no sample.
                    if len(sample.images) >= PUTS or sample.size > MAX_MEMBER:
                        rows += sample.extract(out)
                else:
                    sample.add_sidecar(member.name, suffix, data, out)
    except (tarfile.TarError, ValueError, EOFError, zlib.error, gzip.BadGzipFile, _TooMuchError) as error:
        out.problem(f"is damaged ({error or type(error).__name__}); what came before is kept")
    else:
        if headers.damaged:
            out.problem("is damaged inside; what could be read is kept")
        elif not headers.ended:
            out.problem("has no end mark and may be cut off; what could be read is kept")
    rows += sample.extract(out)
    return parquet.as_columns(rows)


_SIDECARS = ("cls", "json", "txt")


class _Sample:
    """Members of a tar file that belong together."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.images: list[tuple[str, bytes]] = []
        self._columns: dict[str, Any] = {}
        self._fields: dict[str, Any] = {}
        self._members: dict[str, Any] = {}
        self._sidecars: list[str] = []
        self._has_images = False

    @property
    def size(self) -> int:
        """Bytes of the images it holds."""
        return sum(len(data) for _, data in self.images)

    def add_sidecar(self, name: str, suffix: str, data: bytes, out: _Extraction) -> None:
        """Read what a member says of the images beside it."""
        self._sidecars.append(name)
        try:
            text = data.decode().strip()
            if suffix == "cls":
                self._members["label"] = int(text) if re.fullmatch(r"-?\d+", text) else text
            elif suffix == "txt":
                self._members["txt"] = text
            else:
                found = json.loads(text)
                json.dumps(found, ensure_ascii=False).encode()  # or no column could hold it
                self._fields |= found if isinstance(found, dict) else {"json": found}
        except (ValueError, RecursionError) as error:
            out.problem(f"{name} cannot be read ({error}); its image is kept")
        # A member of its own wins over a field, whichever comes first.
        differing = {
            f"source_{field}": self._fields[field]
            for field, value in self._members.items()
            if self._fields.get(field) not in (None, value)
        }
        self._columns |= differing | self._fields | self._members  # in place: images handed over have it, too

    def extract(self, out: _Extraction) -> list[dict[str, Any]]:
        """Hand the images over; returns the columns of each."""
        self._has_images |= bool(self.images)
        if not self._has_images:
            for name in self._sidecars:
                out.alone.add(name)
        chosen = self.images
        if self._sidecars:  # `0001.seg.png` beside `0001.jpg` says something of it, too
            chosen = [each for each in chosen if each[0].rpartition("/")[2].count(".") == 1] or chosen
        for name, data in chosen:
            out.add(name, data)
        out.beside += len(self.images) - len(chosen)
        self.images = []
        return [self._columns] * len(chosen)


def _header_class() -> Any:
    class Header(tarfile.TarInfo):
        """Remembers what tarfile passes over in silence."""

        damaged = False
        ended = False

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError:
                if buf and not any(buf):
                    cls.ended = True
                elif buf and not cls.ended:
                    cls.damaged = True
                raise

    return Header


TOO_MUCH = "it expands to too many times its size"


def _most(size: int | None) -> int:
    """Return the bytes that a compressed archive of a size may hold."""
    return max(LEAST, MAX_EXPANSION * (size or 0))


class _TooMuchError(Exception):
    """An archive holds more than it should."""


class _Bounded:
    """A stream that gives no more than has been allowed, so that neither headers nor compression fill the memory."""

    def __init__(self, file: Any, total: int | None) -> None:
        self._file, self._total, self._left = file, total, SLACK

    def allow(self, size: int) -> None:
        """Allow so many bytes from here on."""
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """Read as a file does."""
        data = self._file.read(size)
        self._left -= len(data)
        if self._total is not None:
            self._total -= len(data)
        if self._left < 0:
            raise _TooMuchError("no readable member for a long stretch")
        if self._total is not None and self._total < 0:
            raise _TooMuchError(TOO_MUCH)
        return data


def _prefixes(names: list[str]) -> list[str]:
    """Return a folder for each archive, named without its ending unless another's name has the same beginning."""
    stems = Counter(map(_without_suffix, names))
    return [f"{stem if stems[stem := _without_suffix(name)] == 1 else name}/" for name in names]


def _without_suffix(name: str) -> str:
    for suffix in (".tar", ".tar.gz", ".tgz", ".parquet"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
