"""Annotation files beside a run's pictures: those of the dataset the pictures were made of, rewritten for them."""

from __future__ import annotations

from typing import Any, NamedTuple

from stylize_batch.annotations import coco, image_folder
from stylize_batch.results import read_finished
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
    root: Root, run: str, size: int | None, crop: int | None, categories: list[dict[str, Any]]
) -> Written:
    """Write what the results' columns call for.

    COCO's columns become `annotations.json`; others become metadata by which Hugging Face `datasets` loads the tree.

    Args:
        root: of a finished run with the layout `files`.
        run: its identity.
        size: the run's `--size`.
        crop: its `--crop`.
        categories: of the COCO annotations that its manifest was built of.

    Raises:
        OSError: storage refused or did not answer.
    """
    first = read_finished(root, 0, run)
    if first is None:  # another run has begun anew meanwhile
        return Written([], [])
    schema = first.schema
    if coco.describes(schema):
        return Written([coco.KEY], coco.write(root, run, schema, size, crop, categories))
    return Written(image_folder.write(root, run) if image_folder.describes(schema) else [], [])
