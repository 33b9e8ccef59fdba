"""The whole network on a device: style statistics, stylization T(c, s) = g(t), and the losses of the result."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from stylize_batch.model import checkpoint, container
from stylize_batch.model.adain import Statistics, adain, statistics
from stylize_batch.model.architecture import CHANNELS, transfer_channels
from stylize_batch.model.checkpoint import Checkpoint
from stylize_batch.model.losses import feature_distance, style_loss
from stylize_batch.model.vgg import Encoder

_Module = TypeVar("_Module", bound=torch.nn.Module)

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

LOSS_WIDTH = 2 * sum(CHANNELS)
"""Floats of a style's statistics at φ's four taps: μ and σ of each, 1,920."""


class ContentFeatures(NamedTuple):
    """Encoded contents.

    Attributes:
        transfer: f(c), the feature maps AdaIN works on, each [N, C, h, w]; of a VGG model relu4_1 alone.
        statistics: μ and σ of each.
        loss: φ₄(c); the same tensor as `transfer[-1]` when the model's encoder is φ; None without metrics.
        height: of the images, pixels.
        width: of the images, pixels.
    """

    transfer: tuple[Tensor, ...]
    statistics: tuple[Statistics, ...]
    loss: Tensor | None
    height: int
    width: int

    def select(self, index: Tensor) -> ContentFeatures:
        """Return the features of some samples, repeated or left out as `index` says."""
        transfer = tuple(features[index] for features in self.transfer)
        loss = self.loss
        if loss is not None:
            loss = transfer[-1] if loss is self.transfer[-1] else loss[index]
        found = tuple(Statistics(mean[index], std[index]) for mean, std in self.statistics)
        return ContentFeatures(transfer, found, loss, self.height, self.width)


class Losses(NamedTuple):
    """Losses per image on φ, float32 [N] (DESIGN: measured on the clamped output, before the codec)."""

    content_loss: Tensor
    style_loss: Tensor
    content_distance: Tensor


class Network:
    """Encoder, decoder and loss network φ on one device in one precision; statistics are always float32.

    A style is one float32 vector: μ and σ of φ's taps (`LOSS_WIDTH` floats), followed by μ and σ of the
    features the model's AdaIN works on when its encoder is not φ or its variance not the biased one. Vectors
    blend linearly (Eq. 15).
    """

    def __init__(self, model: Checkpoint, device: str = "cpu", precision: str = "fp32") -> None:
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        if self.device.type == "cuda" and precision == "fp32":
            # Otherwise cuDNN rounds float32 convolutions to 10 bits (TF32).
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # pyright: ignore
        phi = loss_network(model)
        # Of AdaIN's variance; losses always take the biased one, so a style needs both statistics then.
        self._correction = int(model.metadata.get("variance") == container.UNBIASED)
        own = phi is model.encoder and not self._correction
        self._phi = self._place(phi)
        self._encoder = self._phi if own else self._place(model.encoder)
        self._transfer_channels = () if own else transfer_channels(model.encoder.architecture)
        self._decoder = self._place(model.decoder)

    def _place(self, module: _Module) -> _Module:
        # A copy: `to` would change the caller's own module.
        return copy.deepcopy(module).to(self.device, self.dtype, memory_format=torch.channels_last)  # pyright: ignore

    def upload(self, images: Tensor) -> Tensor:
        """Move uint8 images [N, H, W, 3] to the device as [N, 3, H, W] in 0..1, channels last."""
        return images.to(self.device).permute(0, 3, 1, 2).to(self.dtype) / 255

    @torch.inference_mode()
    def encode_styles(self, images: Tensor) -> Tensor:
        """Return the vectors of styles [N, 3, H, W] in 0..1, on the CPU.

        They are float32 [N, 1920], and wider when the model's AdaIN needs other statistics than φ's.
        """
        found = [statistics(tap) for tap in self._phi.taps(images)]
        if self._encoder is not self._phi:
            found += [statistics(features, self._correction) for features in self._encoder.features(images)]
        return torch.cat([value for pair in found for value in pair], 1).cpu()

    @torch.inference_mode()
    def encode_contents(self, images: Tensor, *, metrics: bool = True) -> ContentFeatures:
        """Encode contents [N, 3, H, W] in 0..1, once however many styles each will get."""
        transfer = self._encoder.features(images)
        loss = None
        if metrics:
            loss = transfer[-1] if self._encoder is self._phi else self._phi(images)
        height, width = images.shape[2:]
        found = tuple(statistics(features, self._correction) for features in transfer)
        return ContentFeatures(transfer, found, loss, height, width)

    @torch.inference_mode()
    def stylize(
        self, content: ContentFeatures, styles: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Losses | None]:
        """Stylize one content per style vector.

        Args:
            content: N encoded contents.
            styles: vectors, one per content, as `encode_styles` returns them.
            alpha: content-style trade-off, [N], 0..1.

        Returns:
            Images [N, 3, H, W] clamped to 0..1, of exactly the contents' size (the decoder's output is cropped
            at the bottom and right), and their losses, or None when the contents carry no φ features.
        """
        style = styles.to(self.device)
        alpha = alpha.to(self.device)
        taps_wanted = unpack(style[:, :LOSS_WIDTH], CHANNELS)
        wanted = unpack(style[:, LOSS_WIDTH:], self._transfer_channels) or taps_wanted[-1:]
        targets = [
            adain(found, to, alpha).apply(features)
            for features, found, to in zip(content.transfer, content.statistics, wanted, strict=True)
        ]
        images = self._decoder(*targets)[:, :, : content.height, : content.width].clamp(0, 1)
        if content.loss is None:
            return images, None
        target = targets[-1]
        if content.loss is not content.transfer[-1]:
            target = adain(statistics(content.loss), taps_wanted[-1], alpha).apply(content.loss)
        taps = self._phi.taps(images)
        return images, Losses(
            feature_distance(taps[-1], target),
            style_loss(taps, taps_wanted),
            feature_distance(taps[-1], content.loss),
        )


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
