"""The whole network on a device: style statistics, stylization T(c, s) = g(t), and the losses of the result."""

from __future__ import annotations

import copy
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from stylize_batch.model import checkpoint, container
from stylize_batch.model.adain import Statistics, adain, statistics
from stylize_batch.model.architecture import CHANNELS
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
        transfer: f(c), [N, 512, h, w], what AdaIN works on.
        statistics: μ and σ of `transfer`.
        loss: φ₄(c); the same tensor as `transfer` when the model's encoder is φ; None without metrics.
        height: of the images, pixels.
        width: of the images, pixels.
    """

    transfer: Tensor
    statistics: Statistics
    loss: Tensor | None
    height: int
    width: int

    def select(self, index: Tensor) -> ContentFeatures:
        """Return the features of some samples, repeated or left out as `index` says."""
        loss = self.loss
        transfer = self.transfer[index]
        if loss is not None:
            loss = transfer if loss is self.transfer else loss[index]
        return ContentFeatures(
            transfer, Statistics(*(value[index] for value in self.statistics)), loss, self.height, self.width
        )


class Losses(NamedTuple):
    """Losses per image on φ, float32 [N] (DESIGN: measured on the clamped output, before the codec)."""

    content_loss: Tensor
    style_loss: Tensor
    content_distance: Tensor


class Network:
    """Encoder, decoder and loss network φ on one device in one precision; statistics are always float32.

    A style is one float32 vector: μ and σ of φ's taps (`LOSS_WIDTH` floats), followed by μ and σ of the
    model's own relu4_1 when its encoder is not φ. Vectors blend linearly (Eq. 15).
    """

    def __init__(self, model: Checkpoint, device: str = "cpu", precision: str = "fp32") -> None:
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        if self.device.type == "cuda" and precision == "fp32":
            # Otherwise cuDNN rounds float32 convolutions to 10 bits (TF32).
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # pyright: ignore
        self._encoder = self._place(model.encoder)
        self._decoder = self._place(model.decoder)
        phi = loss_network(model)
        self._phi = self._encoder if phi is model.encoder else self._place(phi)

    def _place(self, module: _Module) -> _Module:
        # A copy: `to` would change the caller's own module.
        return copy.deepcopy(module).to(self.device, self.dtype, memory_format=torch.channels_last)  # pyright: ignore

    def upload(self, images: Tensor) -> Tensor:
        """Move uint8 images [N, H, W, 3] to the device as [N, 3, H, W] in 0..1, channels last."""
        return images.to(self.device).permute(0, 3, 1, 2).to(self.dtype) / 255

    @torch.inference_mode()
    def encode_styles(self, images: Tensor) -> Tensor:
        """Return the vectors of styles [N, 3, H, W] in 0..1, on the CPU.

        They are float32 [N, 1920], or [N, 2944] when the model's encoder is not φ.
        """
        found = [statistics(tap) for tap in self._phi.taps(images)]
        if self._encoder is not self._phi:
            found.append(statistics(self._encoder(images)))
        return torch.cat([value for pair in found for value in pair], 1).cpu()

    @torch.inference_mode()
    def encode_contents(self, images: Tensor, *, metrics: bool = True) -> ContentFeatures:
        """Encode contents [N, 3, H, W] in 0..1, once however many styles each will get."""
        transfer = self._encoder(images)
        loss = None
        if metrics:
            loss = transfer if self._encoder is self._phi else self._phi(images)
        height, width = images.shape[2:]
        return ContentFeatures(transfer, statistics(transfer), loss, height, width)

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
        layers = unpack(styles.to(self.device))
        alpha = alpha.to(self.device)
        target = adain(content.statistics, layers[-1], alpha).apply(content.transfer)
        images = self._decoder(target)[:, :, : content.height, : content.width].clamp(0, 1)
        if content.loss is None:
            return images, None
        if content.loss is not content.transfer:
            target = adain(statistics(content.loss), layers[len(CHANNELS) - 1], alpha).apply(content.loss)
        taps = self._phi.taps(images)
        return images, Losses(
            feature_distance(taps[-1], target),
            style_loss(taps, layers[: len(CHANNELS)]),
            feature_distance(taps[-1], content.loss),
        )


def unpack(styles: Tensor) -> list[Statistics]:
    """Split style vectors [N, width] into the statistics of φ's taps and, if there, of the model's relu4_1."""
    widths = list(CHANNELS)
    if styles.shape[1] > LOSS_WIDTH:
        widths.append(CHANNELS[-1])
    parts = styles.split([width for width in widths for _ in range(2)], dim=1)
    return [Statistics(mean, std) for mean, std in zip(parts[::2], parts[1::2], strict=True)]


def loss_network(model: Checkpoint) -> Encoder:
    """Return φ: the model's own encoder where it is φ, else the default model's."""
    default = container.builtin_bytes(container.DEFAULT)
    if model.digest == container.digest(default):
        return model.encoder
    phi = checkpoint.loads(default).encoder
    own, reference = model.encoder.state_dict(), phi.state_dict()
    same = own.keys() == reference.keys() and all(torch.equal(own[key], reference[key]) for key in own)
    return model.encoder if same else phi
