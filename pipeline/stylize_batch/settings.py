"""What travels to a worker, and what comes back: plain data, importable without torch or Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stylize_batch.images.encode import Format
from stylize_batch.results import Totals

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]
Layout = Literal["files", "webdataset", "parquet"]


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know; `JobSpec` explains the job's settings.

    Attributes:
        root: absolute output root.
        run: identity of the run, stored in every results part.
        base: folder that relative image paths start from.
        model: name written into the results.
        batch_size: pairs per batch; None chooses.
        device: where the network runs.
        precision: of the network.
        threads: cores to compute on; None takes what torch finds.
        gpu_share: the part of a GPU's memory to plan with.
    """

    root: str
    run: str
    base: str
    model: str
    size: int | None
    crop: int | None
    style_size: int
    format: Format
    quality: int
    layout: Layout
    metrics: bool
    batch_size: int | None
    device: Device
    precision: Precision
    threads: int | None = None
    gpu_share: float = 1.0


class ShardReport(NamedTuple):
    """A finished shard.

    Attributes:
        shard: its number.
        totals: over its rows.
        seconds: by stage; what threads did at the same time adds up.
        bytes_read: of images.
        bytes_written: of pictures.
        peak_memory: of the worker's process, bytes.
    """

    shard: int
    totals: Totals
    seconds: Mapping[str, float] = {}
    bytes_read: int = 0
    bytes_written: int = 0
    peak_memory: int = 0
