"""Published weights: what is imported computes what it computed before, and hostile or wrong files are refused.

The implementation imported from is written out here as plain modules (`published`, `reference`), with random weights.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
import torchvision.models as tv
from torch import Tensor, nn

from stylize_batch.errors import UsageError
from stylize_batch.model import checkpoint, container, importing
from stylize_batch.model.adain import EPSILON, Statistics, adain, statistics
from stylize_batch.model.architecture import MIN_SIDE, VggArchitecture, vgg_decoder, vgg_encoder
from stylize_batch.model.importing import File, Input
from stylize_batch.model.network import LOSS_WIDTH, Network, loss_network
from stylize_batch.model.vgg import Encoder
from tests.model.test_vgg import picture

BLOCKS: dict[str, list[list[int]]] = {
    "vgg19": [[64, 64], [128, 128], [256] * 4, [512] * 4, [512] * 4],
    "vgg16": [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3],
}
RELU4_1 = {"vgg19": 31, "vgg16": 28}
"""Modules up to relu4_1."""


def published(architecture: str = "vgg19") -> tuple[nn.Sequential, nn.Sequential]:
    """Return the whole VGG and the decoder as pytorch-AdaIN builds them."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    channels = 3
    for block, widths in enumerate(BLOCKS[architecture]):
        if block:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        for width in widths:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, width, 3), nn.ReLU()]
            channels = width
    mirrored: list[nn.Module] = []
    widths = [512, *(256 for _ in BLOCKS[architecture][2]), 128, 128, 64, 64, 3]
    for before, after in pairwise(widths):
        mirrored += [nn.ReflectionPad2d(1), nn.Conv2d(before, after, 3), nn.ReLU()]
        if 3 < after < before:
            mirrored.append(nn.Upsample(scale_factor=2, mode="nearest"))
    vgg, decoder = (nn.Sequential(*each).requires_grad_(False) for each in (layers, mirrored[:-1]))
    for module in (*vgg, *decoder):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    weights = vgg.state_dict()
    weights["0.weight"].copy_(255 * torch.eye(3).flip(0)[:, :, None, None])  # RGB to BGR
    weights["0.bias"].copy_(-torch.tensor([103.939, 116.779, 123.68]))
    weights["2.weight"] /= 60
    last = len(decoder) - 1
    decoder.state_dict()[f"{last}.weight"] /= 100
    decoder.state_dict()[f"{last}.bias"] += 0.5
    return vgg, decoder


def mean_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return pytorch-AdaIN's statistics: unbiased variance, ε under the root."""
    flat = features.flatten(2)
    return flat.mean(2)[..., None, None], (flat.var(2) + 1e-5).sqrt()[..., None, None]


def reference(
    vgg: nn.Sequential, decoder: nn.Sequential, content: Tensor, style: Tensor, alpha: float
) -> Tensor:
    """Stylize as pytorch-AdaIN does."""
    encoder = vgg[:31]
    x, y = encoder(content), encoder(style)
    (content_mean, content_std), (style_mean, style_std) = mean_std(x), mean_std(y)
    target = (x - content_mean) / content_std * style_std + style_mean
    return decoder(alpha * target + (1 - alpha) * x)


def saved(state: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, **options)
    return stream.getvalue()


def torchvision_features(architecture: str) -> nn.Sequential:
    """Return torchvision's layers up to conv4_1 and a little further."""
    return tv.vgg.make_layers(tv.vgg.cfgs[{"vgg19": "E", "vgg16": "D"}[architecture]])[:24]


def torchvision_state(architecture: str) -> dict[str, Tensor]:
    """Return random weights under torchvision's names, up to conv4_1 and a little further."""
    torch.manual_seed(2)
    return {
        f"features.{key}": value for key, value in torchvision_features(architecture).state_dict().items()
    }


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    return published()


@pytest.fixture(scope="module")
def vgg(networks: tuple[nn.Sequential, nn.Sequential]) -> File:
    return File("vgg_normalised.pth", saved(networks[0].state_dict()))


