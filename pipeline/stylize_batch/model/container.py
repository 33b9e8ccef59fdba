"""Model files as bytes: where the shipped ones lie, what identifies one, what its header says. Without torch."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import Any, cast

from stylize_batch.errors import UsageError
from stylize_batch.model.architecture import ARCHITECTURES, decoder_convolutions, encoder_convolutions

DEFAULT = "adain-vgg16"
"""The model used unless another is named; its encoder is also the loss network φ."""

BUILTIN = (DEFAULT,)
"""Models shipped inside the package."""

METADATA = "stylize_batch"
"""Key of the header's string with a model's metadata, as JSON."""


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
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, AttributeError, KeyError, TypeError):
        raise UsageError("the model is not a safetensors file; `stylize-batch train` makes one") from None
    if 8 + length + max(ends, default=0) != len(data):
        raise UsageError("the model file is cut short; copy it again")
    return header


def read_metadata(data: bytes) -> dict[str, str]:
    """Return the strings in a safetensors header.

    Raises:
        UsageError: as `read_header`.
    """
    return cast("dict[str, str]", read_header(data).get("__metadata__", {}))


def dump_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Return what to write into a header: one string, since safetensors does not keep the order of several."""
    return {METADATA: json.dumps(metadata, sort_keys=True)}


def check_model(data: bytes) -> dict[str, str]:
    """Check that a file holds an encoder and a decoder of a known architecture; return its metadata.

    Raises:
        UsageError: it does not.
    """
    header = read_header(data)
    try:
        metadata = cast("dict[str, str]", json.loads(header["__metadata__"][METADATA]))
    except (KeyError, ValueError):
        raise UsageError("the safetensors file is not a model of stylize-batch") from None
    architecture = metadata.get("architecture", "")
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"the model's architecture {architecture!r} is unknown; known: {', '.join(ARCHITECTURES)}"
        )
    for part, convolutions in (
        ("encoder", encoder_convolutions(architecture)),
        ("decoder", decoder_convolutions(architecture)),
    ):
        for conv in convolutions:
            for kind, shape in (("weight", conv.weight_shape), ("bias", [conv.channels_out])):
                name = f"{part}.{conv.name}.{kind}"
                if header.get(name, {}).get("shape") != shape:
                    raise UsageError(f"the model file has no fitting {name}; it is damaged")
    return metadata
