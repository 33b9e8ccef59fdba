"""Annotation files beside a run's pictures: those of the dataset the pictures were made of, rewritten for them."""

from __future__ import annotations

from typing import Any, NamedTuple

from stylize_batch.annotations import coco, image_folder
from stylize_batch.results import read_parts
from stylize_batch.root import Root


class Written(NamedTuple):
    """Annotation files of a run.

    Attributes:
        keys: of the files.
        notes: one line for each kind of thing that is not in them.
    """

    keys: list[str]
    notes: list[str]


def write_annotations(
    root: Root,
    run: str,
    shards: int,
    size: int | None,
    crop: int | None,
    categories: list[dict[str, Any]],
) -> Written:
    """Write what the results' columns call for.

    COCO's columns become `annotations.json`; others become metadata by which Hugging Face `datasets` loads the tree.

    Args:
        root: of a finished run with the layout `files`.
        run: its identity.
        shards: how many it has.
        size: the run's `--size`.
        crop: its `--crop`.
        categories: of the COCO annotations that its manifest was built of.

    Raises:
        OSError: storage refused or did not answer, or a part of the results is gone.
    """
    schema = next(read_parts(root, run, shards=1)).schema
    if coco.describes(schema):
        return Written([coco.KEY], coco.write(root, run, shards, schema, size, crop, categories))
    return Written(image_folder.write(root, run, shards) if image_folder.describes(schema) else [], [])
