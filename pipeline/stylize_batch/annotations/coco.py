"""COCO annotations of a run's pictures: boxes scaled and moved as the pictures were.

Boxes are taken to be in the upright picture, which EXIF orientation gives and viewers show. Results carry no
segmentations, so `area` is that of the box.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from stylize_batch import __version__
from stylize_batch.errors import counted
from stylize_batch.images.decode import crop_corner, resized
from stylize_batch.results import read_parts
from stylize_batch.root import Root

KEY = "annotations.json"

LISTS: dict[str, tuple[str, pa.DataType]] = {
    "annotation_ids": ("id", pa.list_(pa.int64())),
    "boxes": ("bbox", pa.list_(pa.list_(pa.float64()))),
    "category_ids": ("category_id", pa.list_(pa.int64())),
    "categories": ("category", pa.list_(pa.string())),
    "iscrowd": ("iscrowd", pa.list_(pa.int8())),
    "captions": ("caption", pa.list_(pa.string())),
}
"""Columns that `manifest build` makes of COCO's annotations, one entry for each of an image's: COCO's field, and type."""

_UNPLACED = (
    "picture",
    "pictures",
    "with boxes, since the annotated width and height of the photograph are missing or swapped; correct them in the COCO "
    "file, build the manifest again and run it under another --output",
)
_OUTSIDE = ("box", "boxes", "outside the picture")

_NEEDED = ["output", "pair_id", "height", "width", "image_id", "source_height", "source_width"]


def describes(schema: pa.Schema) -> bool:
    """Whether results carry COCO's columns, as `manifest build` makes them."""
    present = [name for name in LISTS if name in schema.names]
    return (
        bool(present)
        and {"image_id", "source_height", "source_width"} <= {*schema.names}
        and all(schema.field(name).type == LISTS[name][1] for name in present)
        and all(pa.types.is_integer(schema.field(name).type) for name in ("source_height", "source_width"))
    )


class Geometry(NamedTuple):
    """How a photograph became a picture: scaled, then cut.

    Attributes:
        x_scale: pixels of the scaled photograph to a pixel of its width.
        y_scale: the same of its height.
        left: pixels cut off on the left, after scaling.
        top: the same above.
        width: of the picture, pixels.
        height: of the picture, pixels.
    """

    x_scale: float
    y_scale: float
    left: int
    top: int
    width: int
    height: int

    def moved(self, given: list[float | None]) -> list[float] | None:
        """Return a box (left, top, width, height) of the photograph as it lies in the picture.

        None if it is no box, or if less than a pixel of it has been left on a side.
        """
        box = [value for value in given if value is not None and math.isfinite(value)]
        if not len(box) == len(given) == 4:
            return None
        x, y, width, height = box
        wide, high = width * self.x_scale, height * self.y_scale
        x, y = x * self.x_scale - self.left, y * self.y_scale - self.top
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + wide, self.width), min(y + high, self.height)
        kept = right - left, bottom - top
        if any(
            side <= 0 or (side < 1 and side < whole) for side, whole in zip(kept, (wide, high), strict=True)
        ):
            return None
        return [round(value, 3) for value in (left, top, *kept)]


def geometry(
    source: tuple[int | None, int | None], picture: tuple[int, int], size: int | None, crop: int | None
) -> Geometry | None:
    """Return how a photograph became a picture; None if what the annotations say of its size cannot tell.

    Args:
        source: width and height of the photograph, as its annotations have them.
        picture: width and height of the picture.
        size: the run's `--size`.
        crop: its `--crop`.
    """
    width, height = source
    if not width or not height:
        return None
    if crop is None:
        if width != height and (picture[0] > picture[1]) != (width > height) and picture[0] != picture[1]:
            return None  # annotated as it is stored, on its side
        return Geometry(picture[0] / width, picture[1] / height, 0, 0, *picture)
    scaled = (width, height) if size is None else resized(width, height, size)
    return Geometry(scaled[0] / width, scaled[1] / height, *crop_corner(*scaled, crop), *picture)


def write(
    root: Root,
    run: str,
    shards: int,
    schema: pa.Schema,
    size: int | None,
    crop: int | None,
    categories: list[dict[str, Any]],
) -> list[str]:
    """Write `annotations.json`, and return a line for each kind of thing that is not in it.

    In memory are the numbers of images and annotations, 8 bytes each, and a few parts of the results.

    Args:
        root: of the run.
        run: its identity.
        shards: how many it has.
        schema: of its results.
        size: the run's `--size`.
        crop: its `--crop`.
        categories: of the annotations, as they stand there; those that no picture has stay, so that what is numbered by
            them is the same for every run.
    """
    columns = [*_NEEDED, *(name for name in LISTS if name in schema.names)]
    rewriting = (columns, _own_ids(root, run, shards), size, crop, categories)
    notes: list[str] = []

    def put(file: IO[bytes]) -> None:
        notes[:] = _Rewriting(root, run, shards, *rewriting).write(file)  # storage may ask for the file again

    root.put_large(KEY, put)
    return notes


class _OwnIds(NamedTuple):
    """Whether images, and annotations, keep their numbers: they do where no two pictures would share one."""

    images: bool
    annotations: bool


