"""The whole network on a device: style statistics, stylization T(c, s) = g(t), and the losses of the result."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from stylize_batch.model import checkpoint, container
from stylize_batch.model.adain import Moments, Statistics, adain, merged, moments, over_regions
from stylize_batch.model.architecture import (
    CHANNELS,
    DESIGNS,
    ENCODER_HALO,
    TAP_STRIDES,
)
from stylize_batch.model.chain import is_fused, mapped
from stylize_batch.model.checkpoint import Checkpoint
from stylize_batch.model.color import ColorMap
from stylize_batch.model.device import keep_float32, to_device, wait_for
from stylize_batch.model.losses import Losses, LossMeter
from stylize_batch.model.quick import quicken
from stylize_batch.model.regions import Regions
from stylize_batch.model.tiling import PASS_PIXELS, STRIDE, Box, tiles
from stylize_batch.model.vgg import Encoder

_Module = TypeVar("_Module", bound=torch.nn.Module)
_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

LOSS_WIDTH = 2 * sum(CHANNELS)
"""Floats of a style's statistics at φ's four taps: μ and σ of each, 1,920."""


class ContentFeatures(NamedTuple):
    """Encoded contents; of one that is larger than a pass, what it takes to encode it tile by tile.

    Attributes:
        height: of the images, pixels.
        width: of the images, pixels.
        tiles: what the network takes one after the other; a single one is the whole picture.
        images: uint8 or in 0..1, [N, 3, H, W]; None when the features are kept.
        maps: f(c), the feature maps AdaIN works on, each [N, C, h, w] (of a VGG model relu4_1 alone), and φ₄(c)
            last, where it is not one of them and losses are wanted; None when there are several tiles.
        statistics: μ and σ of each map.
        metrics: whether losses are wanted.
    """

    height: int
    width: int
    tiles: list[Box]
    images: Tensor | None
    maps: tuple[Tensor, ...] | None
    statistics: tuple[Statistics, ...]
    metrics: bool

    @property
    def contents(self) -> int:
        """How many these are."""
        return len(self.statistics[0].mean)

    def select(self, index: Tensor) -> ContentFeatures:
        """Return the features of some samples, repeated or left out as `index` says."""
        if self.contents == len(index) == 1:
            return self
        return self._replace(
            images=None if self.images is None else self.images[index.to(self.images.device)],
            maps=None if self.maps is None else tuple(features[index] for features in self.maps),
            statistics=tuple(Statistics(mean[index], std[index]) for mean, std in self.statistics),
        )


def _in_own_precision(
    method: Callable[Concatenate[Network, _Given], _Found],
) -> Callable[Concatenate[Network, _Given], _Found]:
    """Have a method compute for inference and in the network's precision, also where the caller trains under autocast."""

    @functools.wraps(method)
    def computed(network: Network, *args: _Given.args, **kwargs: _Given.kwargs) -> _Found:
        with torch.inference_mode(), torch.autocast(network.device.type, enabled=False):
            return method(network, *args, **kwargs)

    return computed


