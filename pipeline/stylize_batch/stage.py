"""The stylize stage: decoded contents and what is to be made of them in, pictures out, in batches that fit in memory.

What does not fit in memory is made in halves, down to single pictures, and what fails beside others is tried once more
alone. What shares a batch depends on the order of what comes in alone, never on timing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from stylize_batch.contents import Pair, StyleImage, as_tensor
from stylize_batch.errors import DeviceError, RowError
from stylize_batch.heap import keep_freed_memory
from stylize_batch.images.decode import Array
from stylize_batch.images.mask import stack_regions
from stylize_batch.lanes import Lanes
from stylize_batch.model import checkpoint
from stylize_batch.model.color import ColorMap
from stylize_batch.model.device import (
    answers,
    batch_pixels,
    check_device,
    free_memory,
    lacks_memory,
    own_streams,
    to_host,
    wait_for,
)
from stylize_batch.model.network import ContentFeatures, Network
from stylize_batch.model.pixels import to_bytes
from stylize_batch.results import Outcome
from stylize_batch.settings import WorkerSettings
from stylize_batch.stopwatch import Stopwatch
from stylize_batch.styles import Vectors, blend

UNIT_PAIRS = 8
"""Pairs of a unit of a lane's work, if they are not one batch: their pictures wait in memory for each other."""

GPU_LANES = 2
"""Lanes that feed a GPU: it works for one while the other waits for its pictures or hands over new ones."""


class Job(NamedTuple):
    """A pair that can be stylized.

    Attributes:
        vectors: one style vector, blended if there are several styles, or one per mask; none if styles are re-coloured.
        recolored: the styles that must first be re-coloured and encoded, each with its map.
    """

    pair: Pair
    masks: list[Array]
    vectors: Vectors | None
    recolored: list[tuple[StyleImage, ColorMap]]


Batch = list[tuple[int, Job]]
"""Jobs that go through the network at once, each with the index of its content."""


class Prepared(NamedTuple):
    """A decoded content and what is to be made of it."""

    image: Array
    jobs: list[Job]


class Picture(NamedTuple):
    """What the network made, or a content as it is: uint8 RGB [H, W, 3], and the three losses."""

    pixels: Array
    losses: tuple[float | None, float | None, float | None] = (None, None, None)


class Retry(NamedTuple):
    """What failed beside the work of other lanes, which may have held the memory: it is tried again alone."""

    image: Array
    job: Job
    error: RowError


Tried = tuple[Pair, "Outcome | Picture | Retry"]


_T = TypeVar("_T")


