"""Models in memory from model files and back: one safetensors holds encoder, decoder and metadata."""

from __future__ import annotations

from typing import NamedTuple, cast

import safetensors.torch
import torch
from torch import Tensor

from stylize_batch.errors import UsageError
from stylize_batch.model import container
from stylize_batch.model.architecture import DESIGNS, Architecture, VggArchitecture
from stylize_batch.model.compact import CompactDecoder, CompactEncoder
from stylize_batch.model.decoder import Decoder
from stylize_batch.model.vgg import Encoder

AnyEncoder = Encoder | CompactEncoder
AnyDecoder = Decoder | CompactDecoder


class Checkpoint(NamedTuple):
    """A loaded model file.

    Attributes:
        encoder: f, in float32, not trainable.
        decoder: g, in float32, not trainable.
        metadata: strings: `name`, `architecture`, `encoder_licence`, `recipe`, `variance`, losses, …
        digest: BLAKE2b-128 of the file, hex: equal means the same network.
    """

    encoder: AnyEncoder
    decoder: AnyDecoder
    metadata: dict[str, str]
    digest: str


def build(architecture: Architecture) -> tuple[AnyEncoder, AnyDecoder]:
    """Make an encoder and a decoder with random weights."""
    if architecture == "compact":
        return CompactEncoder(), CompactDecoder()
    return Encoder(architecture), Decoder(architecture)


def dumps(encoder: AnyEncoder, decoder: AnyDecoder | None, metadata: dict[str, str]) -> bytes:
    """Serialise a model, or an encoder alone, in float16; `architecture` is added to the metadata."""
    tensors = {
        f"{part}.{key}": value.detach().to("cpu", torch.float16).contiguous()
        for part, network in (("encoder", encoder), ("decoder", decoder))
        if network is not None
        for key, value in network.state_dict().items()
    }
    full = {**metadata, "architecture": encoder.architecture}
    return safetensors.torch.save(tensors, container.dump_metadata(full))


def loads(data: bytes) -> Checkpoint:
    """Load a model file.

    Raises:
        UsageError: it is not a model file of this package, or damaged.
    """
    metadata = container.check_model(data)
    with _EMPTY:
        encoder, decoder = build(cast("Architecture", metadata["architecture"]))
    tensors = _tensors(data)
    for part, network in (("encoder", encoder), ("decoder", decoder)):
        network.load_state_dict(_part(tensors, part), assign=True)
        network.requires_grad_(False).eval()
    return Checkpoint(encoder, decoder, metadata, container.digest(data))


def load_encoder(data: bytes) -> Encoder:
    """Load the VGG encoder of a model file, with a decoder in it or not; float32, not trainable.

    Raises:
        UsageError: it is not a model file of this package, or damaged, or of another architecture.
    """
    architecture = cast("Architecture", container.check_encoder(data)["architecture"])
    if DESIGNS[architecture].own_encoder:
        raise UsageError(f"a {architecture} model's encoder knows its own decoder only; name a VGG's")
    with _EMPTY:
        encoder = Encoder(cast("VggArchitecture", architecture))
    encoder.load_state_dict(_part(_tensors(data), "encoder"), assign=True)
    return encoder.requires_grad_(False).eval()


_EMPTY = torch.device("meta")
"""Where networks have no random weights, which would be drawn from the caller's random numbers, until theirs are given."""


def _tensors(data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UsageError(f"the model file is damaged: {error}") from None


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{part}."): value.float()
        for key, value in tensors.items()
        if key.startswith(f"{part}.")
    }
