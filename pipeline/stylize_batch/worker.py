"""One worker: styles in, vectors out; a shard in, pictures and a results part out.

Inside a shard: threads fetch and decode ahead → same-sized contents form batches → each content is encoded once
and stylized with all its styles → threads encode and put. Pictures too large for one pass are decoded and stylized
one at a time. Batches depend on the shard's order alone, never on
timing, so a rerun makes the same pixels.
"""

from __future__ import annotations

import resource
import threading
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from stylize_batch.errors import DeviceError, RowError, SystemicError
from stylize_batch.images.decode import Array, decode, decoded_size
from stylize_batch.images.encode import FORMAT_OF_EXTENSION, encode
from stylize_batch.images.mask import check_regions, fit_mask, stack_regions, visible_part
from stylize_batch.manifest.plan import read_shard
from stylize_batch.manifest.schema import string_lists
from stylize_batch.model import checkpoint
from stylize_batch.model.architecture import MIN_SIDE
from stylize_batch.model.color import ColorMap, Colors, colors, recoloring
from stylize_batch.model.network import ContentFeatures, Network
from stylize_batch.results import Outcome, complete, put_part, read_finished, results_table
from stylize_batch.settings import ShardReport, WorkerSettings
from stylize_batch.storage import Root, absolute, fingerprint, read_bytes
from stylize_batch.styles import StyleBank, StyleBatch, StyleVector, Vectors, blend, named

LOOKAHEAD = 16
"""Contents fetched and decoded ahead of the one being stylized."""

WINDOW = 32
"""Contents that may wait for others of their size."""

FETCH_THREADS = 8
WRITE_THREADS = 4
MAX_PENDING_WRITES = 32

STYLES_AHEAD = 16
"""Style images fetched and decoded ahead of the re-coloured pair being prepared."""

STYLES_KEPT = 32
"""Style images kept for other re-coloured pairs of the shard."""

GPU_BATCH_PIXELS = 32 * 256 * 256
"""Pixels of an automatic batch on a GPU."""


class Pair(NamedTuple):
    """One row of a shard, ready to be stylized."""

    row: int
    output: str
    alpha: float
    styles: list[str]
    weights: list[float] | None
    masks: list[str]
    preserve_color: bool

    @property
    def needs_files(self) -> bool:
        """Whether it needs images beside the content and the bank."""
        return bool(self.masks) or self.preserve_color


class Content(NamedTuple):
    """One content image and its pairs."""

    uri: str
    pairs: list[Pair]


class Fetched(NamedTuple):
    """A content's file, its width and height before the crop, and the files of its pairs' masks, by URI."""

    data: bytes
    width: int
    height: int
    masks: dict[str, bytes | RowError]


class Loaded(NamedTuple):
    """A decoded content, its colours if a pair preserves them, and its pairs' masks, of its size, by URI."""

    image: Array
    colors: Colors | None
    masks: dict[str, Array | RowError]


class StyleImage(NamedTuple):
    """A style that is to be re-coloured, and its colours."""

    image: Array
    colors: Colors


class Job(NamedTuple):
    """A pair that can be stylized: one style vector, blended if there are several styles, or one per mask."""

    pair: Pair
    vectors: Vectors
    masks: list[Array]


class Prepared(NamedTuple):
    """A decoded content and what is to be made of it."""

    image: Array
    jobs: list[Job]


class Picture(NamedTuple):
    """What the network made: uint8 RGB [H, W, 3], whether all of it was finite, and the three losses."""

    pixels: Array
    finite: bool
    losses: tuple[float | None, float | None, float | None]


class Stopwatch:
    """Adds up seconds by stage, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Count the time inside the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[stage] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return what was counted and start again from zero."""
        with self._lock:
            seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


class StyleImages:
    """The style images that a shard's re-coloured pairs need: loaded ahead in the rows' order, kept while recent."""

    def __init__(self, order: list[str], load: Callable[[str], Future[StyleImage]]) -> None:
        self._order = order
        self._load = load
        self._ahead = 0
        self._taken = 0
        self._recent: OrderedDict[str, Future[StyleImage]] = OrderedDict()

    def take(self, uri: str) -> StyleImage:
        """Return the next image.

        Raises:
            RowError: it cannot be loaded.
        """
        self._taken += 1
        while self._ahead < min(self._taken + STYLES_AHEAD, len(self._order)):
            self._begin(self._order[self._ahead])
            self._ahead += 1
        return self._begin(uri).result()

    def _begin(self, uri: str) -> Future[StyleImage]:
        if uri not in self._recent:
            self._recent[uri] = self._load(uri)
        self._recent.move_to_end(uri)
        if len(self._recent) > STYLES_KEPT:
            self._recent.popitem(last=False)
        return self._recent[uri]


