"""One worker: styles in, vectors out; a shard in, pictures and a results part out.

Inside a shard: threads fetch and decode ahead → same-sized contents form batches → in lanes, each content is encoded
once and stylized with all its styles → threads encode and put. Pictures too large for one pass are decoded and
stylized one at a time. Batches depend on the shard's order alone, never on timing, so a rerun makes the same pixels.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import PurePosixPath

import pyarrow as pa

from stylize_batch.ahead import begun_ahead
from stylize_batch.contents import (
    LOOKAHEAD,
    Content,
    ContentLoader,
    Loaded,
    Pair,
    StyleImage,
    StyleImages,
    StyleLoad,
    colors_of,
    contents_of,
)
from stylize_batch.errors import HandedBackError, RowError, SystemicError
from stylize_batch.images.decode import Array, decode, resized, sides_of
from stylize_batch.images.encode import FORMAT_OF_EXTENSION, encode
from stylize_batch.images.mask import check_regions
from stylize_batch.lanes import Lanes
from stylize_batch.layout.pictures import Pictures, open_pictures
from stylize_batch.manifest.shards import Shard, read_shard
from stylize_batch.model.architecture import MIN_SIDE
from stylize_batch.model.color import recoloring
from stylize_batch.process import peak_memory
from stylize_batch.results import Outcome, complete, put_part, read_finished, results_table, with_outputs
from stylize_batch.root import Root
from stylize_batch.settings import ShardReport, WorkerSettings
from stylize_batch.stage import UNIT_PAIRS, Job, Picture, Prepared, Retry, StylizeStage, Tried, as_one
from stylize_batch.stopwatch import Stopwatch
from stylize_batch.storage import absolute, fingerprint, read_bytes
from stylize_batch.styles import StyleBank, StyleBatch, StyleVector, Vectors, named
from stylize_batch.vanished import refuse_vanished

WINDOW_BATCHES = 8
"""Contents may wait for others of their size until they have the pixels of so many batches."""

FETCH_THREADS = 8
WRITE_THREADS = 4
"""At least: a GPU makes pictures as fast as all cores decode and encode, so beside one there is a thread that fetches and
decodes for every core, and half as many that encode and write."""

MOST_CORES = 16
"""Counted so: with their threads grows what waits in memory."""

PENDING_WRITES = 8
"""Pictures of each thread that may wait to be written."""

Made = tuple[Pair, Outcome | Picture]
"""A pair, and its failure or its picture."""


class Silence:
    """Tells storage that does not answer at all, which is no row's fault, from single images that it never gives.

    It is silent when every one of a task's attempts failed for want of an answer. A piece of a task tells nothing, and
    neither do the rows of a shard that are tried again: for the others it did answer. Nor does a task that always
    fails so while others are finished.
    """

    def __init__(self, attempts: int) -> None:
        self._left = attempts

    def add(self, failure: RowError) -> None:
        """Count a failed attempt.

        Raises:
            SystemicError: it was the last, and there was an answer for none.
        """
        self._left -= failure.transient
        if not self._left:
            raise SystemicError(f"storage does not answer: {failure.message}")


class Worker:
    """Holds the stylize stage and the threads around it."""

    def __init__(
        self,
        settings: WorkerSettings,
        model: bytes,
        heard: Callable[[str, Outcome], None] = lambda pair, outcome: None,
    ) -> None:
        """Load the network.

        Args:
            settings: of the job.
            model: the bytes of the model file.
            heard: is told the identity of each pair as it is finished, and what became of it.

        Raises:
            DeviceError: there is no such device for torch.
        """
        self._settings = settings
        self._clock = Stopwatch()
        self._stage = StylizeStage(settings, model, self._clock, self._stay)
        self._root = Root(settings.root, settings.run)
        cores = 0 if settings.device == "cpu" else min(len(os.sched_getaffinity(0)), MOST_CORES)
        fetchers, writers = max(FETCH_THREADS, cores), max(WRITE_THREADS, cores // 2)
        self._fetchers = ThreadPoolExecutor(fetchers, "fetch")
        self._writers = ThreadPoolExecutor(writers, "write")
        self._pending_writes = PENDING_WRITES * writers
        ahead = LOOKAHEAD * fetchers // FETCH_THREADS
        self._loader = ContentLoader(settings, self._fetchers, self._clock, self._stage.large, ahead)
        self._heard = heard
        self.rows_done = 0
        """Rows of the shard in hand that are finished; a live counter for progress."""
        self.leave_by = math.inf
        """When (`time.monotonic`) it hands back what it has not finished; may be set from another thread."""

    def close(self) -> None:
        """Let the threads go; what they have not begun is dropped."""
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=False, cancel_futures=True)

    def _stay(self) -> None:
        if time.monotonic() > self.leave_by:
            raise HandedBackError("this worker has to go")

    # Styles

    def encode_styles(
        self, styles: list[str], versions: dict[str, str], *, alone: bool = False
    ) -> StyleBatch:
        """Encode the styles whose file differs from the version the bank has.

        Args:
            styles: URIs as the manifest writes them.
            versions: of the styles already in the bank.
            alone: one piece of a larger task, whose failure says nothing about the storage as a whole.

        Raises:
            SystemicError: see `Silence`.
            HandedBackError: there was no time for all.
        """
        self._clock.take()
        vectors: list[StyleVector] = []
        failures: dict[str, RowError] = {}
        waiting: deque[tuple[str, str, Callable[[], list[Vectors]] | None, Future[list[Vectors]]]] = deque()

        def settle(limit: int) -> None:
            while len(waiting) > limit:
                uri, version, again, encoding = waiting.popleft()
                try:
                    (vector,) = encoding.result()
                    vectors.append(StyleVector(uri, version, vector))
                except RowError as error:
                    if again is None:
                        failures[uri] = error.bare()
                    else:
                        waiting.append((uri, version, None, lanes.submit(lanes.pass_pixels, again)))

        def load_style(uri: str) -> tuple[str, Array | bytes] | None:
            return self._load_style(uri, versions.get(uri))

        with self._stage.lanes() as lanes:
            for uri, load in begun_ahead(self._fetchers, load_style, styles, LOOKAHEAD):
                self._stay()
                try:
                    loaded = load.result()
                    if loaded is None:
                        continue
                    version, image = loaded
                    if isinstance(image, bytes):
                        image = self._decode_style(image)
                except RowError as error:
                    failures[uri] = error.bare()
                    continue
                unit = functools.partial(self._style_unit, image)
                encoding = lanes.submit(image.shape[0] * image.shape[1], unit)
                waiting.append((uri, version, unit, encoding))
                # Of pictures that fill the memory there may be only one.
                settle(0 if self._stage.large(image.shape) else lanes.ahead)
            settle(0)
        if not alone:
            silence = Silence(len(styles))
            for error in failures.values():
                silence.add(error)
        seconds, _ = self._clock.take()
        return StyleBatch(vectors, failures, len(styles), seconds)

    def _load_style(self, uri: str, known: str | None) -> tuple[str, Array | bytes] | None:
        """Load a style that is not known. Of a large one only the file: decoded ones would fill the memory."""
        path = absolute(uri, self._settings.base)
        with self._clock("fetch"):
            version = fingerprint(path)
            if version == known:
                return None
            data = read_bytes(path)
        return version, data if self._is_large_style(data) else self._decode_style(data)

    def _is_large_style(self, data: bytes) -> bool:
        return self._stage.large(resized(*sides_of(data), self._settings.style_size))

    def _decode_style(self, data: bytes) -> Array:
        with self._clock("decode"):
            return decode(data, size=self._settings.style_size, min_side=MIN_SIDE)

    def _style_unit(self, image: Array) -> list[Vectors]:
        return [self._stage.encode_style(image)]

    def _load_style_image(self, uri: str) -> StyleLoad:
        """Load a style that is to be re-coloured. A large one is decoded only when its turn has come."""
        try:
            with self._clock("fetch"):
                data = read_bytes(absolute(uri, self._settings.base))
            self._clock.count("read", len(data))
            large = self._is_large_style(data)
        except RowError as error:
            return named(error, "style", uri)
        make = functools.partial(self._style_image, uri, data)
        return make if large else make()

    def _style_image(self, uri: str, data: bytes) -> StyleImage | RowError:
        try:
            image = self._decode_style(data)
            return StyleImage(image, colors_of(image))
        except RowError as error:
            return named(error, "style", uri)

    # Shards

    def run_shard(self, shard: int, bank: StyleBank, *, alone: bool = False) -> ShardReport:
        """Stylize the rows of a shard that are not ok yet, and commit its results part.

        Args:
            shard: its number.
            bank: with all styles of the rows.
            alone: its failure says nothing about the storage as a whole.

        Raises:
            SystemicError: outputs cannot be written, or see `Silence` and `refuse_vanished`; nothing is committed.
            DeviceError: the device is unusable from now on.
            HandedBackError: there was no time for all rows; nothing is committed.
        """
        self._clock.take()
        try:
            plan = read_shard(self._root, shard, self._settings.run)
            earlier = read_finished(self._root, shard, self._settings.run)
            whole = Shard(shard, len(plan))

            def make(rows: pa.Table) -> pa.Table:
                return self.stylize(whole, rows, bank, alone=alone or len(rows) < len(plan))

            table = complete(plan, earlier, make)
            totals = put_part(self._root, shard, table, self._settings.run)
        except OSError as error:
            raise _output_error(error, self._root.uri) from None
        self.rows_done = 0
        seconds, sizes = self._clock.take()
        return ShardReport(
            shard, totals, seconds, sizes.get("read", 0), sizes.get("written", 0), peak_memory()
        )

    def stylize(self, shard: Shard, plan: pa.Table, bank: StyleBank, *, alone: bool = False) -> pa.Table:
        """Stylize rows of a shard, write the pictures and return the results, uncommitted.

        Args:
            shard: that the rows belong to.
            plan: all its rows, or some of them.
            bank: with all styles of the rows.
            alone: one piece of a larger task, whose failure says nothing about the storage as a whole.

        Raises:
            SystemicError: as `run_shard`.
            HandedBackError: as `run_shard`.
        """
        self.rows_done = 0
        with closing(open_pictures(self._settings, self._root, shard, plan)) as pictures:
            outcomes = self._outcomes(plan, pictures, bank, alone)
            results = results_table(plan, outcomes, self._settings.model)
            if not alone:
                refuse_vanished(results, shard, self._root, self._settings)
            with self._clock("put"):
                return with_outputs(results, pictures.commit(results))

    def _outcomes(self, plan: pa.Table, pictures: Pictures, bank: StyleBank, alone: bool) -> list[Outcome]:
        """Make the pictures and hand them over; return what became of each row, in order."""
        outcomes: dict[int, Outcome] = {}
        writes: deque[tuple[int, Future[Outcome]]] = deque()
        pairs = plan["pair_id"].to_pylist()

        def finish(row: int, outcome: Outcome) -> None:
            outcomes[row] = outcome
            self.rows_done += 1
            self._heard(pairs[row], outcome)

        def settle(limit: int) -> None:
            while len(writes) > limit:
                row, write = writes.popleft()
                finish(row, write.result())

        try:
            with self._stage.lanes() as lanes:
                for pair, made in self._make(lanes, contents_of(plan), bank, alone):
                    self._stay()
                    if isinstance(made, Outcome):
                        finish(pair.row, made)
                    elif self._stage.large(made.pixels.shape):
                        # Several that wait to be written would fill the memory.
                        finish(pair.row, self._write(pair, made, pictures))
                    else:
                        writes.append((pair.row, self._writers.submit(self._write, pair, made, pictures)))
                        settle(self._pending_writes)
            settle(0)
        except BaseException:
            for _, write in writes:
                write.cancel()
            raise
        return [outcomes[row] for row in range(len(plan))]

    def _make(self, lanes: Lanes, contents: list[Content], bank: StyleBank, alone: bool) -> Iterator[Made]:
        """Yield, for each pair, its failure or its picture."""
        buckets: dict[tuple[int, ...], list[Prepared]] = {}
        pending: deque[Future[list[Tried]]] = deque()

        def settle(limit: int) -> Iterator[Made]:
            while len(pending) > limit:
                for pair, made in pending.popleft().result():
                    if isinstance(made, Retry):
                        alone_unit = functools.partial(self._stage.alone, made)
                        pending.append(lanes.submit(lanes.pass_pixels, alone_unit))
                    else:
                        yield pair, made

        def stylize(bucket: list[Prepared], left: int) -> Iterator[Made]:
            shape = bucket[0].image.shape
            # Of pictures that fill the memory there may be only one.
            ahead = 0 if self._stage.large(shape) else lanes.ahead
            # The last contents are shared out, or lanes would have nothing to do.
            for unit in self._stage.units(bucket, parts=-(-lanes.count // max(1, left))):
                pending.append(lanes.submit(shape[0] * shape[1] * self._stage.batch_size(shape), unit))
                yield from settle(ahead)

        silence = Silence(sum(len(content.pairs) for content in contents))
        order = [
            style
            for content in contents
            for pair in content.pairs
            if pair.preserve_color
            for style in pair.styles
        ]
        images = StyleImages(order, lambda uri: self._fetchers.submit(self._load_style_image, uri))
        for index, (content, loaded) in enumerate(self._loader.load_ahead(contents)):
            left = len(contents) - index
            jobs: list[Job] = []
            for pair in content.pairs:
                if pair.preserve_color:
                    images.reach(len(pair.styles))
                try:
                    if isinstance(loaded, RowError):
                        raise loaded.bare()
                    if pair.styles:
                        jobs.append(self._job(pair, loaded, bank, images))
                        held = sum(len(job.recolored) > 0 for job in jobs)  # which hold style images
                        if held >= max(UNIT_PAIRS, self._stage.batch_size(loaded.image.shape)):
                            yield from stylize([Prepared(loaded.image, jobs)], left)
                            jobs = []
                    else:
                        yield pair, Picture(loaded.image)
                except RowError as error:
                    if not alone:
                        silence.add(error)
                    yield pair, Outcome(error=str(error))
            if isinstance(loaded, RowError) or not jobs:
                continue
            shape = loaded.image.shape
            bucket = buckets.setdefault(shape, [])
            bucket.append(Prepared(loaded.image, jobs))
            if sum(len(each.jobs) for each in bucket) >= self._stage.batch_size(shape):
                yield from stylize(buckets.pop(shape), left)
            elif _pixels(buckets) >= WINDOW_BATCHES * max(self._stage.batch_pixels, shape[0] * shape[1]):
                oldest = next(iter(buckets))
                yield from stylize(buckets.pop(oldest), left)
        for left, bucket in zip(range(len(buckets), 0, -1), buckets.values(), strict=True):
            yield from stylize(bucket, left)
        yield from settle(0)

    def _job(self, pair: Pair, loaded: Loaded, bank: StyleBank, images: StyleImages) -> Job:
        """Find what a pair needs.

        Raises:
            RowError: a style or a mask cannot be had, or a region is empty.
        """
        masks: list[Array] = []
        for uri in pair.masks:
            mask = loaded.masks[uri]
            if isinstance(mask, RowError):
                raise mask.bare()
            masks.append(mask)
        if masks:
            check_regions(masks, len(pair.styles))
        if not pair.preserve_color:
            return Job(pair, masks, as_one(pair, bank.vectors(pair.styles)), [])
        assert loaded.colors
        taken = [images.take(style) for style in pair.styles]
        return Job(pair, masks, None, [(style, recoloring(style.colors, loaded.colors)) for style in taken])

    def _write(self, pair: Pair, picture: Picture, pictures: Pictures) -> Outcome:
        try:
            with self._clock("codec"):
                format = FORMAT_OF_EXTENSION[PurePosixPath(pair.output).suffix.lower()]
                data = encode(picture.pixels, format, self._settings.quality)
        except RowError as error:
            return Outcome(error=str(error))
        with self._clock("put"):
            pictures.put(pair.row, data)
        self._clock.count("written", len(data))
        height, width = picture.pixels.shape[:2]
        return Outcome(None, *picture.losses, height, width)


def _pixels(buckets: dict[tuple[int, ...], list[Prepared]]) -> int:
    return sum(shape[0] * shape[1] * len(bucket) for shape, bucket in buckets.items())


def _output_error(error: OSError, root: str) -> SystemicError:
    return SystemicError(f"cannot use {root}: {error.strerror or f'{type(error).__name__}: {error}'}")