@pytest.fixture(scope="module")
def decoder(networks: tuple[nn.Sequential, nn.Sequential]) -> File:
    return File("decoder.pth", saved(networks[1].state_dict()))


@pytest.fixture(scope="module")
def exact() -> tuple[nn.Sequential, nn.Sequential, bytes]:
    """Networks whose weights, folded or not, half precision holds exactly, and the model file made of them."""
    torch.manual_seed(1)
    vgg, decoder = published()
    for parameter in (*vgg.parameters(), *decoder.parameters()):
        parameter.copy_(parameter.half())
    weights = vgg.state_dict()
    weights["0.weight"].copy_(256 * torch.eye(3).flip(0)[:, :, None, None])
    weights["0.bias"].fill_(-128)
    weights["2.weight"].copy_(torch.randint(-7, 8, (64, 3, 3, 3)) / 256)
    weights["2.bias"].copy_(torch.randint(-7, 8, (64,)) / 2)
    files = (File("vgg.pth", saved(vgg.state_dict())), File("decoder.pth", saved(decoder.state_dict())))
    return vgg, decoder, importing.import_model(*files, name="adain-vgg19")


def stylize(data: bytes, content: Tensor, style: Tensor, alpha: float = 1.0) -> Tensor:
    network = Network(checkpoint.loads(data))
    features = network.encode_contents(content, metrics=False)
    images, _ = network.stylize(features, network.encode_styles(style), torch.tensor([alpha]))
    return images


# What was published, and what it computes


@pytest.mark.parametrize("alpha", [1.0, 0.4])
@pytest.mark.parametrize(("height", "width"), [(9, 9), (31, 50), (64, 48)])
def test_an_imported_model_computes_what_pytorch_adain_computes(
    exact: tuple[nn.Sequential, nn.Sequential, bytes], height: int, width: int, alpha: float
) -> None:
    vgg, decoder, data = exact
    content, style = picture(height, width), picture(40, 24).flip(1)
    expected = reference(vgg, decoder, content, style, alpha)[:, :, :height, :width]
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.5  # clamping hides no difference
    torch.testing.assert_close(
        stylize(data, content, style, alpha), expected.clamp(0, 1), rtol=1e-4, atol=1e-4
    )


def test_it_is_the_unbiased_variance_that_makes_them_equal(
    exact: tuple[nn.Sequential, nn.Sequential, bytes],
) -> None:
    _, _, data = exact
    model = checkpoint.loads(data)
    assert model.metadata["variance"] == "unbiased"
    biased = checkpoint.dumps(model.encoder, model.decoder, {"name": "biased"})
    content, style = picture(9, 9), picture(40, 24).flip(1)
    assert (stylize(biased, content, style) - stylize(data, content, style)).abs().max() > 1e-2


def test_the_smallest_images_have_an_unbiased_variance() -> None:
    """On one cell it would be 0/0; the shortest side allowed leaves two, ceil-mode pooling rounds up."""
    features = Encoder("vgg19").requires_grad_(False)(picture(MIN_SIDE, MIN_SIDE))
    assert features.shape[2:] == (2, 2)
    torch.testing.assert_close(statistics(features, 1).std ** 2 - EPSILON, features.var((2, 3)))


def test_the_1x1_convolution_folds_into_conv1_1_exactly_at_the_border_too(
    networks: tuple[nn.Sequential, nn.Sequential], vgg: File
) -> None:
    encoder = importing.load_encoder(vgg).double()
    image = torch.rand(1, 3, 24, 24, dtype=torch.float64)
    expected = networks[0].double()[:4](image)
    networks[0].float()
    conv = encoder.get_submodule("conv1_1")
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    # Two roundings to float32, of the folded weights and bias, are all that may differ.
    bound = 2**-24 * (conv.weight.abs().sum((1, 2, 3)) + conv.bias.abs())
    assert ((encoder.taps(image)[0] - expected).abs().amax((0, 2, 3)) <= bound).all()