class Network:
    """Encoder, decoder and loss network φ on one device in one precision; statistics are always float32.

    A style is one float32 vector: μ and σ of φ's taps (`LOSS_WIDTH` floats), followed by μ and σ of the
    features the model's AdaIN works on when its encoder is not φ or its variance not the biased one. Vectors
    blend linearly (Eq. 15).
    """

    def __init__(
        self,
        model: Checkpoint,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        *,
        pass_pixels: int = PASS_PIXELS,
        timed: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext(),
    ) -> None:
        """Place the model.

        Args:
            model: encoder and decoder.
            device: `cpu`, `cuda` or one of several GPUs.
            precision: a name of `DTYPES`.
            pass_pixels: taken at once; larger pictures are tiled.
            timed: measures the time that `metrics` take, beside whatever its caller measures.
        """
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        if self.device.type == "cuda" and precision == "fp32":
            keep_float32()
        phi = loss_network(model)
        unbiased = model.metadata.get("variance") == container.UNBIASED
        # Losses always take the biased variance, so a style needs both statistics where AdaIN takes the other.
        own = phi is model.encoder and not unbiased
        self._phi = self._place(phi)
        self._encoder = self._phi if own else self._place(model.encoder)
        self._decoder = self._place(model.decoder)
        self._takes_bytes = is_fused(self._encoder) and is_fused(self._phi)
        design = DESIGNS[model.encoder.architecture]
        self._transfer_channels = () if own else design.channels
        self._transfer_strides = design.strides
        self._max_gain = container.max_gain(model.metadata)
        self._corrections = (int(unbiased),) * len(self._transfer_strides)
        self._decoder_halo = design.decoder_halo
        self._timed = timed
        self.pass_pixels = pass_pixels
        """Pixels taken at once; larger pictures are tiled."""
        wait_for(self.device)  # other threads' streams do not wait for this one's

    def _place(self, module: _Module) -> _Module:
        # A copy: `to` would change the caller's own module.
        placed = copy.deepcopy(module).to(self.device, memory_format=torch.channels_last)  # pyright: ignore
        quicken(placed, self.dtype)
        return placed

    def upload(self, images: Tensor) -> Tensor:
        """Move uint8 images [N, H, W, 3] to the device as [N, 3, H, W] in 0..1, channels last."""
        return self._upload(images.permute(0, 3, 1, 2))

    def _upload(self, images: Tensor) -> Tensor:
        # On a CPU a fused network rounds numbers itself, and a picture's less.
        dtype = torch.float32 if self._takes_bytes and self.device.type == "cpu" else self.dtype
        placed = to_device(images, self.device).to(dtype, memory_format=torch.channels_last)
        return placed / 255 if images.dtype == torch.uint8 else placed

    @_in_own_precision
    def encode_styles(self, images: Tensor, recoloring: ColorMap | None = None) -> Tensor:
        """Return the vectors of styles [N, 3, H, W], uint8 or in 0..1, on the CPU.

        They are float32 [N, 1920], and wider when the model's AdaIN needs other statistics than φ's.

        Args:
            images: on any device; large ones are encoded tile by tile.
            recoloring: of the styles before they are encoded; the result is clamped to 0..1 (§7.3).
        """
        height, width = images.shape[2:]
        found: list[Moments] = []
        for tile in tiles(height, width, ENCODER_HALO, self.pass_pixels):
            outer = tile.grown(ENCODER_HALO, height, width)
            pixels = self._upload(outer.crop(images, Box(0, 0, height, width)))
            if recoloring is not None:
                pixels = recoloring.apply(pixels).clamp(0, 1).to(pixels.dtype)
            layers, strides = self._phi.taps(pixels), TAP_STRIDES
            if self._encoder is not self._phi:
                layers, strides = layers + self._encoder.features(pixels), strides + self._transfer_strides
            here = [
                moments(tile.crop(layer, outer, stride))
                for layer, stride in zip(layers, strides, strict=True)
            ]
            found = merged(found, here)
        corrections = (*(0 for _ in TAP_STRIDES), *self._corrections)
        pairs = zip(found, corrections, strict=False)
        return torch.cat([value for each, less in pairs for value in each.statistics(less)], 1).cpu()

    @_in_own_precision
    def encode_contents(self, images: Tensor, *, metrics: bool = True) -> ContentFeatures:
        """Encode contents [N, 3, H, W], uint8 or in 0..1, once however many styles each will get.

        Of images larger than a pass only the statistics are kept, and the images themselves, where they are.
        """
        height, width = images.shape[2:]
        # The decoded tile must reach so much further that φ sees what it needs; without metrics too, or the
        # pixels would not be the same.
        halo = ENCODER_HALO + self._decoder_halo + ENCODER_HALO
        cut = tiles(height, width, halo, self.pass_pixels)
        content = ContentFeatures(height, width, cut, images, None, (), metrics)
        if len(cut) == 1:
            content = content._replace(images=None, maps=self._maps(content, images, cut[0]))
        (found,) = self._content_statistics(content, Regions(None))
        return content._replace(statistics=tuple(found))

    def _maps(self, content: ContentFeatures, images: Tensor, box: Box) -> tuple[Tensor, ...]:
        """Encode a part of the contents, and give it exactly the features it has in the whole."""
        outer = box.grown(ENCODER_HALO, content.height, content.width)
        pixels = outer.crop(images, Box(0, 0, content.height, content.width))
        takes = self._takes_bytes and pixels.dtype == torch.uint8
        pixels = to_device(pixels, self.device) if takes else self._upload(pixels)
        maps = self._encoder.features(pixels)
        if content.metrics and self._encoder is not self._phi:
            maps = (*maps, self._phi(pixels))
        return tuple(
            box.crop(features, outer, stride)
            for features, stride in zip(maps, self._map_strides(content), strict=True)
        )

    def _map_strides(self, content: ContentFeatures) -> tuple[int, ...]:
        measured = content.metrics and self._encoder is not self._phi
        return (*self._transfer_strides, TAP_STRIDES[-1]) if measured else self._transfer_strides

    def _maps_of(self, content: ContentFeatures, box: Box) -> tuple[Tensor, ...]:
        if content.maps is not None:
            return content.maps  # the only tile is the whole picture
        assert content.images is not None
        return self._maps(content, content.images, box)

    def _content_statistics(self, content: ContentFeatures, regions: Regions) -> list[list[Statistics]]:
        """Return, for each region, μ and σ of each map of the contents."""
        found: list[list[Moments]] = [[] for _ in range(regions.count)]
        for tile in content.tiles:
            here: list[list[Moments]] = [[] for _ in found]
            for features, stride in zip(
                self._maps_of(content, tile), self._map_strides(content), strict=True
            ):
                for region, weights in zip(here, regions.weights(tile, stride, features), strict=True):
                    region.append(moments(features, weights))
            found = [merged(before, more) for before, more in zip(found, here, strict=True)]
        corrections = (*self._corrections, 0)  # φ's own come last
        return [
            [each.statistics(less) for each, less in zip(region, corrections, strict=False)]
            for region in found
        ]

    @_in_own_precision
    def stylize(
        self,
        content: ContentFeatures,
        styles: Tensor,
        alpha: Tensor,
        masks: Tensor | None = None,
        *,
        finish: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> tuple[Tensor, Losses | None]:
        """Stylize one content per style vector.

        Args:
            content: N encoded contents.
            styles: vectors, one per content, as `encode_styles` returns them, [N, width]; with masks one per
                content and region, [N, K, width].
            alpha: content-style trade-off, [N], 0..1.
            masks: uint8 [N, K, H, W], each region's, of the contents' size: 255 is this style here (§7.3).
            finish: what becomes of every piece of the pictures, [N, 3, h, w] clamped to 0..1; a picture larger
                than a pass is collected on the CPU in the type that this returns.

        Returns:
            Images [N, 3, H, W], finished, of exactly the contents' size (the decoder's output is cropped
            at the bottom and right), and their losses, or None when the contents were encoded without metrics.
        """
        if masks is not None and len(content.tiles) == 1:
            masks = to_device(masks, self.device)
        regions = Regions(masks)
        vectors = styles.to(self.device).reshape(len(styles), regions.count, -1).unbind(1)
        alpha = alpha.to(self.device)
        found = [content.statistics] if masks is None else self._content_statistics(content, regions)
        wanted_taps = [unpack(vector[:, :LOSS_WIDTH], CHANNELS) for vector in vectors]
        transfers = [
            [
                adain(own, style, alpha, self._max_gain)
                for own, style in zip(
                    statistics[: len(self._transfer_strides)], self._wanted(vector), strict=True
                )
            ]
            for vector, statistics in zip(vectors, found, strict=True)
        ]
        # Eq. 12's t has no bound, whatever the model's AdaIN has: losses compare models.
        aims = [
            adain(statistics[-1], taps[-1], alpha)
            for taps, statistics in zip(wanted_taps, found, strict=True)
            if content.metrics
        ]
        meter = LossMeter(regions.count)
        picture = None
        for tile in content.tiles:
            shown = tile.grown(ENCODER_HALO, content.height, content.width)  # what φ must see of the result
            needed = shown.grown(self._decoder_halo, content.height, content.width)
            maps = self._maps_of(content, needed)
            targets = [
                mapped(features, over_regions(each, regions.weights(needed, stride, features)), self._decoder)
                for each, features, stride in zip(
                    zip(*transfers, strict=True), maps, self._transfer_strides, strict=False
                )
            ]
            decoded = self._decoder(*targets)
            images = shown.crop(decoded, needed).clamp(0, 1)
            piece = finish(tile.crop(images, shown))
            if len(content.tiles) == 1:
                picture = piece
            else:
                if picture is None:
                    picture = torch.empty(
                        (*piece.shape[:2], content.height, content.width),
                        dtype=piece.dtype,
                        device="cpu",
                        memory_format=torch.channels_last,
                    )
                picture[..., tile.top : tile.bottom, tile.left : tile.right] = piece
            if content.metrics:
                with self._timed("metrics"):
                    taps = self._phi.taps(images)
                    aim = over_regions(aims, regions.weights(needed, STRIDE, maps[-1])).apply(maps[-1])
                    meter.add(
                        [
                            tile.crop(tap, shown, stride)
                            for tap, stride in zip(taps, TAP_STRIDES, strict=True)
                        ],
                        [regions.weights(tile, stride, images) for stride in TAP_STRIDES],
                        tile.crop(aim, needed, STRIDE),
                        tile.crop(maps[-1], needed, STRIDE),
                    )
        assert picture is not None
        return picture, meter.losses(wanted_taps) if content.metrics else None

    def _wanted(self, vector: Tensor) -> list[Statistics]:
        """Return the style's μ and σ for each of the maps AdaIN works on."""
        if self._encoder is self._phi:
            return unpack(vector[:, :LOSS_WIDTH], CHANNELS)[-1:]
        return unpack(vector[:, LOSS_WIDTH:], self._transfer_channels)


def unpack(styles: Tensor, channels: Sequence[int]) -> list[Statistics]:
    """Split vectors [N, width] into the μ and σ of layers with these channels."""
    parts = styles.split([width for width in channels for _ in range(2)], dim=1)
    return [Statistics(mean, std) for mean, std in zip(parts[::2], parts[1::2], strict=True)]


def loss_network(model: Checkpoint) -> Encoder:
    """Return φ: the model's own encoder where it is φ, else the default model's."""
    default = container.builtin_bytes(container.DEFAULT)
    phi = checkpoint.loads(default).encoder
    assert isinstance(phi, Encoder)
    if not isinstance(model.encoder, Encoder):
        return phi
    own, reference = model.encoder.state_dict(), phi.state_dict()
    same = own.keys() == reference.keys() and all(torch.equal(own[key], reference[key]) for key in own)
    return model.encoder if same else phi
