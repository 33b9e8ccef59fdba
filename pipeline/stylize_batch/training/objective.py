"""What training minimises: pixel reconstruction, and the paper's L_c + λ·L_s on φ (Eq. 11-13)."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylize_batch.model.adain import Statistics, adain, statistics
from stylize_batch.model.checkpoint import AnyDecoder, AnyEncoder
from stylize_batch.model.losses import feature_distance, style_loss
from stylize_batch.model.quick import quicken
from stylize_batch.model.vgg import Encoder

Features = tuple[Tensor, ...]


class Transfer(nn.Module):
    """Decoder ∘ AdaIN: pictures from the features of contents and of styles.

    An ablation replaces it: whatever module has an encoder, a decoder and this call can be trained.
    """

    def __init__(
        self, encoder: AnyEncoder, decoder: AnyDecoder | nn.Module, max_gain: float = math.inf
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.max_gain = max_gain

    def forward(self, contents: Features, styles: Features) -> Tensor:
        """Return pictures [N, 3, H, W] around 0..1 for features as `encoder.features` returns them."""
        pairs = zip(contents, styles, strict=True)
        return self.decoder(
            *(
                adain(statistics(found), statistics(wanted), max_gain=self.max_gain).apply(found)
                for found, wanted in pairs
            )
        )


class StyleTransfer(NamedTuple):
    """A batch's pictures [N, 3, H, W], and L_c (Eq. 12) and L_s (Eq. 13), each the mean over the batch."""

    images: Tensor
    content_loss: Tensor
    style_loss: Tensor


class Objective(nn.Module):
    """The losses of a network on the loss network φ, which is the network's own encoder in a VGG model."""

    def __init__(self, phi: Encoder, transfer: Transfer, quick_targets: torch.dtype | None = None) -> None:
        """Take φ and a network; the type is that in which φ computes targets as in inference, None the one it has."""
        super().__init__()
        self.phi = phi
        self.transfer = transfer
        # Targets need no gradient, so φ may compute them with convolutions rewritten for inference.
        self._phi_of_targets = phi
        if quick_targets is not None:
            self._phi_of_targets = deepcopy(phi)
            quicken(self._phi_of_targets, quick_targets)

    def reconstruction(self, images: Tensor) -> Tensor:
        """Return the pixel MSE of pictures made in their own style."""
        features = self._features(images)
        return F.mse_loss(self.transfer(features, features).float(), images)

    def style_transfer(self, contents: Tensor, styles: Tensor) -> StyleTransfer:
        """Return what the network makes of contents and styles, [N, 3, H, W] in 0..1, and its losses."""
        with torch.no_grad():
            content = self._phi_of_targets(contents).float()
            taps = self._phi_of_targets.taps(styles)
            targets: list[Statistics] = [statistics(tap) for tap in taps]
            transfer = adain(statistics(content), targets[-1], max_gain=self.transfer.max_gain)
            target = transfer.apply(content)
        if self.transfer.encoder is self.phi:
            images = self.transfer((content,), (taps[-1],))
        else:
            images = self.transfer(self._features(contents), self._features(styles))
        images = images[:, :, : contents.shape[2], : contents.shape[3]]
        taps = self.phi.taps(images)
        return StyleTransfer(
            images, feature_distance(taps[-1], target).mean(), style_loss(taps, targets).mean()
        )

    def stylize(self, contents: Tensor, styles: Tensor) -> Tensor:
        """Return pictures alone."""
        return self.transfer(self._features(contents), self._features(styles))

    def _features(self, images: Tensor) -> Features:
        return self.transfer.encoder.features(images)
