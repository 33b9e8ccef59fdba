"""A model file made of published weights, wherever they lie: files, object storage, or torchvision's download."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, hub
from torchvision.models import VGG16_Weights, VGG19_Weights

from stylize_batch.errors import RowError, SystemicError, UsageError
from stylize_batch.images.decode import SUFFIXES, decode
from stylize_batch.listing import list_files
from stylize_batch.model import importing
from stylize_batch.model.importing import INPUTS, File
from stylize_batch.root import replacing
from stylize_batch.storage import absolute, read_bytes

TORCHVISION = "torchvision:"
"""Prefix of a VGG whose weights torchvision downloads."""

MAX_CROPS, CROP = 500, 224
"""An encoder is normalised on centre crops of at most so many images, and of this side, pixels."""


def import_model(
    vgg: str,
    decoder: str | None,
    output: str,
    *,
    input: str | None = None,
    normalise: str | None = None,
    skipped: Callable[[str], None],
) -> str:
    """Make a model file of published weights; see `model.importing`.

    Args:
        vgg: path or URI, or `torchvision:vgg19` or `torchvision:vgg16`.
        decoder: path or URI; None makes a file of the encoder alone, to train with.
        output: path or URI of the safetensors file, replaced if it exists.
        input: what the VGG takes, one of `model.importing.INPUTS`; None where the file says so itself.
        normalise: folder or URI of photographs to normalise the encoder on.
        skipped: told about each of these that cannot be decoded.

    Returns:
        The file's absolute path or URI.

    Raises:
        UsageError: a file cannot be read, is not what it should be, or cannot be written.
    """
    if input is not None and input not in INPUTS:
        raise UsageError(f"--input {input} is unknown; use {', '.join(INPUTS)}")
    if not output.endswith(".safetensors"):
        raise UsageError(f"-o {output}: a model's file name ends in .safetensors")
    if vgg.startswith(TORCHVISION):
        if input is not None:
            raise UsageError(f"what {vgg} takes is known; leave --input out")
        source, input = _torchvision(vgg.removeprefix(TORCHVISION)), "imagenet"
    else:
        source = _file(vgg)
    data = importing.import_model(
        source,
        _file(decoder) if decoder is not None else None,
        name=output.rsplit("/", 1)[-1].removesuffix(".safetensors"),
        input=input,
        crops=_crops(normalise, skipped) if normalise is not None else None,
    )
    target = absolute(output)
    try:
        with replacing(target) as path:
            path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error}") from None
    return target


def _file(uri: str) -> File:
    try:
        return File(uri.rsplit("/", 1)[-1], read_bytes(uri))
    except (RowError, SystemicError) as error:
        raise UsageError(f"cannot read {uri}: {error}") from None


def _torchvision(name: str) -> File:
    """Return torchvision's own weights, trained on ImageNet, from torch.hub's cache or the network."""
    known: dict[str, Any] = {"vgg19": VGG19_Weights, "vgg16": VGG16_Weights}
    if name not in known:
        raise UsageError(
            f"{TORCHVISION}{name} is unknown; use {' or '.join(TORCHVISION + each for each in known)}"
        )
    url: str = known[name].DEFAULT.url
    path = Path(hub.get_dir(), "checkpoints", PurePosixPath(url).name)
    if not path.exists():
        digest = path.stem.rsplit("-", 1)[-1]  # by torch.hub's convention, how the SHA-256 begins
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
        except (OSError, RuntimeError) as error:
            raise UsageError(f"cannot download {url} ({error}); put it at {path} yourself") from None
    return _file(str(path))


def _crops(folder: str, skipped: Callable[[str], None]) -> Generator[Tensor]:
    """Yield centre crops of a folder's images, or of evenly spaced ones of many, float [1, 3, 224, 224]."""
    found = list_files(folder, SUFFIXES)
    usable = 0
    for uri in found[:: math.ceil(len(found) / MAX_CROPS) or 1]:
        try:
            pixels = decode(read_bytes(uri), size=CROP, crop=CROP)
        except (RowError, SystemicError) as error:
            if error.blameless:  # another set of images would make another encoder
                raise UsageError(str(error)) from None
            skipped(uri)
            continue
        usable += 1
        yield torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255
    if not usable:
        raise UsageError(f"no images to normalise on in {folder}; expected {', '.join(SUFFIXES)} files")
