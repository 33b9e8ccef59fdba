"""Stylize tensors or PIL images directly, without manifests or Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylize_batch.errors import UsageError
from stylize_batch.images.decode import to_srgb
from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import MIN_SIDE
from stylize_batch.model.network import Network
from stylize_batch.settings import Precision
from stylize_batch.weights import read_model

Picture = Tensor | Image.Image
_Picture = TypeVar("_Picture", Tensor, Image.Image)


class Stylizer:
    """A model ready to use: `Stylizer()(content, style, alpha=0.8)`."""

    def __init__(
        self, model: str = container.DEFAULT, *, device: str = "cpu", precision: Precision = "fp32"
    ) -> None:
        """Load a model by name, path or URI.

        Raises:
            UsageError: there is no such model.
        """
        self._network = Network(checkpoint.loads(read_model(model)), device, precision)

    def __call__(
        self,
        content: _Picture,
        style: Picture | Sequence[Picture],
        *,
        alpha: float = 1.0,
        weights: Sequence[float] | None = None,
    ) -> _Picture:
        """Return the content in the style, of the content's size and type.

        Args:
            content: a PIL image, or a float tensor [3, H, W] or [N, 3, H, W], RGB in 0..1.
            style: one image or tensor [3, H, W], or several to interpolate between (Eq. 15).
            alpha: content-style trade-off (Eq. 14), 0..1.
            weights: one per style, ≥ 0, normalised to sum 1; equal by default.

        Raises:
            UsageError: a tensor is no image, a side is under 9 pixels, or alpha or the weights are out of range.
        """
        styles = [style] if isinstance(style, Tensor | Image.Image) else list(style)
        shares = np.full(len(styles), 1.0) if weights is None else np.asarray(weights, np.float64)
        if shares.shape != (len(styles),) or not (
            np.isfinite(shares).all() and (shares >= 0).all() and shares.sum()
        ):
            raise UsageError("weights must be one number ≥ 0 per style, with a sum above 0")
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha is {alpha}, it must be between 0 and 1")
        vectors = torch.cat([self._encode_style(picture) for picture in styles])
        blended = torch.from_numpy(shares / shares.sum()).float() @ vectors
        images = self._batch(content)
        count = len(images)
        features = self._network.encode_contents(images, metrics=False)
        output, _ = self._network.stylize(
            features, blended.expand(count, -1), torch.full((count,), float(alpha))
        )
        if isinstance(content, Image.Image):
            pixels = (output[0].float() * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            return Image.fromarray(pixels)
        # A clone made here is an ordinary tensor, which a training step may use.
        return output.clone().to(content.device, content.dtype).reshape(content.shape)

    def _batch(self, picture: Picture) -> Tensor:
        if isinstance(picture, Image.Image):
            images = self._network.upload(torch.from_numpy(np.array(to_srgb(picture)))[None])
        else:
            if picture.ndim not in (3, 4) or picture.shape[-3] != 3 or not picture.is_floating_point():
                raise UsageError(
                    f"images are floating-point tensors [3, H, W] or [N, 3, H, W] in 0..1, not "
                    f"{picture.dtype} {list(picture.shape)}"
                )
            images = picture.reshape(-1, *picture.shape[-3:]).to(self._network.device, self._network.dtype)
        if min(images.shape[-2:]) < MIN_SIDE:
            raise UsageError(f"images need at least {MIN_SIDE} pixels on each side")
        return images

    def _encode_style(self, picture: Picture) -> Tensor:
        images = self._batch(picture)
        if len(images) != 1:
            raise UsageError("a style is one image; give several as a list")
        return self._network.encode_styles(images)
