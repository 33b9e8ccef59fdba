"""Networks from published weights: pytorch-AdaIN's VGG-19 and decoder, and torchvision's VGG.

What stands before conv1_1 (a 1×1 convolution, or torchvision's input normalisation) is affine per pixel, so it commutes
with reflection padding and folds into conv1_1 exactly.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Generator, Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import safetensors.torch
import torch
from torch import Tensor, nn

from stylize_batch.errors import UsageError
from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import (
    CONVS_PER_BLOCK,
    Convolution,
    VggArchitecture,
    vgg_decoder,
    vgg_encoder,
)
from stylize_batch.model.convolution import ReflectedConv2d
from stylize_batch.model.decoder import Decoder
from stylize_batch.model.vgg import Encoder

Input = Literal["imagenet", "caffe", "unit"]
"""What a VGG in torchvision's layout takes; its weights cannot tell.

`imagenet`: RGB in 0..1, minus ImageNet's mean, over its standard deviation (torchvision's own weights);
`caffe`: RGB in 0..255 minus the mean (the authors' own); `unit`: RGB in 0..1.
"""

INPUTS: tuple[Input, ...] = get_args(Input)

_SCALE_AND_SHIFT: dict[Input, tuple[list[float], list[float]]] = {
    "imagenet": ([1 / 0.229, 1 / 0.224, 1 / 0.225], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]),
    "caffe": ([255.0] * 3, [-123.68, -116.779, -103.939]),
    "unit": ([1.0] * 3, [0.0] * 3),
}
"""From RGB in 0..1 to what the network takes."""

_PIXELS = Convolution("pixels", 3, 3, 1)
"""pytorch-AdaIN's first module: RGB in 0..1 to BGR in 0..255 minus the mean."""

Part = Literal["encoder", "decoder"]


class File(NamedTuple):
    """A file's name, for messages and provenance, and its bytes."""

    name: str
    data: bytes


class _Layout(NamedTuple):
    """Under which keys (less `.weight` and `.bias`) a file holds which convolutions."""

    part: Part
    architecture: VggArchitecture
    convolutions: tuple[tuple[str, Convolution], ...]


def import_model(
    vgg: File,
    decoder: File | None = None,
    *,
    name: str,
    input: Input | None = None,
    crops: Iterable[Tensor] | None = None,
) -> bytes:
    """Make a model file of published weights, or, without a decoder, a file of an encoder to train with.

    Args:
        vgg: a state dict as `torch.save` or safetensors writes it, in pytorch-AdaIN's or torchvision's layout.
        decoder: one in pytorch-AdaIN's; the model then computes what that implementation does, whose AdaIN
            takes the unbiased variance.
        name: of the model.
        input: what the VGG takes; only torchvision's layout needs it.
        crops: images to normalise the encoder on, see `normalise`.

    Raises:
        UsageError: a file is not what it should be, or `input` is missing or makes no sense.
    """
    if decoder is not None and crops is not None:
        raise UsageError("a decoder knows the features it was trained on: leave it or --normalise out")
    encoder = load_encoder(vgg, input)
    metadata = {"name": name, "encoder_source": _provenance(vgg)}
    if crops is not None:
        metadata["encoder_normalised_on"] = f"{normalise(encoder, crops)} images"
    _check_numbers(encoder, vgg)
    if decoder is None:
        return checkpoint.dumps(encoder, None, metadata)
    mirror = load_decoder(decoder)
    _check_numbers(mirror, decoder)
    if mirror.architecture != encoder.architecture:
        raise UsageError(
            f"{decoder.name} mirrors a {mirror.architecture}, but {vgg.name} is a {encoder.architecture}"
        )
    metadata |= {"decoder_source": _provenance(decoder), "variance": container.UNBIASED}
    return checkpoint.dumps(encoder, mirror, metadata)


def load_encoder(file: File, input: Input | None = None) -> Encoder:
    """Load a VGG up to relu4_1 whose file may hold deeper layers too; it will take RGB in 0..1.

    Raises:
        UsageError: as `import_model`.
    """
    state = _read(file)
    layout = _recognise(state, file, "encoder")
    encoder = Encoder(layout.architecture)
    weights = _named(state, layout)
    if "pixels.weight" in weights:
        if input is not None:
            raise UsageError(f"{file.name} says itself what input it takes; leave --input out")
        matrix, shift = weights.pop("pixels.weight")[:, :, 0, 0], weights.pop("pixels.bias")
    elif input is None:
        raise UsageError(
            f"say what input {file.name} takes: --input imagenet (torchvision's own weights), "
            "caffe (0..255 minus the mean) or unit (0..1)"
        )
    else:
        scale, shift = (torch.tensor(each, dtype=torch.float64) for each in _SCALE_AND_SHIFT[input])
        matrix = torch.diag(scale)
    first = weights["conv1_1.weight"]
    weights["conv1_1.bias"] = weights["conv1_1.bias"] + torch.einsum("oikl,i->o", first, shift)
    weights["conv1_1.weight"] = torch.einsum("oikl,ij->ojkl", first, matrix)
    encoder.load_state_dict(weights)  # rounds to float32
    return encoder.requires_grad_(False).eval()


def load_decoder(file: File) -> Decoder:
    """Load a decoder in pytorch-AdaIN's layout.

    Raises:
        UsageError: as `import_model`.
    """
    state = _read(file)
    layout = _recognise(state, file, "decoder")
    decoder = Decoder(layout.architecture)
    decoder.load_state_dict(_named(state, layout))
    return decoder.requires_grad_(False).eval()


@torch.no_grad()
def normalise(encoder: Encoder, crops: Iterable[Tensor]) -> int:
    """Rescale every filter so that its mean activation over images and positions is 1 (Gatys et al. 2016).

    ReLU and pooling commute with positive factors, and the next layer takes them back: each feature map only
    changes its scale. Filters that (nearly) never fire are rescaled as their layer is on average.

    Args:
        encoder: changed in place.
        crops: images [N, 3, H, W] in 0..1, any number of batches of one size.

    Returns:
        The number of images.
    """
    convolutions = [conv for conv in encoder.children() if isinstance(conv, ReflectedConv2d)]
    sums = {conv: torch.zeros(conv.out_channels, dtype=torch.float64) for conv in convolutions}
    count = 0
    for images in crops:
        x = images
        for conv in convolutions:
            activation = nn.Conv2d.forward(conv, x).relu_()  # before the pool that the layer may end with
            sums[conv] += activation.mean((2, 3), dtype=torch.float64).sum(0)
            x = conv(x)
        count += len(images)
    before = torch.ones(3, dtype=torch.float64)
    for conv, total in sums.items():
        mean = total / count
        mean = torch.where(mean > mean.mean() / 1000, mean, mean.mean())
        conv.weight.copy_(conv.weight * before[:, None, None] / mean[:, None, None, None])
        assert conv.bias is not None
        conv.bias.copy_(conv.bias / mean)
        before = mean
    return count


def _provenance(file: File) -> str:
    return f"{file.name}, SHA-256 {hashlib.sha256(file.data).hexdigest()}"


_SMALL = re.compile(r"collections OrderedDict|torch\S* (?!\w*Tensor$)\w+")
"""What a state dict calls. torch allows more, of which a few bytes can fill the memory: `bytearray(10**10)`."""


def _read(file: File) -> Mapping[str, Any]:
    """Read a state dict without running anything a pickle says."""
    try:
        if file.data[8:9] == b"{":
            return safetensors.torch.load(file.data)
        stream = io.BytesIO(file.data)
        # One after the other: what the file is, in three parts, then the state dict, then its storages.
        pickles = [stream] * 5
        if file.data.startswith(b"PK\3\4"):
            # torch.save never compresses: what unpacks to more than the file is a bomb.
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
                if sum(entry.file_size for entry in entries) > len(file.data):
                    raise ValueError
                names = [entry.filename for entry in entries if entry.filename.lower().endswith(".pkl")]
                pickles = [io.BytesIO(archive.read(name)) for name in names]
        for each in pickles:
            for opcode, name, _ in pickletools.genops(each):
                if "GLOBAL" in opcode.name and not _SMALL.fullmatch(str(name)):
                    raise ValueError
        stream.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about unusual files; the answer stays one line
            state: object = torch.load(stream, map_location="cpu", weights_only=True)
        if isinstance(state, Mapping):
            return state  # pyright: ignore[reportUnknownVariableType]
    except Exception:  # noqa: S110 (whatever damaged or hostile bytes raise, the answer is one)
        pass
    raise UsageError(
        f"{file.name} is neither safetensors nor a state_dict of plain tensors saved by torch.save, or it is damaged"
    )


def _recognise(state: Mapping[str, Any], file: File, part: Part) -> _Layout:
    """Return the layout that the file's tensors have.

    Raises:
        UsageError: they have none, or that of the other part; the message names the first that does not fit.
    """
    prefix = "features." if any(str(key).startswith("features.") for key in state) else ""
    misfits = {layout: list(_misfits(state, layout)) for layout in _layouts(prefix)}
    best = min(misfits, key=lambda layout: len(misfits[layout]) / len(layout.convolutions))
    if len(misfits[best]) >= len(best.convolutions):  # each has two tensors: half of them do not fit
        known = "pytorch-AdaIN's or torchvision's" if part == "encoder" else "pytorch-AdaIN's"
        raise UsageError(f"{file.name} is no {part} of a VGG in {known} layout")
    if best.part != part:
        raise UsageError(f"{file.name} is the {best.part}; name the VGG first, then its decoder")
    if misfits[best]:
        raise UsageError(f"{file.name} is no whole {part} of a {best.architecture}: {misfits[best][0]}")
    return best


def _layouts(prefix: str) -> Generator[_Layout]:
    """List the known layouts; keys are positions that count what has no weights too."""
    for architecture in CONVS_PER_BLOCK:
        convolutions = [
            (index, int(conv.name[4]), conv) for index, conv in enumerate(vgg_encoder(architecture))
        ]
        # Reflection, convolution and ReLU each; a pool before each block but the first.
        published = [(str(1 + 3 * index + block), conv) for index, block, conv in convolutions]
        yield _Layout("encoder", architecture, (("0", _PIXELS), *published))
        # Without reflection.
        torchvision = [(f"{prefix}{2 * index + block - 1}", conv) for index, block, conv in convolutions]
        yield _Layout("encoder", architecture, tuple(torchvision))
        # Up-sampling after each block but the last.
        mirrored = [
            (str(1 + 3 * index + 4 - int(conv.name[4])), conv)
            for index, conv in enumerate(vgg_decoder(architecture))
        ]
        yield _Layout("decoder", architecture, tuple(mirrored))


def _misfits(state: Mapping[str, Any], layout: _Layout) -> Generator[str]:
    """Say of each tensor that is not as the layout wants it what is wrong."""
    for position, conv in layout.convolutions:
        for kind, shape in (("weight", conv.weight_shape), ("bias", [conv.channels_out])):
            key = f"{position}.{kind}"
            tensor = state.get(key)
            if not isinstance(tensor, Tensor):
                yield f"{key} is missing"
            elif (
                list(tensor.shape) != shape
                or not tensor.is_floating_point()
                or tensor.layout is not torch.strided
                or tensor.is_meta
            ):
                yield f"{key} is {tensor.dtype} {list(tensor.shape)}, not floating-point {shape}"


def _named(state: Mapping[str, Any], layout: _Layout) -> dict[str, Tensor]:
    """Return the tensors under this package's names, in float64."""
    return {
        f"{conv.name}.{kind}": state[f"{position}.{kind}"].double()
        for position, conv in layout.convolutions
        for kind in ("weight", "bias")
    }


def _check_numbers(network: nn.Module, file: File) -> None:
    for name, value in network.state_dict().items():
        if not value.half().isfinite().all():
            raise UsageError(f"{file.name}: {name} holds NaN, infinity, or numbers beyond half precision's")