@pytest.mark.parametrize("architecture", ["vgg19", "vgg16"])
def test_every_tap_of_a_published_vgg_is_kept(architecture: VggArchitecture) -> None:
    torch.manual_seed(3)
    network, _ = published(architecture)
    short = network[: RELU4_1[architecture]]
    encoder = importing.load_encoder(File("vgg.pth", saved(short.state_dict())))
    assert encoder.architecture == architecture
    torch.testing.assert_close(encoder(picture(33, 41)), short(picture(33, 41)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["vgg19", "vgg16"])
def test_the_decoder_is_the_published_one(architecture: VggArchitecture) -> None:
    torch.manual_seed(4)
    _, network = published(architecture)
    found = importing.load_decoder(File("decoder.pth", saved(network.state_dict())))
    features = torch.rand(1, 512, 3, 4)
    assert found.architecture == architecture
    torch.testing.assert_close(found(features), network(features), rtol=1e-4, atol=1e-4)


def normalised_by_torchvision(images: Tensor) -> Tensor:
    preset = tv.VGG19_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(each)[:, None, None] for each in (preset.mean, preset.std))
    return (images - mean) / std


@pytest.mark.parametrize(
    ("input", "preprocess"),
    [
        ("imagenet", normalised_by_torchvision),
        ("caffe", lambda x: 255 * x - torch.tensor([123.68, 116.779, 103.939])[:, None, None]),
        ("unit", lambda x: x),
    ],
)
@pytest.mark.parametrize("architecture", ["vgg19", "vgg16"])
def test_torchvisions_vgg_takes_what_it_was_trained_on(
    architecture: str, input: Input, preprocess: Callable[[Tensor], Tensor]
) -> None:
    state = torchvision_state(architecture)
    features = torchvision_features(architecture)
    features.load_state_dict({key.removeprefix("features."): value for key, value in state.items()})
    for module in features:
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "reflect"
        elif isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
    encoder = importing.load_encoder(File("vgg.pth", saved(state)), input)
    assert encoder.architecture == architecture
    relu4_1, images = {"vgg19": 21, "vgg16": 19}[architecture], picture(33, 41).double()
    with torch.inference_mode():
        expected = features.double()[:relu4_1](preprocess(images))
        torch.testing.assert_close(encoder.double()(images), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "write",
    [
        saved,
        lambda state: saved(state, _use_new_zipfile_serialization=False),
        lambda state: safetensors.torch.save(state),
        lambda state: saved({key.removeprefix("features."): value for key, value in state.items()}),
        lambda state: saved({**state, "classifier.0.weight": torch.full((4, 4), torch.nan)}),
        lambda state: saved({key: value.half() for key, value in state.items()}),
    ],
    ids=["zip", "before PyTorch 1.6", "safetensors", "features alone", "whole model, NaN elsewhere", "half"],
)
def test_every_way_of_saving_a_state_dict_is_read(write: Callable[[dict[str, Tensor]], bytes]) -> None:
    state = {key: value.half().float() for key, value in torchvision_state("vgg19").items()}
    encoder = importing.load_encoder(File("vgg", write(state)), "unit")
    assert torch.equal(encoder.state_dict()["conv4_1.weight"], state["features.19.weight"])


def test_a_model_tells_where_it_comes_from(vgg: File, decoder: File) -> None:
    data = importing.import_model(vgg, decoder, name="adain-vgg19")
    metadata = container.check_model(data)
    assert metadata["name"] == "adain-vgg19"
    assert metadata["architecture"] == "vgg19"
    assert metadata["encoder_source"] == f"vgg_normalised.pth, SHA-256 {hashlib.sha256(vgg.data).hexdigest()}"
    assert metadata["decoder_source"] == f"decoder.pth, SHA-256 {hashlib.sha256(decoder.data).hexdigest()}"
    assert importing.import_model(vgg, decoder, name="adain-vgg19") == data
    described = container.describe(data)
    assert described["encoder_parameters"] == sum(
        conv.channels_out * (conv.channels_in * 9 + 1) for conv in vgg_encoder("vgg19")
    )
    assert described["decoder_bytes"] == 2 * sum(
        conv.channels_out * (conv.channels_in * 9 + 1) for conv in vgg_decoder("vgg19")
    )