def _own_ids(root: Root, run: str, shards: int) -> _OwnIds:
    images, annotations = list[np.ndarray](), list[np.ndarray]()
    numbered = True
    for table in read_parts(root, run, ["output", "image_id", "annotation_ids"], shards):
        table = table.filter(table["output"].is_valid())
        ids = table["image_id"]
        if not pa.types.is_integer(ids.type) or ids.null_count:
            return _OwnIds(False, False)
        images.append(ids.to_numpy())
        if "annotation_ids" in table.column_names:
            found = table["annotation_ids"].combine_chunks().flatten()
            numbered &= not found.null_count
            annotations.append(found.drop_null().to_numpy())
        else:
            numbered = False
    alone = _distinct(images)
    return _OwnIds(alone, alone and numbered and _distinct(annotations))


def _distinct(parts: list[np.ndarray]) -> bool:
    ids = np.sort(np.concatenate(parts)) if parts else np.empty(0)
    return not (ids[1:] == ids[:-1]).any()


class _Rewriting:
    """Streams the results into one JSON object."""

    def __init__(
        self,
        root: Root,
        run: str,
        shards: int,
        columns: list[str],
        own_ids: _OwnIds,
        size: int | None,
        crop: int | None,
        categories: list[dict[str, Any]],
    ) -> None:
        self._root = root
        self._run = run
        self._shards = shards
        self._columns = columns
        self._own_ids = own_ids
        self._size, self._crop = size, crop
        self._images = 0
        self._annotations = 0
        self._categories = {each["id"]: each for each in categories}
        self._left_out: Counter[tuple[str, str, str]] = Counter()

    def write(self, file: IO[bytes]) -> list[str]:
        """Write everything, and return a line for each kind of thing that is left out."""
        with self._root.spool() as spool:
            file.write(b'{"images": [')
            for row in self._rows():
                self._add(file, row, spool)
            file.write(b'\n],\n"annotations": [')
            spool.seek(0)
            shutil.copyfileobj(spool, file)
        ends = {"categories": [each for _, each in sorted(self._categories.items())], "info": self._info()}
        texts = [f"{_dumps(name)}: {_dumps(value)}" for name, value in ends.items()]
        file.write(("\n],\n" + ",\n".join(texts) + "}\n").encode())
        return [f"{KEY} leaves out {what}" for what in self._lines()]

    def _rows(self) -> Iterator[dict[str, Any]]:
        for table in read_parts(self._root, self._run, self._columns, self._shards):
            yield from table.filter(table["output"].is_valid()).to_pylist()

    def _add(self, images: IO[bytes], row: dict[str, Any], annotations: IO[bytes]) -> None:
        """Write an image, and its annotations; without its boxes a detector would take it for one of background."""
        placed = geometry(
            (row["source_width"], row["source_height"]), (row["width"], row["height"]), self._size, self._crop
        )
        if placed is None and any(box is not None for box in row.get("boxes") or []):
            self._left_out[_UNPLACED] += 1
            return
        self._images += 1
        id = row["image_id"] if self._own_ids.images else self._images
        image = {
            "id": id,
            "file_name": row["output"].removeprefix(self._root.uri_of("images") + "/"),
            "width": row["width"],
            "height": row["height"],
            "pair_id": row["pair_id"],
        }
        _append(
            images, self._images, image if self._own_ids.images else {**image, "source_id": row["image_id"]}
        )
        lists = [(LISTS[name][0], row[name] or []) for name in self._columns if name in LISTS]
        for place in range(len(lists[0][1])):
            found = {field: values[place] for field, values in lists if place < len(values)}
            annotation = self._annotation(found, id, placed)
            if annotation is not None:
                _append(annotations, self._annotations, annotation)

    def _annotation(
        self, found: dict[str, Any], image: int, placed: Geometry | None
    ) -> dict[str, Any] | None:
        """Return an annotation of the picture; None if nothing of it is there."""
        box = None
        if placed is not None and found.get("bbox") is not None:
            box = placed.moved(found["bbox"])
            if box is None:
                self._left_out[_OUTSIDE] += 1
                return None
        self._annotations += 1
        category = found.get("category_id")
        if category is not None:
            named = {"id": category, "name": found.get("category") or str(category)}
            self._categories.setdefault(category, named)
        annotation: dict[str, Any] = {
            "id": found["id"] if self._own_ids.annotations else self._annotations,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": None if box is None else round(box[2] * box[3], 3),
            "iscrowd": (found.get("iscrowd") or 0) if box is not None else None,
            "caption": found.get("caption"),
            "source_id": None if self._own_ids.annotations else found.get("id"),
        }
        return {field: value for field, value in annotation.items() if value is not None}

    def _info(self) -> dict[str, Any]:
        relied = ""
        if self._crop is not None:  # a square does not show whether its photograph was annotated on its side
            relied = (
                " The pictures are cropped: boxes are right if the annotated width and height are those of the upright "
                "photograph."
            )
        left_out = "".join(f" Left out: {what}." for what in self._lines())
        return {
            "description": "Annotations of stylized pictures. Boxes are scaled and moved as the pictures were, area is that "
            f"of the box; segmentations are not carried.{relied}{left_out}",
            "version": f"stylize-batch {__version__}",
        }

    def _lines(self) -> list[str]:
        return [
            f"{counted(count, one, many)} {which}" for (one, many, which), count in self._left_out.items()
        ]


def _append(file: IO[bytes], number: int, item: dict[str, Any]) -> None:
    file.write((",\n" if number > 1 else "\n").encode() + _dumps(item).encode())


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
