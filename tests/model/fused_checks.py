"""What `test_fused` has checked where Triton's interpreter runs the kernel: float32, so that nothing but the convolutions
themselves may round differently."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from stylize_batch.model import checkpoint, container, fused_pixels
from stylize_batch.model.adain import AffineMap, moments_of_halves
from stylize_batch.model.chain import Chain, Framed, Mapped, mapped
from stylize_batch.model.compact import CompactDecoder
from stylize_batch.model.convolution import EnlargingConv2d, ReflectedConv2d, SubPixelConv2d
from stylize_batch.model.decoder import Decoder
from stylize_batch.model.from_rgb import FromRgb, suits
from stylize_batch.model.fused import FusedConv2d
from stylize_batch.model.half_moments import mean_and_variance
from stylize_batch.model.network import Network
from stylize_batch.model.pixels import bytes_in_one_pass, plain_bytes
from stylize_batch.model.quick import from_rgb, quicken
from stylize_batch.model.quick import fused as kernel
from stylize_batch.model.vgg import Encoder

SIZES = [(2, 5), (6, 8), (33, 21)]


def convolution(
    kind: type[ReflectedConv2d], channels: int = 3, made: int = 5, *, relu: bool = True
) -> ReflectedConv2d:
    torch.manual_seed(channels)
    conv = kind(channels, made, relu=relu)
    return conv.to(memory_format=torch.channels_last).requires_grad_(False)  # pyright: ignore


def check(
    conv: ReflectedConv2d,
    following: ReflectedConv2d | None,
    images: Tensor,
    kind: type[FusedConv2d] = FusedConv2d,
) -> None:
    """Compare a convolution with the fused one: its map, and the border that the next one sees."""
    plain = SubPixelConv2d(conv) if isinstance(conv, EnlargingConv2d) else conv
    after = SubPixelConv2d(following) if isinstance(following, EnlargingConv2d) else following
    expected = conv(images)
    found = kind(plain, after)(images)
    if following is None:
        assert isinstance(found, Tensor)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        return
    assert isinstance(found, Framed)
    assert found.whole.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.map, expected, rtol=1e-6, atol=1e-6)
    mode = "replicate" if isinstance(following, EnlargingConv2d) else "reflect"
    channels = expected.shape[1]
    border = torch.nn.functional.pad(found.map, (1, 1, 1, 1), mode)
    # Where border is computed again, the interpreter's products of matrices may round otherwise.
    tolerance = 1e-6 if kind is FromRgb else 0
    torch.testing.assert_close(found.whole[:, :channels], border, rtol=tolerance, atol=tolerance)
    assert not found.whole[:, channels:].any()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("following", [None, ReflectedConv2d, EnlargingConv2d])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", [ReflectedConv2d, EnlargingConv2d])
def test_a_convolution_makes_its_map_and_what_the_next_one_sees(
    kind: type[ReflectedConv2d], relu: bool, following: type[ReflectedConv2d] | None, height: int, width: int
) -> None:
    after = following and convolution(following, 5)
    check(convolution(kind, relu=relu), after, torch.randn(2, 3, height, width))


@pytest.mark.parametrize(("height", "width"), [(3, 4), (33, 21)])
@pytest.mark.parametrize("relu", [False, True])
def test_pooling_keeps_the_highest_of_four_and_of_fewer_at_an_odd_border(
    relu: bool, height: int, width: int
) -> None:
    conv = convolution(ReflectedConv2d, relu=relu)
    conv.pool = True
    check(conv, convolution(ReflectedConv2d, 5), torch.randn(2, 3, height, width))


@pytest.mark.parametrize(("height", "width"), [*SIZES, (2, 2), (16, 24)])
@pytest.mark.parametrize("following", [None, ReflectedConv2d, EnlargingConv2d])
@pytest.mark.parametrize("made", [1, 3, 4])
def test_few_channels_are_made_cell_by_cell(
    made: int, following: type[ReflectedConv2d] | None, height: int, width: int
) -> None:
    after = following and convolution(following, made)
    check(convolution(ReflectedConv2d, 9, made, relu=made == 4), after, torch.randn(2, 9, height, width))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("following", [None, ReflectedConv2d, EnlargingConv2d])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("made", [5, 64])
def test_few_channels_are_convolved_in_the_kernel_itself(
    made: int, relu: bool, following: type[ReflectedConv2d] | None, height: int, width: int
) -> None:
    after = following and convolution(following, made)
    check(convolution(ReflectedConv2d, 3, made, relu=relu), after, torch.randn(2, 3, height, width), FromRgb)


@pytest.mark.parametrize("kind", [ReflectedConv2d, EnlargingConv2d])
def test_channels_of_several_programs_lie_side_by_side(kind: type[ReflectedConv2d]) -> None:
    check(convolution(kind, 4, 200), convolution(ReflectedConv2d, 200), torch.randn(1, 4, 9, 7))


def test_every_memory_format_and_a_part_of_a_map_give_the_same_bits() -> None:
    quick = FusedConv2d(convolution(ReflectedConv2d), None)
    features = torch.randn(2, 3, 12, 11)
    expected = quick(features)
    assert torch.equal(quick(features.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(quick(torch.nn.functional.pad(features, (3, 2, 1, 5))[..., 1:-5, 3:-2]), expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", [ReflectedConv2d, EnlargingConv2d])
@pytest.mark.parametrize("channels", [3, 200])
def test_an_affine_map_is_applied_on_the_way_in(
    channels: int, kind: type[ReflectedConv2d], height: int, width: int
) -> None:
    conv = convolution(kind, channels)
    whole = torch.randn(2, channels, height + 2, width + 2)
    affine = AffineMap(*torch.randn(2, 2, channels, 1, 1))
    chain = fused(one(conv))
    for features in (
        whole[..., 1:-1, 1:-1].contiguous(memory_format=torch.channels_last),
        whole.contiguous(memory_format=torch.channels_last)[..., 1:-1, 1:-1],
    ):
        given = mapped(features, affine, chain)
        assert isinstance(given, Mapped)
        torch.testing.assert_close(chain(given), conv(affine.apply(features)), rtol=1e-5, atol=1e-5)


def test_an_affine_map_that_differs_from_place_to_place_is_applied_before() -> None:
    features, affine = torch.randn(2, 3, 4, 5), AffineMap(*torch.randn(2, 2, 3, 4, 5))
    chain = one(convolution(ReflectedConv2d))
    for network in (chain, fused(chain)):
        given = mapped(features, affine, network)
        assert isinstance(given, Tensor)
        assert torch.equal(given, affine.apply(features))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", [FusedConv2d, FromRgb])
def test_bytes_count_as_255ths(kind: type[FusedConv2d], height: int, width: int) -> None:
    conv = convolution(ReflectedConv2d)
    images = torch.randint(256, (2, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for given in (images, images.contiguous()):
        torch.testing.assert_close(kind(conv, None)(given), conv(images / 255), rtol=1e-6, atol=1e-6)
    assert FusedConv2d(conv.half(), None)(images).dtype == torch.float16


@pytest.mark.parametrize("pool", [False, True])
def test_what_is_not_a_number_stays_so(pool: bool) -> None:
    conv = convolution(ReflectedConv2d)
    conv.pool = pool
    images = torch.randn(1, 3, 8, 8)
    images[0, 1, 3, 4] = torch.nan
    found = FusedConv2d(conv, None)(images)
    assert isinstance(found, Tensor)
    assert torch.equal(found.isnan(), conv(images).isnan())


@pytest.mark.parametrize(("height", "width"), [(9, 9), (25, 18)])
@pytest.mark.parametrize("network", [Encoder, Decoder])
def test_a_network_of_fused_convolutions_makes_the_same_maps(
    network: type[Encoder | Decoder], height: int, width: int
) -> None:
    torch.manual_seed(0)
    plain = network("vgg16").requires_grad_(False)
    quick = fused(plain)
    given = torch.rand(2, 3, height, width) if network is Encoder else torch.rand(2, 512, 3, 2)
    for found, expected in zip(quick.maps(given), plain.maps(given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def one(conv: ReflectedConv2d) -> Chain:
    chain = Chain()
    chain.add_module("conv", conv)
    return chain


def fused(chain: Chain) -> Chain:
    """Return a chain as a GPU has it."""
    quick = copy.deepcopy(chain)
    fuse_in_place(quick)
    return quick


def fuse_in_place(quick: Chain) -> None:
    names = [name for name, _ in quick.named_children()]
    convs = [
        SubPixelConv2d(conv) if isinstance(conv, EnlargingConv2d) else conv
        for conv in quick.children()
        if isinstance(conv, ReflectedConv2d | SubPixelConv2d)
    ]
    for name, conv, following in zip(names, convs, [*convs[1:], None], strict=True):
        quick.add_module(name, FusedConv2d(conv, following))
    quick.fused = True


@pytest.mark.parametrize("masked", [False, True])
def test_pictures_are_those_of_the_plain_network(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylize_batch.model.quick.has_fast_groups", lambda: False)
    torch.manual_seed(0)
    images = torch.randint(256, (2, 20, 25, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    masks = torch.randint(256, (2, 2, 20, 25), dtype=torch.uint8) if masked else None
    found: list[Tensor] = []
    for fuse in (lambda chain: None, fuse_in_place):
        monkeypatch.setattr("stylize_batch.model.quick._fuse", fuse)
        network = Network(checkpoint.loads(container.builtin_bytes(container.DEFAULT)))
        styles = network.encode_styles(images.flip(0, 3))
        styles = styles[:, None].expand(-1, 2, -1) if masked else styles
        for content in (images, images / 255):
            content = network.encode_contents(content, metrics=False)
            found.append(network.stylize(content, styles, torch.tensor([0.5, 1]), masks)[0])
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-4)


def test_a_gpu_gets_fused_convolutions_where_one_follows_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "is_cuda", True)
    chain, other = (network.to(torch.float16) for network in (Decoder("vgg16"), CompactDecoder()))
    for network in (chain, other):
        quicken(network)
    assert all(isinstance(each, FusedConv2d) for each in chain.children())
    encoder = Encoder("vgg16").to(torch.float16)
    quicken(encoder)
    assert [type(each) for each in encoder.children()][:2] == [FromRgb, FusedConv2d]
    assert not suits(ReflectedConv2d(3, 64, relu=True))
    assert chain.fused
    assert not any(isinstance(each, FusedConv2d) for each in other.children())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_trial_before_the_kernel_is_used_finds_it_right_and_draws_no_random_numbers(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert kernel(torch.device("cpu"), dtype)
    if dtype != torch.bfloat16:  # of which the interpreter makes no products of matrices
        assert from_rgb(torch.device("cpu"), dtype)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "height", "width"), [(1, 1, 1), (32, 16, 8), (40, 13, 21), (70, 2, 129)]
)
def test_moments_of_small_types_are_those_of_their_numbers_in_float32(
    channels: int, height: int, width: int, dtype: torch.dtype
) -> None:
    features = (torch.randn(3, channels, height + 2, width + 2) + 30).to(dtype)
    for given in (features, features.contiguous(memory_format=torch.channels_last)):
        given = given[..., 1:-1, 1:-1]
        mean, variance = mean_and_variance(given)
        expected = torch.var_mean(given.double(), (2, 3), correction=0)
        torch.testing.assert_close(mean, expected[1].float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(variance, expected[0].float(), rtol=1e-5, atol=1e-6)
        assert torch.equal(torch.stack(mean_and_variance(given[1:2])), torch.stack((mean, variance))[:, 1:2])
    assert moments_of_halves(torch.device("cpu"), dtype)


def test_moments_of_what_is_not_a_number_are_none() -> None:
    features = torch.ones(1, 2, 4, 5).half()
    features[0, 1, 2, 3] = torch.nan
    for found in mean_and_variance(features):
        assert found.isnan().tolist() == [[False, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 13), (40, 33)])
def test_pictures_become_the_same_bytes(height: int, width: int, dtype: torch.dtype) -> None:
    images = torch.rand(3, height, width, 3)
    halves = (torch.arange(height * 3) % 255 + 0.5) / 255
    images[2] = halves.view(height, 1, 3)
    images = images.to(dtype).permute(0, 3, 1, 2)
    for found, expected in zip(fused_pixels.to_bytes(images), plain_bytes(images), strict=True):
        assert torch.equal(found, expected)
    images[1, 2, -1, -1] = torch.nan
    pixels, sound = fused_pixels.to_bytes(images)
    assert sound.tolist() == [True, False, True]
    assert torch.equal(pixels[::2], plain_bytes(images[::2])[0])
    assert bytes_in_one_pass(torch.device("cpu"), dtype)