# Losses


def test_losses_of_an_unbiased_model_are_measured_with_the_biased_variance(decoder: File) -> None:
    """Also when its encoder is φ itself, whose statistics then cannot serve both."""
    default = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    positions = (0, 2, 5, 7, 10, 12, 14, 17)
    state = {
        f"features.{position}.{kind}": default.encoder.state_dict()[f"{conv.name}.{kind}"]
        for position, conv in zip(positions, vgg_encoder("vgg16"), strict=True)
        for kind in ("weight", "bias")
    }
    torch.manual_seed(5)
    file = File("decoder.pth", saved(published("vgg16")[1].state_dict()))
    data = importing.import_model(
        File("vgg16.safetensors", safetensors.torch.save(state)), file, name="mine", input="unit"
    )
    model = checkpoint.loads(data)
    assert loss_network(model) is model.encoder
    network, style = Network(model), picture(24, 40).flip(1)
    vector = network.encode_styles(style)
    torch.testing.assert_close(vector[:, :LOSS_WIDTH], Network(default).encode_styles(style))
    assert vector.shape == (1, LOSS_WIDTH + 2 * 512)
    images, losses = network.stylize(network.encode_contents(picture(32, 32)), vector, torch.ones(1))
    assert losses is not None
    with torch.inference_mode():
        content, wanted, found = (model.encoder(each) for each in (picture(32, 32), style, images))
        unbiased = Statistics(*(each[..., 0, 0] for each in mean_std(wanted)))
        expected = adain(statistics(content, 1), unbiased).apply(content)
        torch.testing.assert_close(images, model.decoder(expected).clamp(0, 1), rtol=1e-4, atol=1e-4)
        target = adain(statistics(content), statistics(wanted)).apply(content)
    assert losses.content_loss.item() == pytest.approx(((found - target) ** 2).mean().item(), rel=1e-3)


# Encoders alone


def test_an_encoder_alone_serves_training_and_nothing_else() -> None:
    file = File("vgg19.pth", saved(torchvision_state("vgg19")))
    data = importing.import_model(file, name="vgg19", input="imagenet")
    encoder = checkpoint.load_encoder(data)
    expected = importing.load_encoder(file, "imagenet").state_dict()
    assert all(
        torch.equal(value, expected[key].half().float()) for key, value in encoder.state_dict().items()
    )
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    for refuse in (container.check_model, checkpoint.loads):
        with pytest.raises(UsageError, match="no decoder; train one with `stylize-batch train`"):
            refuse(data)


