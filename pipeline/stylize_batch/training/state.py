"""The checkpoint of a training: weights, their running mean and Adam's moments, in files small enough to travel."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from stylize_batch.root import Root

INDEX = "state.json"
"""Names the current checkpoint; it is put last, so that a kill never leaves half a checkpoint."""

PREFIX = "state-"

DAMAGED = (
    FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, safetensors.SafetensorError,
)  # fmt: skip
"""What reading a checkpoint, and the log beside it, raises if they are not what was written."""

Parts = dict[str, dict[str, Tensor]]
"""Tensors by parameter name, by part: `weights`, `average`, `exp_avg`, `exp_avg_sq`, `means` by convolution, and `buffers`
where there are any; each part is one file."""


class Position(NamedTuple):
    """Where a training stands.

    Attributes:
        iteration: iterations done.
        updates: of them, those that changed the weights.
        seconds: spent on them.
        start: digest of the model it started from, empty if none.
        fixed: what may not change from then on, by name.
    """

    iteration: int
    updates: int
    seconds: float
    start: str
    fixed: dict[str, Any]


def save(root: Root, position: Position, parts: Parts) -> None:
    """Write a checkpoint and remove the one before.

    Raises:
        OSError: storage is full or does not answer; the last checkpoint is kept.
    """
    files = {part: f"{PREFIX}{position.iteration:06d}-{part}.safetensors" for part in parts}
    earlier = [name for name in root.list("") if name.startswith(PREFIX) and name not in files.values()]
    for part, tensors in parts.items():
        root.put(files[part], safetensors.torch.save(tensors))
    root.put(INDEX, json.dumps({**position._asdict(), "files": files}, indent=2).encode())
    root.delete(earlier)


def load(root: Root) -> tuple[Position, Parts] | None:
    """Read the current checkpoint, if there is one.

    Raises:
        Exception: one of `DAMAGED`: it is incomplete.
        OSError: storage refused or did not answer.
    """
    if not root.exists(INDEX):
        return None
    index = json.loads(root.read(INDEX))
    files: dict[str, str] = index.pop("files")
    return Position(**index), {part: safetensors.torch.load(root.read(name)) for part, name in files.items()}
