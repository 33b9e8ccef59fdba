"""Model files as bytes: where the shipped ones lie, what identifies one, what its header says. Without torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from typing import Any, cast

from stylize_batch.errors import UsageError
from stylize_batch.model.architecture import (
    ARCHITECTURES,
    DESIGNS,
    Architecture,
    Convolution,
)

DEFAULT = "adain-vgg16"
"""The model used unless another is named; its encoder is also the loss network φ."""

COMPACT = "adain-compact"
"""A far smaller and faster one."""

BUILTIN = (DEFAULT, COMPACT)
"""Models shipped inside the package."""

METADATA = "stylize_batch"
"""Key of the header's string with a model's metadata, as JSON."""

UNBIASED = "unbiased"
"""Value of the metadata's `variance` in models whose AdaIN divides by n − 1, as pytorch-AdaIN does; ours has none."""


DTYPES = ("F16", "BF16", "F32", "F64")
"""Types that weights may be stored in, in the words of safetensors."""


def builtin_bytes(name: str) -> bytes:
    """Return the file of a model shipped inside the package."""
    return (resources.files("stylize_batch.model") / "weights" / f"{name}.safetensors").read_bytes()


def digest(data: bytes) -> str:
    """Return what identifies a model file: BLAKE2b-128, hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_header(data: bytes) -> dict[str, Any]:
    """Return a safetensors header: tensors by name, and the strings under `__metadata__`.

    Raises:
        UsageError: the bytes are no safetensors file, or it is cut short.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = cast("dict[str, Any]", json.loads(data[8 : 8 + length]))
        spans = [_span(entry) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, AttributeError, LookupError, TypeError, OverflowError, RecursionError):
        raise UsageError("the model is not a safetensors file; `stylize-batch train` makes one") from None
    if 8 + length + max((end for _, end in spans), default=0) != len(data):
        raise UsageError("the model file is cut short; copy it again")
    return header


def dump_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Return what to write into a header: one string, since safetensors does not keep the order of several."""
    return {METADATA: json.dumps(metadata, sort_keys=True)}


def check_model(data: bytes) -> dict[str, str]:
    """Check that a file holds an encoder and a decoder of a known architecture; return its metadata.

    Raises:
        UsageError: it does not.
    """
    metadata = check_encoder(data)
    header = read_header(data)
    if not any(name.startswith("decoder.") for name in header):
        raise UsageError(
            "the model has no decoder; train one with `stylize-batch train`: a recipe's `encoder` may name this file"
        )
    _check_part(header, "decoder", DESIGNS[cast("Architecture", metadata["architecture"])].decoder)
    return metadata


def check_encoder(data: bytes) -> dict[str, str]:
    """Check that a file holds an encoder of a known architecture, with a decoder or not; return its metadata.

    Raises:
        UsageError: it does not.
    """
    header = read_header(data)
    try:
        metadata = cast("dict[str, Any]", json.loads(header["__metadata__"][METADATA]))
        architecture = metadata.get("architecture", "")
        sound = all(isinstance(value, str) for value in metadata.values())
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
        sound, metadata, architecture = False, {}, ""
    if not sound:
        raise UsageError("the safetensors file is not a model of stylize-batch")
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"the model's architecture {architecture!r} is unknown; known: {', '.join(ARCHITECTURES)}"
        )
    if metadata.get("variance", UNBIASED) != UNBIASED:
        raise UsageError(f"the model's variance {metadata['variance']!r} is unknown to this version")
    try:
        sound = max_gain(metadata) > 0
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(f"the model's max_gain {metadata['max_gain']!r} is no number above 0")
    _check_part(header, "encoder", DESIGNS[architecture].encoder)
    for name, entry in header.items():
        if name != "__metadata__" and entry.get("dtype") not in DTYPES:
            raise UsageError(f"the model file has {name[:80]!r}, of a type that no model has; it is damaged")
    return metadata


def max_gain(metadata: dict[str, str]) -> float:
    """Return the bound of σ(style)/σ(content) that a model's AdaIN has (`model.adain`); the paper's has none."""
    return float(metadata.get("max_gain", "inf"))


def describe(data: bytes) -> dict[str, Any]:
    """Return what a model file says about itself, its digest, and the size of its parts.

    Raises:
        UsageError: as `check_encoder`, and as `check_model` if it has a decoder.
    """
    header = read_header(data)
    has_decoder = any(name.startswith("decoder.") for name in header)
    found: dict[str, Any] = dict(check_model(data) if has_decoder else check_encoder(data))
    for key, value in found.items():
        with suppress(ValueError, RecursionError):  # most are plain words; recipes and numbers are not
            found[key] = json.loads(value)
    found |= {"digest": digest(data), "bytes": len(data)}
    for part in ("encoder", "decoder"):
        entries = [entry for name, entry in header.items() if name.startswith(f"{part}.")]
        found[f"{part}_parameters"] = sum(math.prod(entry["shape"]) for entry in entries)
        found[f"{part}_bytes"] = sum(end - start for start, end in map(_span, entries))
    return found


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    """Return where a tensor's bytes begin and end."""
    start, end = entry["data_offsets"]
    return int(start), int(end)


def _check_part(header: dict[str, Any], part: str, convolutions: Sequence[Convolution]) -> None:
    for conv in convolutions:
        for kind, shape in (("weight", conv.weight_shape), ("bias", [conv.channels_out])):
            name = f"{part}.{conv.name}.{kind}"
            entry = header.get(name, {})
            if entry.get("shape") != shape or entry.get("dtype") not in DTYPES:
                raise UsageError(f"the model file has no fitting {name}; it is damaged")
    known = {f"{part}.{conv.name}.{kind}" for conv in convolutions for kind in ("weight", "bias")}
    for name in header:
        if name.startswith(f"{part}.") and name not in known:
            raise UsageError(
                f"the model file has {name[:80]!r}, which no model of its architecture has; it is damaged"
            )
