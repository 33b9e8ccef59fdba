"""Model files: what goes in comes out, and what is no model file is refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import safetensors.torch
import torch

from stylize_batch.errors import UsageError
from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import ARCHITECTURES, Architecture
from stylize_batch.weights import read_model


@pytest.fixture(scope="module")
def data() -> bytes:
    return container.builtin_bytes(container.DEFAULT)


def dumps(metadata: dict[str, str]) -> bytes:
    return checkpoint.dumps(*checkpoint.build("compact"), metadata)


def with_entry(data: bytes, **changed: Any) -> bytes:
    """Change what the header says of one tensor."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["encoder.conv1_1.bias"] |= changed
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


def with_tensor(data: bytes, name: str) -> bytes:
    tensors = {**safetensors.torch.load(data), name: torch.zeros(3)}
    return safetensors.torch.save(tensors, container.dump_metadata(container.check_model(data)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_survives_saving_and_loading_within_half_precision(architecture: Architecture) -> None:
    torch.manual_seed(0)
    encoder, decoder = checkpoint.build(architecture)
    loaded = checkpoint.loads(checkpoint.dumps(encoder, decoder, {"name": "mine"}))
    assert loaded.metadata == {"name": "mine", "architecture": architecture}
    for before, after in ((encoder, loaded.encoder), (decoder, loaded.decoder)):
        for key, value in before.state_dict().items():
            assert torch.equal(value.half().float(), after.state_dict()[key])


def test_loading_draws_none_of_the_callers_random_numbers(data: bytes) -> None:
    before = torch.random.get_rng_state()
    checkpoint.loads(data)
    checkpoint.load_encoder(data)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_shipped_weights_are_small_enough_to_ship(data: bytes) -> None:
    assert len(data) <= 14e6


def test_shipped_model_tells_its_licence_and_recipe(data: bytes) -> None:
    metadata = container.check_model(data)
    assert metadata["architecture"] == "vgg16"
    assert "CC BY 4.0" in metadata["encoder_licence"]
    assert json.loads(metadata["recipe"])["stages"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "not a safetensors file"),
        (lambda data: b"<html>not found</html>", "not a safetensors file"),
        (lambda data: data[:-100], "cut short"),
        (lambda data: data.replace(b"vgg16", b"vgg99"), "unknown"),
        (lambda data: data.replace(b"decoder.conv1", b"dekoder.conv1"), "no fitting decoder"),
        (lambda data: data.replace(b"decoder.", b"dekoder."), "no decoder; train one"),
        (lambda data: data.replace(b'\\"architecture\\"', b'\\"Architecture\\"'), "'' is unknown"),
        (lambda data: safetensors.torch.save({}, {container.METADATA: "[]"}), "not a model of stylize-batch"),
        (lambda data: dumps({"variance": "huge"}), "variance 'huge' is unknown"),
        (lambda data: dumps({"max_gain": "much"}), "max_gain 'much' is no number above 0"),
        (lambda data: dumps({"max_gain": "-1"}), "max_gain '-1' is no number above 0"),
        (lambda data: dumps({"max_gain": "nan"}), "max_gain 'nan' is no number above 0"),
        (lambda data: dumps(cast("dict[str, str]", {"recipe": 5})), "not a model of stylize-batch"),
        (lambda data: with_entry(data, data_offsets=[]), "not a safetensors file"),
        (lambda data: with_entry(data, data_offsets=[0, math.inf]), "not a safetensors file"),
        (lambda data: data.replace(b'"F16"', b'"I16"', 1), "no fitting|of a type"),
        (lambda data: with_tensor(data, "encoder.odd"), r"has 'encoder\.odd', which"),
        (lambda data: with_tensor(data, "decoder.odd"), r"has 'decoder\.odd', which"),
        (lambda data: with_tensor(data, "other").replace(b'"F32"', b'"F4" '), r"has 'other', of a type"),
    ],
)
def test_damaged_model_files_are_refused_in_one_line(
    data: bytes, damage: Callable[[bytes], bytes], message: str
) -> None:
    damaged = damage(data)
    for read in (checkpoint.loads, *([] if b"decoder." not in damaged else [container.describe])):
        with pytest.raises(UsageError, match=message) as caught:
            read(damaged)
        assert "\n" not in str(caught.value)


def test_tensors_that_do_not_lie_where_the_header_says_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(UsageError, match="damaged") as caught:
        checkpoint.loads(with_entry(data, dtype="F32"))
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(UsageError, match="adain-vgg16"):
        read_model("picasso")
