"""Checking a manifest before a run: all that planning would refuse, and whether its images can be decoded."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stylize_batch.ahead import begun_ahead
from stylize_batch.errors import RowError, SystemicError, UsageError
from stylize_batch.images.decode import decode
from stylize_batch.images.encode import EXTENSIONS
from stylize_batch.manifest.naming import hashes
from stylize_batch.manifest.partition import Partition, check_and_partition
from stylize_batch.manifest.schema import DECIDING, misspellings, string_lists
from stylize_batch.manifest.source import columns_of, locate, unread_partitions
from stylize_batch.manifest.spill import temporary_folder
from stylize_batch.model.architecture import MIN_SIDE
from stylize_batch.parquet import with_python_times
from stylize_batch.storage import absolute, read_bytes

if TYPE_CHECKING:
    from stylize_batch.progress import Observer

EXAMPLES = 3
"""Failures of one kind that are quoted."""

THREADS = 8
WINDOW = 256
"""Images in threads at once."""


@dataclass
class Failures:
    """Images that a run could not use, for one reason: how many, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class CheckReport:
    """What a manifest holds, and what is wrong with its images, all of which `--json` prints.

    Attributes:
        rows: pairs.
        contents: distinct ones.
        styles: distinct ones.
        pairs_per_content: fewest, mean and most.
        splits: rows of each value of the column `split`, if there is one.
        labels: rows of each value of the column `label`, if there is one.
        controls: columns that decide the pictures, beside `content` and `style`.
        carried: columns that decide nothing, and are carried to the results.
        notes: one line for each thing a user should know of.
        checked: images read and decoded.
        failures: by kind, as in the results' `error` column.
    """

    rows: int
    contents: int
    styles: int
    pairs_per_content: tuple[int, float, int]
    splits: dict[str, int]
    labels: dict[str, int]
    controls: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: int = 0
    failures: dict[str, Failures] = field(default_factory=dict)


def check(
    manifest: str,
    sample: int | None,
    observer: Observer,
    *,
    size: int | None = None,
    crop: int | None = None,
    format: str = "jpeg",
) -> CheckReport:
    """Check every row of a manifest, and images of it.

    Args:
        manifest: Parquet file, folder or glob; path or URI.
        sample: contents, styles and masks to decode, each so many; None decodes all. The same manifest has the same
            sample.
        observer: hears of progress.
        size: contents' shorter side in the run; an image that is too small as it is may be large enough then.
        crop: in the run.
        format: of the run's pictures; two names may be one with its extension.

    Raises:
        ManifestError: `run` would refuse the manifest, for the same reason.
        UsageError: storage refuses the credentials, `crop` is larger than `size`, or there is no such format.
    """
    if format not in EXTENSIONS:
        raise UsageError(f"--format {format}: give {', '.join(EXTENSIONS)}")
    if size is not None and crop is not None and crop > size:
        raise UsageError(f"--crop {crop} is larger than --size {size}")
    source = locate(manifest)
    observer.phase("Checking rows", None)
    with temporary_folder() as folder:
        partition = check_and_partition(source, Path(folder), format, None)
        report, styles, masks = _survey(partition)
        names = columns_of(source)
        report.controls = [name for name in names if name in DECIDING and name not in ("content", "style")]
        report.carried = [name for name in names if name not in DECIDING]
        report.notes = [*misspellings(names), *unread_partitions(source, names)]
        contents = (content for content, _ in _contents(partition))
        total = report.contents + len(styles) + len(masks)
        if sample is not None:
            contents = _sampled(contents, sample)
            styles, masks = _sampled(styles, sample), _sampled(masks, sample)
            total = min(report.contents, sample) + len(styles) + len(masks)
        observer.phase("Decoding images", total)
        failed = 0
        as_content = partial(decode, size=size, crop=crop, min_side=MIN_SIDE)
        for images, read in ((contents, as_content), (styles, decode), (masks, decode)):
            for error in _decoded(images, source.base, read):
                report.checked += 1
                if error is not None:
                    failed += 1
                    failures = report.failures.setdefault(error.kind, Failures())
                    failures.count += 1
                    if len(failures.examples) < EXAMPLES:
                        failures.examples.append(error.message)
                observer.advance(report.checked, failed)
    return report


def _survey(partition: Partition) -> tuple[CheckReport, list[str], list[str]]:
    """Count what the rows hold; returns the distinct styles and masks, too."""
    values: dict[str, Counter[str]] = {"split": Counter(), "label": Counter()}
    images: dict[str, set[str]] = {"style": set(), "mask": set()}
    counts = np.fromiter((pairs for _, pairs in _contents(partition)), np.int64)
    for table in partition.buckets():
        for name, found in images.items():
            if name in table.column_names:
                for chunk in table[name].chunks:
                    found.update(uri for each in string_lists(chunk) for uri in each or () if uri)
        for name, counter in values.items():
            if name in table.column_names:
                column = with_python_times(table.select([name]))[name]
                counter.update(str(value) for value in column.to_pylist() if value is not None)
    report = CheckReport(
        rows=partition.pairs,
        contents=len(counts),
        styles=len(images["style"]),
        pairs_per_content=(int(counts.min()), round(float(counts.mean()), 3), int(counts.max())),
        splits=_most_first(values["split"]),
        labels=_most_first(values["label"]),
    )
    return report, sorted(images["style"]), sorted(images["mask"])


def _most_first(counts: Counter[str]) -> dict[str, int]:
    """Order values by their count, and by name where it is the same."""
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _contents(partition: Partition) -> Iterator[tuple[str, int]]:
    """Yield each content once, and its pairs: a large bucket comes in parts, of which two may share a content."""
    contents = (content for table in partition.buckets() for content in table["content"].to_pylist())
    return ((content, sum(1 for _ in rows)) for content, rows in groupby(contents))


def _sampled(images: Iterable[str], sample: int) -> list[str]:
    """Choose images by their hash: the same ones from any listing of them."""
    return heapq.nsmallest(sample, images, key=lambda image: int(hashes([image])[0]))


def _decoded(images: Iterable[str], base: str, read: Callable[[bytes], object]) -> Iterator[RowError | None]:
    def attempt(image: str) -> RowError | None:
        try:
            uri = absolute(image, base)
            data = read_bytes(uri)
        except RowError as error:
            return error
        except SystemicError as error:
            raise UsageError(str(error)) from None
        try:
            read(data)
        except RowError as error:
            return RowError(error.kind, f"{uri}: {error.message}")
        return None

    with ThreadPoolExecutor(THREADS) as threads:
        for _, tried in begun_ahead(threads, attempt, images, WINDOW):
            yield tried.result()