class StylizeStage:
    """The network on its device, fed from lanes."""

    def __init__(
        self,
        settings: WorkerSettings,
        model: bytes,
        clock: Stopwatch,
        stay: Callable[[], None] = lambda: None,
    ) -> None:
        """Load the network.

        Args:
            settings: of the job.
            model: the bytes of the model file.
            clock: is told the seconds of `encode`, `stylize`, `metrics` and `wait`.
            stay: is called between batches; what it raises ends the work.

        Raises:
            DeviceError: there is no such device for torch.
        """
        check_device(settings.device)
        self._settings = settings
        self._clock = clock
        self._stay = stay
        network = checkpoint.loads(model)
        self._network = Network(network, settings.device, settings.precision, timed=clock)
        self.batch_pixels = self._network.pass_pixels
        """Pixels of a batch that fits in memory beside those of the other lanes."""
        if settings.device == "cpu":
            keep_freed_memory()
        else:
            # Half of it, in equal parts.
            free = free_memory(self._network.device, settings.gpu_share) // (2 * GPU_LANES)
            self.batch_pixels = batch_pixels(free, self._network.dtype)
        self._begin_lane = own_streams(self._network.device, GPU_LANES)

    def lanes(self) -> Lanes:
        """Open lanes for units of this stage's work."""
        if self._network.device.type == "cpu":
            cores = self._settings.threads or torch.get_num_threads()
            return Lanes(cores, self._network.pass_pixels, self._clock)
        return Lanes(GPU_LANES, GPU_LANES * self.batch_pixels, self._clock, self._begin_lane)

    def large(self, shape: tuple[int, ...]) -> bool:
        """Whether pictures of a shape, (height, width, …), are larger than a pass, so that one fills the memory."""
        return shape[0] * shape[1] > self._network.pass_pixels

    def batch_size(self, shape: tuple[int, ...]) -> int:
        """Return how many pictures of a shape, (height, width, …), go through the network at once."""
        if self._network.device.type == "cpu" or self.large(shape):
            # Larger batches are no faster on a CPU, and the kernel chosen for them may round differently.
            return 1
        if self._settings.batch_size is not None:
            return self._settings.batch_size
        return max(1, self.batch_pixels // (shape[0] * shape[1]))

    def encode_style(self, image: Array, recoloring: ColorMap | None = None) -> Vectors:
        """Return the vector of a style image, uint8 [H, W, 3], re-coloured first if a map is given.

        Raises:
            RowError: it does not fit in memory.
            DeviceError: the device is unusable from now on.
        """
        try:
            with self._clock("encode"):
                return self._network.encode_styles(as_tensor(image)[None], recoloring)[0].numpy()
        except (RuntimeError, MemoryError) as error:
            raise self._network_error(error, image.shape) from None

    def units(self, bucket: list[Prepared], parts: int) -> Iterator[Callable[[], Iterator[Tried]]]:
        """Yield the work on same-sized contents in units, in so many parts at least where there are enough batches: some
        batches of pairs each; each content is encoded once."""
        batch_size = self.batch_size(bucket[0].image.shape)
        jobs = [(index, job) for index, prepared in enumerate(bucket) for job in prepared.jobs]
        batches: list[Batch] = []
        for _, group in groupby(sorted(jobs, key=_regions), key=_regions):
            alike = list(group)
            batches.extend(alike[start : start + batch_size] for start in range(0, len(alike), batch_size))
        encoded = _once(lambda: self._encode_contents(bucket))
        # Pictures that fill the memory: one at a time.
        large = self.large(bucket[0].image.shape)
        count = 1 if large else min(max(1, UNIT_PAIRS // batch_size), -(-len(batches) // parts))
        for start in range(0, len(batches), count):
            yield functools.partial(self._stylize_unit, bucket, encoded, batches[start : start + count])

    def alone(self, retry: Retry) -> Iterator[Tried]:
        """Try a pair again, with nothing beside it."""
        bucket = [Prepared(retry.image, [retry.job])]
        unit = self._stylize_unit(bucket, lambda: self._encode_contents(bucket), [[(0, retry.job)]])
        for pair, made in unit:
            yield pair, Outcome(error=str(made.error)) if isinstance(made, Retry) else made

    def _stylize_unit(
        self, bucket: list[Prepared], encoded: Callable[[], ContentFeatures | RowError], batches: list[Batch]
    ) -> Iterator[Tried]:
        features = encoded()
        if isinstance(features, RowError):
            yield from self._with_fewer(bucket, batches, features)
            return
        for batch in batches:
            self._stay()
            ready: Batch = []
            for index, job in batch:
                try:
                    ready.append((index, self._recolored(job)))
                except RowError as error:
                    yield job.pair, Retry(bucket[index].image, job, error.bare())
            if ready:
                for (index, job), made in self._stylize_batch(features, ready):
                    failed = isinstance(made, RowError)
                    yield job.pair, Retry(bucket[index].image, job, made) if failed else made

    def _with_fewer(self, bucket: list[Prepared], batches: list[Batch], error: RowError) -> Iterator[Tried]:
        """Take half of the contents at once, which did not fit in memory together, down to one."""
        jobs: dict[int, list[Job]] = {}
        for index, job in (each for batch in batches for each in batch):
            jobs.setdefault(index, []).append(job)
        contents = [Prepared(bucket[index].image, found) for index, found in jobs.items()]
        if len(bucket) == 1:
            yield from ((job.pair, Retry(contents[0].image, job, error)) for job in contents[0].jobs)
            return
        half = -(-len(contents) // 2)
        for part in filter(None, (contents[:half], contents[half:])):
            for unit in self.units(part, 1):
                yield from unit()

    def _recolored(self, job: Job) -> Job:
        """Encode the styles that are to be re-coloured.

        Raises:
            RowError: they do not fit in memory.
        """
        if job.vectors is not None:
            return job
        vectors = np.stack([self.encode_style(style.image, to) for style, to in job.recolored])
        return job._replace(vectors=as_one(job.pair, vectors))

    def _encode_contents(self, bucket: list[Prepared]) -> ContentFeatures | RowError:
        try:
            with self._clock("encode"):
                pixels = [torch.from_numpy(each.image) for each in bucket]
                # As they lie in memory: to sort them by channels would take ten times as long.
                images = (pixels[0][None] if len(pixels) == 1 else torch.stack(pixels)).permute(0, 3, 1, 2)
                features = self._network.encode_contents(images, metrics=self._settings.metrics)
                wait_for(self._network.device)  # the other lane may be the next to use them
                return features
        except (RuntimeError, MemoryError) as error:
            return self._network_error(error, bucket[0].image.shape)

    def _stylize_batch(
        self, features: ContentFeatures, batch: Batch
    ) -> Iterator[tuple[tuple[int, Job], Outcome | Picture | RowError]]:
        """Stylize some pairs at once; if they do not fit in memory, half of them, down to one."""
        made = self._run_network(features, batch)
        if isinstance(made, RowError):
            if len(batch) == 1:
                yield batch[0], made
                return
            half = len(batch) // 2
            yield from self._stylize_batch(features, batch[:half])
            yield from self._stylize_batch(features, batch[half:])
            return
        yield from zip(batch, made, strict=True)

    def _run_network(self, features: ContentFeatures, batch: Batch) -> list[Outcome | Picture] | RowError:
        # A function of its own: what a failed attempt holds in memory goes with its frame.
        try:
            with self._clock("stylize"):
                index = [index for index, _ in batch]
                vectors = torch.from_numpy(np.stack([job.vectors for _, job in batch]))  # pyright: ignore
                alpha = torch.tensor([job.pair.alpha for _, job in batch])
                masks = None
                if batch[0][1].masks:
                    regions = [stack_regions(job.masks, len(job.pair.styles)) for _, job in batch]
                    masks = torch.from_numpy(np.stack(regions))
                sound = torch.ones(len(batch), dtype=torch.bool)

                def to_pixels(images: Tensor) -> Tensor:
                    nonlocal sound
                    # Infinities are clamped by now, as whatever else lies outside 0..1: what can be found is NaN.
                    pixels, good = to_host(*to_bytes(images))
                    sound &= good
                    return pixels

                if index != list(range(features.contents)):
                    features = features.select(torch.tensor(index, device=self._network.device))
                images, losses = self._network.stylize(features, vectors, alpha, masks, finish=to_pixels)
                pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
                measured = [(None, None, None)] * len(batch)
                if losses is not None:
                    with self._clock("metrics"):  # a GPU is done with them only here
                        measured = torch.stack(losses, 1).tolist()
        except (RuntimeError, MemoryError) as error:
            return self._network_error(error, (features.height, features.width))
        error = RowError("NotFinite", "the network's output is not finite; try --precision fp32")
        return [
            Picture(picture, each) if good else Outcome(error=str(error))
            for picture, good, each in zip(pixels, sound.tolist(), measured, strict=True)
        ]

    def _network_error(self, error: RuntimeError | MemoryError, shape: tuple[int, ...]) -> RowError:
        """Translate what torch raised; an error of a GPU other than lack of memory outlives the batch.

        Raises:
            DeviceError: the device is unusable from now on.
        """
        if lacks_memory(error):
            if self._network.device.type == "cuda":
                torch.cuda.empty_cache()
            return RowError("OutOfMemory", f"{shape[1]}×{shape[0]} pixels do not fit in memory; use --size")
        text = str(error) or type(error).__name__
        if not answers(self._network.device):
            raise DeviceError(text.splitlines()[0]) from None
        return RowError("NetworkError", text.splitlines()[0])


def as_one(pair: Pair, vectors: Vectors) -> Vectors:
    """Blend the vectors of a pair's styles, unless masks say where each goes."""
    return vectors if pair.masks else blend(vectors, pair.weights)[None]


def _regions(job: tuple[int, Job]) -> int:
    """Return how many regions its masks make; pairs with as many can share a batch."""
    return len(job[1].pair.styles) if job[1].masks else 0


def _once(call: Callable[[], _T]) -> Callable[[], _T]:
    """Return a function that calls another the first time, whichever thread comes first, and remembers."""
    lock = threading.Lock()
    found: list[_T] = []

    def remembered() -> _T:
        with lock:
            if not found:
                found.append(call())
        return found[0]

    return remembered