class Worker:
    """Holds the network on its device and the threads around it."""

    def __init__(self, settings: WorkerSettings, model: bytes) -> None:
        """Load the network.

        Args:
            settings: of the job.
            model: the bytes of the model file.
        """
        Image.MAX_IMAGE_PIXELS = None  # `decode` has its own limit, and says which image and what size
        self._settings = settings
        self._network = Network(checkpoint.loads(model), settings.device, settings.precision)
        self._root = Root(settings.root, settings.run)
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, "fetch")
        self._writers = ThreadPoolExecutor(WRITE_THREADS, "write")
        self._clock = Stopwatch()
        self.rows_done = 0
        """Rows of the shard in hand that are finished; a live counter for progress."""

    def close(self) -> None:
        """Let the threads go; what they have not begun is dropped."""
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=False, cancel_futures=True)

    def _use_cores(self) -> None:
        # OpenMP keeps the number per calling thread, and an actor's methods run on threads of Ray's.
        if self._settings.threads is not None:
            torch.set_num_threads(self._settings.threads)

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
            SystemicError: storage answered for none of them.
        """
        self._use_cores()
        vectors: list[StyleVector] = []
        failures: dict[str, RowError] = {}
        loads = [self._fetchers.submit(self._load_style, uri, versions.get(uri)) for uri in styles]
        for uri, load in zip(styles, loads, strict=True):
            try:
                loaded = load.result()
                if loaded is not None:
                    version, image = loaded
                    vectors.append(StyleVector(uri, version, self._encode_style(np.array(image))))
            except RowError as error:
                failures[uri] = error
        if not alone:
            _refuse_total_outage(list(failures.values()), len(styles))
        return StyleBatch(vectors, failures, len(styles) - len(vectors) - len(failures))

    def _load_style(self, uri: str, known: str | None) -> tuple[str, Array] | None:
        path = absolute(uri, self._settings.base)
        version = fingerprint(path)
        if version == known:
            return None
        return version, decode(read_bytes(path), size=self._settings.style_size, min_side=MIN_SIDE)

    def _encode_style(self, image: Array, recoloring: ColorMap | None = None) -> Vectors:
        try:
            return self._network.encode_styles(_tensor(image)[None], recoloring)[0].numpy()
        except (RuntimeError, MemoryError) as error:
            raise self._network_error(error, image.shape) from None

    def _load_style_image(self, uri: str) -> StyleImage:
        try:
            data = read_bytes(absolute(uri, self._settings.base))
            image = np.array(decode(data, size=self._settings.style_size, min_side=MIN_SIDE))
        except RowError as error:
            raise named(error, "style", uri) from None
        return StyleImage(image, colors(_tensor(image)))

    # Shards

    def run_shard(self, shard: int, bank: StyleBank) -> ShardReport:
        """Stylize the rows of a shard that are not ok yet, and commit its results part.

        Raises:
            SystemicError: outputs cannot be written, or storage answered for no content; nothing is committed.
            DeviceError: the device is unusable from now on.
        """
        self._clock.take()
        try:
            plan = read_shard(self._root, shard)
            earlier = read_finished(self._root, shard, self._settings.run)
            table = complete(plan, earlier, lambda rows: self.stylize(rows, bank))
            totals = put_part(self._root, shard, table, self._settings.run)
        except OSError as error:
            raise _output_error(error, self._root.uri) from None
        self.rows_done = 0
        return ShardReport(shard, totals, self._clock.take(), peak_memory())

    def stylize(self, plan: pa.Table, bank: StyleBank, *, alone: bool = False) -> pa.Table:
        """Stylize the rows of a plan, write the pictures and return the results, uncommitted.

        Args:
            plan: of a shard, or of some of its rows.
            bank: with all styles of the rows.
            alone: one piece of a larger task, whose failure says nothing about the storage as a whole.

        Raises:
            SystemicError: as `run_shard`.
        """
        self._use_cores()
        self.rows_done = 0
        outcomes: dict[int, Outcome] = {}
        writes: deque[tuple[int, Future[Outcome]]] = deque()

        def settle(limit: int) -> None:
            while len(writes) > limit:
                row, write = writes.popleft()
                with self._clock("wait"):
                    outcomes[row] = write.result()
                self.rows_done += 1

        try:
            for row, made in self._make(contents_of(plan), bank, alone):
                if isinstance(made, Outcome):
                    outcomes[row] = made
                    self.rows_done += 1
                else:
                    writes.append((row, made))
                    settle(MAX_PENDING_WRITES)
            settle(0)
        except BaseException:
            for _, write in writes:
                write.cancel()
            raise
        return results_table(plan, [outcomes[row] for row in range(len(plan))], self._settings.model)

    def _make(
        self, contents: list[Content], bank: StyleBank, alone: bool
    ) -> Iterator[tuple[int, Outcome | Future[Outcome]]]:
        """Yield, for each row, its failure or the write that will finish it."""
        buckets: dict[tuple[int, ...], list[Prepared]] = {}
        unread: list[RowError] = []  # of rows whose own images could not be had
        rows = sum(len(content.pairs) for content in contents)
        order = [
            style
            for content in contents
            for pair in content.pairs
            if pair.preserve_color
            for style in pair.styles
        ]
        images = StyleImages(order, lambda uri: self._fetchers.submit(self._load_style_image, uri))
        for content, loaded in self._load_ahead(contents):
            jobs: list[Job] = []
            for pair in content.pairs:
                try:
                    if isinstance(loaded, RowError):
                        raise loaded
                    jobs.append(self._job(pair, loaded, bank, images))
                except RowError as error:
                    if isinstance(loaded, RowError) or pair.needs_files:
                        unread.append(error)
                        if not alone:
                            _refuse_total_outage(unread, rows)
                    yield pair.row, Outcome(error=str(error))
            if isinstance(loaded, RowError) or not jobs:
                continue
            shape = loaded.image.shape
            bucket = buckets.setdefault(shape, [])
            bucket.append(Prepared(loaded.image, jobs))
            if sum(len(each.jobs) for each in bucket) >= self._batch_size(shape):
                yield from self._stylize_bucket(buckets.pop(shape))
            elif sum(map(len, buckets.values())) >= WINDOW:
                oldest = next(iter(buckets))
                yield from self._stylize_bucket(buckets.pop(oldest))
        for bucket in buckets.values():
            yield from self._stylize_bucket(bucket)

    def _job(self, pair: Pair, loaded: Loaded, bank: StyleBank, images: StyleImages) -> Job:
        """Find what a pair needs.

        Raises:
            RowError: a style or a mask cannot be had, or a region is empty.
        """
        masks: list[Array] = []
        for uri in pair.masks:
            mask = loaded.masks[uri]
            if isinstance(mask, RowError):
                raise mask
            masks.append(mask)
        if masks:
            check_regions(masks, len(pair.styles))
        if pair.preserve_color:
            assert loaded.colors
            with self._clock("wait"):
                taken = [images.take(style) for style in pair.styles]
            with self._clock("encode"):
                maps = [recoloring(style.colors, loaded.colors) for style in taken]
                encoded = [self._encode_style(style.image, to) for style, to in zip(taken, maps, strict=True)]
                vectors = np.stack(encoded)
        else:
            vectors = bank.vectors(pair.styles)
        return Job(pair, vectors if masks else blend(vectors, pair.weights)[None], masks)

    def _load_ahead(self, contents: list[Content]) -> Iterator[tuple[Content, Loaded | RowError]]:
        ahead: deque[tuple[Content, Future[Loaded | Fetched | RowError]]] = deque()
        for content in contents:
            ahead.append((content, self._fetchers.submit(self._load_content, content)))
            if len(ahead) > LOOKAHEAD:
                yield self._loaded(*ahead.popleft())
        while ahead:
            yield self._loaded(*ahead.popleft())

    def _loaded(
        self, content: Content, load: Future[Loaded | Fetched | RowError]
    ) -> tuple[Content, Loaded | RowError]:
        with self._clock("wait"):
            loaded = load.result()
        if isinstance(loaded, Fetched):
            try:
                loaded = self._decode(content, loaded)
            except RowError as error:
                loaded = error
        return content, loaded

    def _load_content(self, content: Content) -> Loaded | Fetched | RowError:
        """Load a content with its masks. Of a large one only the files: decoded ones would fill the memory."""
        try:
            with self._clock("fetch"):
                data = read_bytes(absolute(content.uri, self._settings.base))
                uris = {uri for pair in content.pairs for uri in pair.masks}
                masks = {uri: self._fetch_mask(uri) for uri in uris}
            fetched = Fetched(data, *decoded_size(data, self._settings.size), masks)
            crop = self._settings.crop
            if self._large((crop, crop) if crop else (fetched.height, fetched.width)):
                return fetched
            return self._decode(content, fetched)
        except RowError as error:
            return error

    def _fetch_mask(self, uri: str) -> bytes | RowError:
        try:
            return read_bytes(absolute(uri, self._settings.base))
        except RowError as error:
            return error

    def _decode(self, content: Content, fetched: Fetched) -> Loaded:
        """Decode a content, and its masks to its size.

        Raises:
            RowError: the content cannot be decoded.
        """
        size, crop = self._settings.size, self._settings.crop
        with self._clock("decode"):
            image = np.array(decode(fetched.data, size=size, crop=crop, min_side=MIN_SIDE))
            part = visible_part(fetched.width, fetched.height, crop)
            masks: dict[str, Array | RowError] = {}
            for uri, data in fetched.masks.items():
                try:
                    if isinstance(data, RowError):
                        raise data
                    mask = Image.fromarray(decode(data))
                    masks[uri] = fit_mask(mask, image.shape[1], image.shape[0], part)
                except RowError as error:
                    masks[uri] = named(error, "mask", uri)
            preserved = any(pair.preserve_color for pair in content.pairs)
            return Loaded(image, colors(_tensor(image)) if preserved else None, masks)

    def _large(self, shape: tuple[int, ...]) -> bool:
        return shape[0] * shape[1] > self._network.pass_pixels

    def _batch_size(self, shape: tuple[int, ...]) -> int:
        if self._network.device.type == "cpu" or self._large(shape):
            # Larger batches are no faster on a CPU, and the kernel chosen for them may round differently.
            return 1
        if self._settings.batch_size is not None:
            return self._settings.batch_size
        return max(1, GPU_BATCH_PIXELS // (shape[0] * shape[1]))

    def _stylize_bucket(self, bucket: list[Prepared]) -> Iterator[tuple[int, Outcome | Future[Outcome]]]:
        """Encode same-sized contents once and stylize all their pairs, a batch at a time."""
        features = self._encode_contents(bucket)
        if isinstance(features, RowError):
            if len(bucket) == 1:
                for job in bucket[0].jobs:
                    yield job.pair.row, Outcome(error=str(features))
                return
            for prepared in bucket:
                yield from self._stylize_bucket([prepared])
            return
        jobs = [(index, job) for index, prepared in enumerate(bucket) for job in prepared.jobs]
        batch_size = self._batch_size(bucket[0].image.shape)
        for _, group in groupby(sorted(jobs, key=_regions), key=_regions):
            alike = list(group)
            for start in range(0, len(alike), batch_size):
                yield from self._stylize_batch(features, alike[start : start + batch_size])

    def _encode_contents(self, bucket: list[Prepared]) -> ContentFeatures | RowError:
        try:
            with self._clock("encode"):
                tensors = [_tensor(each.image) for each in bucket]
                images = tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
                return self._network.encode_contents(images, metrics=self._settings.metrics)
        except (RuntimeError, MemoryError) as error:
            return self._network_error(error, bucket[0].image.shape)

    def _stylize_batch(
        self, features: ContentFeatures, batch: list[tuple[int, Job]]
    ) -> Iterator[tuple[int, Outcome | Future[Outcome]]]:
        """Stylize some pairs at once; if they do not fit in memory, half of them, down to one."""
        made = self._run_network(features, batch)
        if isinstance(made, RowError):
            if len(batch) == 1:
                yield batch[0][1].pair.row, Outcome(error=str(made))
                return
            half = len(batch) // 2
            yield from self._stylize_batch(features, batch[:half])
            yield from self._stylize_batch(features, batch[half:])
            return
        for (_, job), picture in zip(batch, made, strict=True):
            if not picture.finite:
                error = RowError("NotFinite", "the network's output is not finite; try --precision fp32")
                yield job.pair.row, Outcome(error=str(error))
            elif self._large(picture.pixels.shape):  # several that wait to be written would fill the memory
                yield job.pair.row, self._write(job.pair.output, picture)
            else:
                yield job.pair.row, self._writers.submit(self._write, job.pair.output, picture)

    def _run_network(
        self, features: ContentFeatures, batch: list[tuple[int, Job]]
    ) -> list[Picture] | RowError:
        # A function of its own: what a failed attempt holds in memory goes with its frame.
        try:
            with self._clock("stylize"):
                index = torch.tensor([index for index, _ in batch], device=self._network.device)
                vectors = torch.from_numpy(np.stack([job.vectors for _, job in batch]))
                alpha = torch.tensor([job.pair.alpha for _, job in batch])
                masks = None
                if batch[0][1].masks:
                    regions = [stack_regions(job.masks, len(job.pair.styles)) for _, job in batch]
                    masks = torch.from_numpy(np.stack(regions))
                finite = torch.ones(len(batch), dtype=torch.bool)

                def to_pixels(images: Tensor) -> Tensor:
                    nonlocal finite
                    finite &= images.isfinite().flatten(1).all(1).cpu()
                    return (images.float() * 255).round().byte().cpu()

                images, losses = self._network.stylize(
                    features.select(index), vectors, alpha, masks, finish=to_pixels
                )
                pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
                measured = [(None, None, None)] * len(batch)
                if losses is not None:
                    measured = torch.stack(losses, 1).tolist()
        except (RuntimeError, MemoryError) as error:
            return self._network_error(error, (features.height, features.width))
        return [Picture(*each) for each in zip(pixels, finite.tolist(), measured, strict=True)]

    def _network_error(self, error: RuntimeError | MemoryError, shape: tuple[int, ...]) -> RowError:
        """Translate what torch raised; an error of a GPU other than lack of memory outlives the batch.

        Raises:
            DeviceError: the device is unusable from now on.
        """
        text = str(error)
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if out_of_memory or "can't allocate memory" in text:
            if self._network.device.type == "cuda":
                torch.cuda.empty_cache()
            return RowError("OutOfMemory", f"{shape[1]}×{shape[0]} pixels do not fit in memory; use --size")
        if self._network.device.type == "cuda":
            raise DeviceError(text.splitlines()[0]) from None
        return RowError("NetworkError", text.splitlines()[0])

    def _write(self, key: str, picture: Picture) -> Outcome:
        try:
            with self._clock("codec"):
                format = FORMAT_OF_EXTENSION[PurePosixPath(key).suffix.lower()]
                data = encode(picture.pixels, format, self._settings.quality)
        except RowError as error:
            return Outcome(error=str(error))
        key = f"images/{key}"
        with self._clock("put"):
            self._root.put(key, data)
        height, width = picture.pixels.shape[:2]
        return Outcome(self._root.uri_of(key), None, *picture.losses, height, width)


def contents_of(plan: pa.Table) -> list[Content]:
    """Group a shard's rows, which are sorted by content, into contents with their pairs."""
    names = plan.column_names
    empty = [None] * len(plan)
    weights = plan["style_weights"].to_pylist() if "style_weights" in names else empty
    masks = string_lists(plan["mask"].combine_chunks()) if "mask" in names else empty
    colors = plan["preserve_color"].to_pylist() if "preserve_color" in names else empty
    columns = (plan[name].to_pylist() for name in ("content", "output", "alpha", "style"))
    contents: list[Content] = []
    rows = zip(*columns, weights, masks, colors, strict=True)
    for row, (content, output, alpha, styles, weight, mask, color) in enumerate(rows):
        if not contents or contents[-1].uri != content:
            contents.append(Content(content, []))
        contents[-1].pairs.append(Pair(row, output, alpha, styles, weight, mask or [], bool(color)))
    return contents


def _regions(job: tuple[int, Job]) -> int:
    """Return how many regions its masks make; pairs with as many can share a batch."""
    return len(job[1].vectors) if job[1].masks else 0


def _tensor(image: Array) -> Tensor:
    """Return an image [H, W, 3] as [3, H, W], in the same memory."""
    return torch.from_numpy(image).permute(2, 0, 1)


def peak_memory() -> int:
    """Return this process's peak resident memory in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _refuse_total_outage(failures: Iterable[RowError], attempts: int) -> None:
    transient = [failure for failure in failures if failure.transient]
    if len(transient) == attempts:
        raise SystemicError(f"storage does not answer: {transient[-1].message}")


def _output_error(error: OSError, root: str) -> SystemicError:
    return SystemicError(f"cannot write to {root}: {type(error).__name__}: {' '.join(str(error).split())}")
