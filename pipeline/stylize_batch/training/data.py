"""Training images: decoded once into memory, drawn as random crops that depend only on (seed, iteration)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylize_batch.errors import JobFailedError, RowError, SystemicError, UsageError
from stylize_batch.images.decode import SUFFIXES, Array, decode
from stylize_batch.storage import list_files, read_bytes

MAX_STORED_SIDE = 512
"""Shorter side images are kept at in memory (the paper's 512)."""


class ImagePool:
    """Decoded images in groups; a draw picks a group first, then an image, so that no source dominates."""

    def __init__(self, folder: str, separator: str, holdout: Sequence[str] = ()) -> None:
        """Read and decode every image below a folder or URI.

        Raises:
            UsageError: there is none that can be decoded.
        """
        if not folder:
            raise UsageError("name the training images: --contents and --styles, or in the recipe")
        files = list_files(folder, SUFFIXES)
        names = {uri: uri.rsplit("/", 1)[-1] for uri in files}
        with ThreadPoolExecutor() as threads:
            decoded = dict(zip(files, threads.map(_load, files), strict=True))
        groups: defaultdict[str, list[Array]] = defaultdict(list)
        self.held_out: dict[str, Array] = {}
        self.skipped: list[str] = []
        for uri, image in decoded.items():
            if image is None:
                self.skipped.append(uri)
            elif names[uri] in holdout:
                self.held_out[names[uri]] = image
            else:
                name, found, _ = names[uri].partition(separator)
                groups[name if found else uri.rsplit("/", 1)[0]].append(image)
        self._groups = [groups[name] for name in sorted(groups)]
        if not self._groups:
            raise UsageError(f"no training images in {folder}; expected {', '.join(SUFFIXES)} files")

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def crops(self, generator: np.random.Generator, count: int, side: int, min_scale: float) -> Tensor:
        """Draw random square crops, flipped half the time, scaled to `side`: float [count, 3, side, side], 0..1."""
        return torch.cat([self._crop(generator, side, min_scale) for _ in range(count)])

    def _crop(self, generator: np.random.Generator, side: int, min_scale: float) -> Tensor:
        group = self._groups[generator.integers(len(self._groups))]
        image = group[generator.integers(len(group))]
        height, width = image.shape[:2]
        short = min(height, width)
        # Never enlarge when it can be helped: blur is not a style.
        window = int(generator.integers(min(max(int(min_scale * short), side), short), short + 1))
        top = int(generator.integers(height - window + 1))
        left = int(generator.integers(width - window + 1))
        crop = to_tensor(image[top : top + window, left : left + window])
        if generator.random() < 0.5:
            crop = crop.flip(3)
        return F.interpolate(crop, (side, side), mode="bilinear", antialias=True)


def to_tensor(image: Array) -> Tensor:
    """Turn uint8 RGB [H, W, 3] into float [1, 3, H, W] in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div_(255)


def to_array(image: Tensor) -> Array:
    """Turn float [3, H, W] around 0..1 into uint8 RGB [H, W, 3]."""
    return image.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()


def _load(uri: str) -> Array | None:
    try:
        data = read_bytes(uri)
        image = decode(data, min_side=32)
        return image if min(image.shape[:2]) <= MAX_STORED_SIDE else decode(data, size=MAX_STORED_SIDE)
    except RowError as error:
        if error.transient:  # another set of images would make another network
            raise JobFailedError(str(error)) from None
        return None
    except SystemicError as error:
        raise JobFailedError(str(error)) from None