def test_the_encoder_of_a_whole_model_serves_training_too() -> None:
    data = container.builtin_bytes(container.DEFAULT)
    expected = checkpoint.loads(data).encoder.state_dict()
    found = checkpoint.load_encoder(data).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: checkpoint.dumps(*checkpoint.build("compact"), {}), "compact"),
        (lambda: container.builtin_bytes(container.DEFAULT)[:-9], "cut short"),
        (lambda: safetensors.torch.save(torchvision_state("vgg16")), "not a model"),
        (
            lambda: container.builtin_bytes(container.DEFAULT).replace(
                b"encoder.conv3_1", b"encoder.conv9_1"
            ),
            "no fitting encoder.conv3_1",
        ),
    ],
    ids=["compact", "cut short", "raw weights", "a layer missing"],
)
def test_what_holds_no_vgg_encoder_is_refused_for_training(data: Callable[[], bytes], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checkpoint.load_encoder(data())


def activations(encoder: Encoder, images: Tensor) -> Iterator[Tensor]:
    """What every convolution makes, rectified, before it is pooled."""
    for conv in encoder.children():
        yield nn.Conv2d.forward(cast(nn.Conv2d, conv), images).relu_()
        images = conv(images)


def test_normalising_makes_the_mean_activation_of_every_filter_one() -> None:
    torch.manual_seed(6)
    network = published()[0][:31]
    state = network.state_dict()
    state["9.weight"][7] = 0  # conv2_1 has a filter that never fires
    state["9.bias"][7] = -1
    file = File("vgg.pth", saved(state))
    before, after = importing.load_encoder(file), importing.load_encoder(file)
    images = torch.cat([picture(48, 48), picture(48, 48).flip(1)])
    assert importing.normalise(after, images.split(1)) == 2
    for found, raw in zip(activations(after, images), activations(before, images), strict=True):
        mean, scale = found.mean((0, 2, 3)), raw.mean((0, 2, 3))
        fires = scale > scale.mean() / 1000
        torch.testing.assert_close(mean[fires], torch.ones(int(fires.sum())), rtol=1e-2, atol=0)
        assert (mean[~fires] < 1e-2).all()
        torch.testing.assert_close(
            (found * scale[:, None, None])[:, fires], raw[:, fires], rtol=1e-3, atol=1e-3
        )
    assert not after.taps(images)[1][:, 7].any()


# Wrong files


def test_no_code_in_a_pickle_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    state = {"0.weight": torch.zeros(3), "extra": Hostile()}
    for data in (saved(state), saved(state, _use_new_zipfile_serialization=False), pickle.dumps(Hostile())):
        with pytest.raises(UsageError, match=r"vgg\.pth is neither safetensors nor a state_dict"):
            importing.load_encoder(File("vgg.pth", data), "unit")
        assert not marker.exists()


def archive(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        lambda: b"",
        lambda: b"version https://git-lfs.github.com/spec/v1\n",
        lambda: b"\x10\x00\x00\x00\x00\x00\x00\x00{not a header",
        lambda: archive("notes.txt", b"hello"),
        lambda: saved({"0.weight": torch.zeros(1000)})[:-100],
        lambda: saved({"0.weight": torch.zeros(1000)})[:1000],
        lambda: saved({"0.weight": torch.zeros(1000)}, _use_new_zipfile_serialization=False)[:1000],
        lambda: safetensors.torch.save({"0.weight": torch.zeros(1000)})[:-1],
        lambda: saved(nn.Sequential(nn.Conv2d(3, 3, 1))),
        lambda: saved([torch.zeros(3)]),
    ],
    ids=["empty", "text", "bad header", "zip", "cut", "cut short", "old and cut", "safetensors cut",
         "a whole module", "a list"],
)  # fmt: skip
def test_what_is_no_file_of_weights_is_refused_in_one_line(data: Callable[[], bytes]) -> None:
    with pytest.raises(UsageError, match="vgg is neither safetensors nor a state_dict") as caught:
        importing.load_encoder(File("vgg", data()), "unit")
    assert "\n" not in str(caught.value)


BYTEARRAY = b"\x80\x02c__builtin__\nbytearray\n" + pickle.dumps(10**10, 2)[2:-1] + b"\x85R."


