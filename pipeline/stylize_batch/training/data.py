"""Training images: drawn as random crops that depend only on (seed, iteration), decoded by any number of threads."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylize_batch.errors import JobFailedError, RowError, SystemicError, UsageError, counted
from stylize_batch.images.decode import SUFFIXES, Array, decode, sides_of
from stylize_batch.listing import list_files
from stylize_batch.storage import absolute, read_bytes

MAX_STORED_SIDE = 512
"""Shorter side images are reduced to before crops are taken (the paper's 512), unless crops are larger."""

MAX_CACHED_BYTES = 3 << 30
"""Decoded images a pool keeps in memory; more images than that are decoded anew each time they are drawn."""

MAX_UNREADABLE = 0.1
"""Share of the images that may be unreadable before training refuses to go on without them."""


class ImagePool:
    """Images in groups; a draw picks a group first, then an image, so that no source dominates."""

    def __init__(
        self, folder: str, separator: str, holdout: Sequence[str] = (), side: int = MAX_STORED_SIDE
    ) -> None:
        """List every image below a folder or URI; held-out ones are decoded, the others when they are drawn.

        Args:
            folder: or URI.
            separator: of a file's name, whose part before it is its group; empty puts all into one.
            holdout: names of files that are never drawn.
            side: what the shorter side of larger images is reduced to.

        Raises:
            UsageError: there is none, the folder cannot be listed, or a held-out one cannot be decoded.
        """
        if not folder:
            raise UsageError("name the training images: --contents and --styles, or in the recipe")
        groups: defaultdict[str, list[str]] = defaultdict(list)
        self.held_out: dict[str, Array] = {}
        self._side = side
        self.skipped: list[str] = []
        """Images that could not be decoded when they were drawn."""
        uris = list_files(folder, SUFFIXES)
        root = absolute(folder).rstrip("/") + "/"
        names = "\n".join(uri.removeprefix(root) for uri in uris)
        self.digest = hashlib.blake2b(names.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        """Of the names below the folder: draws are the same only from the same list."""
        for uri in uris:
            name = uri.rsplit("/", 1)[-1]
            if name in holdout:
                try:
                    self.held_out[name] = _load(uri, side)
                except (RowError, SystemicError) as error:
                    raise UsageError(f"held-out image {uri}: {error}") from None
                continue
            groups[_group(uri, separator)].append(uri)
        self._folder = folder
        self._groups = [groups[name] for name in sorted(groups)]
        self._cache: dict[str, Array] = {}
        self._cached_bytes = 0
        self._lock = threading.Lock()
        if not self._groups:
            raise UsageError(f"no training images in {folder}; expected {', '.join(SUFFIXES)} files")

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def crops(
        self, generator: np.random.Generator, count: int, side: int, scales: tuple[float, float]
    ) -> Tensor:
        """Draw random square crops, flipped half the time, scaled to `side`: uint8 [count, side, side, 3].

        A crop's own side lies between two shares of the image's shorter side. An image that cannot be decoded is noted in `skipped` and another drawn in its place.

        Raises:
            JobFailedError: too many images are unreadable, or storage does not answer.
        """
        crops = torch.cat([self._crop(generator, side, scales) for _ in range(count)])
        return crops.permute(0, 2, 3, 1).contiguous()

    def _crop(self, generator: np.random.Generator, side: int, scales: tuple[float, float]) -> Tensor:
        image = self._draw(generator)
        height, width = image.shape[:2]
        short = min(height, width)
        # Never enlarge when it can be helped: blur is not a style.
        smallest, largest = (min(max(int(scale * short), side), short) for scale in scales)
        window = int(generator.integers(smallest, largest + 1))
        top = int(generator.integers(height - window + 1))
        left = int(generator.integers(width - window + 1))
        crop = torch.tensor(image[top : top + window, left : left + window])
        # On bytes as Pillow does it, in a quarter of the time: a GPU takes a batch in milliseconds.
        resized = F.interpolate(crop.permute(2, 0, 1)[None], (side, side), mode="bilinear", antialias=True)
        return resized.flip(3) if generator.random() < 0.5 else resized

    def _draw(self, generator: np.random.Generator) -> Array:
        while True:
            group = self._groups[generator.integers(len(self._groups))]
            uri = group[generator.integers(len(group))]
            if uri in self._cache:
                return self._cache[uri]
            try:
                image = _load(uri, self._side)
            except (RowError, SystemicError) as error:
                if error.blameless:  # another set of images would make another network
                    raise JobFailedError(str(error)) from None
                self._skip(uri)
                continue
            with self._lock:
                if self._cached_bytes + image.nbytes <= MAX_CACHED_BYTES and uri not in self._cache:
                    self._cache[uri] = image
                    self._cached_bytes += image.nbytes
            return image

    def _skip(self, uri: str) -> None:
        with self._lock:
            if uri not in self.skipped:
                self.skipped.append(uri)
            if len(self.skipped) > MAX_UNREADABLE * len(self):
                raise JobFailedError(
                    f"{len(self.skipped)} of {counted(len(self), 'image')} in {self._folder} cannot be decoded, for example "
                    f"{uri}; remove such images or take another folder"
                )


def to_tensor(images: Tensor) -> Tensor:
    """Turn uint8 RGB [N, H, W, 3] into float [N, 3, H, W] in 0..1, channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def _group(uri: str, separator: str) -> str:
    if not separator:
        return ""
    folder, _, name = uri.rpartition("/")
    source, found, _ = name.partition(separator)
    return source if found else folder


def _load(uri: str, side: int) -> Array:
    data = read_bytes(uri)
    large = min(sides_of(data)) > side
    return decode(data, size=side if large else None, min_side=32)
