"""What is compared on what: the settings of an evaluation, and the images they choose."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stylize_batch.errors import JobFailedError, RowError, SystemicError, UsageError
from stylize_batch.images.decode import SUFFIXES, Array, decode
from stylize_batch.listing import list_files
from stylize_batch.model import container
from stylize_batch.storage import absolute, read_bytes


class Picture(NamedTuple):
    """The centre square of an image.

    Attributes:
        name: path below its folder.
        digest: of the pixels.
        pixels: uint8 RGB [size, size, 3].
    """

    name: str
    digest: str
    pixels: Array


@dataclass(frozen=True)
class Protocol:
    """What is compared on what.

    Attributes:
        contents: folder or URI of photographs.
        styles: folder or URI of style images.
        models: shipped names, paths or URIs.
        size: side of the centre squares compared, pixels.
        max_contents: contents taken at most, drawn by the seed where there are more.
        max_styles: as `max_contents`.
        iterations: of the optimisation baseline; 0 leaves it out.
        seed: of the draw.
    """

    contents: str
    styles: str
    models: tuple[str, ...] = (container.DEFAULT,)
    size: int = 256
    max_contents: int = 50
    max_styles: int = 10
    iterations: int = 100
    seed: int = 0

    def load(self, folder: str, count: int, skipped: dict[str, str]) -> list[Picture]:
        """Decode the centre squares of a folder's images, at most so many, sorted by name.

        Args:
            folder: path or URI.
            count: images wanted; drawn by the seed if there are more.
            skipped: gets the images that cannot be decoded, and why; others take their place.

        Raises:
            UsageError: the folder cannot be listed, or holds no image that can be decoded.
            JobFailedError: storage does not answer.
        """
        base = absolute(folder)
        files = list_files(base, SUFFIXES)
        pictures: list[Picture] = []
        for index in np.random.default_rng(self.seed).permutation(len(files)):
            if len(pictures) == count:
                break
            uri = files[index]
            try:
                pixels = decode(read_bytes(uri), size=self.size, crop=self.size)
            except (RowError, SystemicError) as error:
                if error.blameless:  # another choice of images would be another evaluation
                    raise JobFailedError(str(error)) from None
                skipped[uri] = str(error)
                continue
            name = uri.removeprefix(f"{base.rstrip('/')}/")
            pictures.append(Picture(name, digest(pixels), pixels))
        if not pictures:
            raise UsageError(
                f"no images in {folder} that can be decoded; expected {', '.join(SUFFIXES)} files"
            )
        return sorted(pictures, key=lambda picture: picture.name)


def digest(*arrays: Array) -> str:
    """Return what identifies arrays: BLAKE2b-128, hex."""
    state = hashlib.blake2b(digest_size=16)
    for each in arrays:
        state.update(repr((each.dtype.str, each.shape)).encode())
        state.update(each.tobytes())
    return state.hexdigest()