def compressed(data: bytes) -> bytes:
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as plain,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        lambda: compressed(saved({"0.weight": torch.zeros(100_000)})),
        lambda: archive("vgg/data.pkl", BYTEARRAY),
        lambda: archive("vgg/DATA.PKL", BYTEARRAY),
        lambda: saved({}, _use_new_zipfile_serialization=False).replace(b"}q\0.", BYTEARRAY[2:]),
        lambda: BYTEARRAY + archive("vgg/data.pkl", pickle.dumps({}, 2)),
        lambda: saved({"x": b"_codecs encode"}),
    ],
    ids=["compressed", "bytearray", "capitals", "old", "old and a zip", "encode"],
)
def test_a_bomb_is_refused_before_torch_unpacks_it(
    data: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[object] = []
    file = File("vgg", data())
    monkeypatch.setattr(torch, "load", lambda stream, **_: unpacked.append(stream))
    with pytest.raises(UsageError, match="vgg is neither safetensors nor a state_dict"):
        importing.load_encoder(file, "unit")
    assert not unpacked


def changed(**values: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Change or, with None, remove entries of a state dict; `_` stands for `.`."""
    given = {key.strip("_").replace("_", "."): value for key, value in values.items()}
    return lambda state: {key: value for key, value in {**state, **given}.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(_29_weight=None, _29_bias=None), r"no whole encoder of a vgg19: 29\.weight is missing"),
        (changed(_0_bias=None), r"0\.bias is missing"),
        (changed(_5_weight=torch.zeros(64, 64, 5, 5)), r"5\.weight is torch\.float32 \[64, 64, 5, 5\], not"),
        (changed(_5_weight=torch.zeros(64, 64, 3, 3, dtype=torch.int8)), r"5\.weight is torch\.int8"),
        (changed(_5_weight=torch.zeros(64, 64, 3, 3).to_sparse()), r"5\.weight is torch\.float32"),
        (changed(_5_weight="no tensor"), r"5\.weight is missing"),
        (changed(_5_weight=torch.zeros(64, 64, 3, 3, device="meta")), r"5\.weight is torch\.float32"),
        (changed(_9_bias=torch.full((128,), torch.nan)), r"conv2_1\.bias holds NaN"),
        (changed(_9_bias=torch.full((128,), torch.inf)), r"conv2_1\.bias holds NaN, infinity"),
        (changed(_9_bias=torch.full((128,), 1e5)), r"beyond half precision"),
        (changed(_0_bias=torch.full((3,), 1e9)), r"conv1_1\.bias holds .*beyond half precision"),
        (lambda _: {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "no encoder of a VGG in pytorch-AdaIN's or torch"),
        (lambda _: tv.vgg.make_layers(tv.vgg.cfgs["A"]).state_dict(), "no encoder of a VGG"),
        (lambda _: {}, "no encoder of a VGG"),
    ],
    ids=["no conv4_1", "no input bias", "shape", "integers", "sparse", "no tensor", "meta", "NaN", "infinity",
         "too large", "too large once folded", "ResNet", "VGG-11", "nothing"],
)  # fmt: skip
def test_a_wrong_vgg_is_refused_and_what_is_wrong_named(
    networks: tuple[nn.Sequential, nn.Sequential],
    change: Callable[[dict[str, Any]], dict[str, Any]],
    message: str,
) -> None:
    file = File("vgg.pth", saved(change(networks[0][:31].state_dict())))
    with pytest.raises(UsageError, match=message) as caught:
        importing.import_model(file, name="mine")
    assert str(caught.value).startswith("vgg.pth")
    assert "\n" not in str(caught.value)


def test_swapped_or_repeated_arguments_are_noticed(vgg: File, decoder: File) -> None:
    for arguments in ((decoder, vgg), (decoder,)):
        with pytest.raises(UsageError, match=r"decoder\.pth is the decoder; name the VGG first"):
            importing.import_model(*arguments, name="mine")
    with pytest.raises(UsageError, match=r"vgg_normalised\.pth is the encoder; name the VGG first"):
        importing.import_model(vgg, vgg, name="mine")


def test_a_decoder_of_another_vgg_is_refused(vgg: File) -> None:
    other = File("decoder.pth", saved(published("vgg16")[1].state_dict()))
    with pytest.raises(UsageError, match=r"decoder\.pth mirrors a vgg16, but vgg_normalised\.pth is a vgg19"):
        importing.import_model(vgg, other, name="mine")


def test_what_a_vgg_takes_is_asked_for_only_where_its_file_does_not_say(vgg: File) -> None:
    file = File("vgg19.pth", saved(torchvision_state("vgg19")))
    with pytest.raises(UsageError, match=r"say what input vgg19\.pth takes: --input imagenet"):
        importing.import_model(file, name="mine")
    with pytest.raises(UsageError, match=r"vgg_normalised\.pth says itself what input it takes"):
        importing.import_model(vgg, name="mine", input="caffe")


def test_a_decoder_is_not_put_on_an_encoder_whose_features_change(vgg: File, decoder: File) -> None:
    with pytest.raises(UsageError, match="leave it or --normalise out"):
        importing.import_model(vgg, decoder, name="mine", crops=[picture()])
