"""Stylize tensors or PIL images directly, without manifests or Ray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylize_batch.errors import RowError, UsageError
from stylize_batch.images.decode import to_srgb
from stylize_batch.images.mask import check_regions, fit_mask, stack_regions
from stylize_batch.manifest.schema import check_masks
from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import MIN_SIDE
from stylize_batch.model.color import colors, recoloring
from stylize_batch.model.device import images_at_once, usable_device
from stylize_batch.model.network import Network
from stylize_batch.model.pixels import to_array
from stylize_batch.settings import Precision
from stylize_batch.weights import read_model

Picture = Tensor | Image.Image
_Picture = TypeVar("_Picture", Tensor, Image.Image)

ALREADY_NORMALISED = 0.5
"""How far from 0..1 no resizing or jittering leads, but normalising does."""


class Stylizer:
    """A model ready to use: `Stylizer()(content, style, alpha=0.8)`. It can be copied, and sent to spawned processes."""

    def __init__(
        self,
        model: str = container.DEFAULT,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        """Load a model by name, path or URI.

        Args:
            model: a shipped model's name, or the path or URI of a model file.
            device: `auto`, `cpu` or `cuda`, or one of several GPUs: `cuda:1`.
            precision: of the network. `fp32` on a GPU turns TF32 off for all convolutions of the process.

        Raises:
            UsageError: there is no such model or precision, or torch cannot use the device.
        """
        if precision not in get_args(Precision):
            raise UsageError(f"precision is {precision!r}; use one of {', '.join(get_args(Precision))}")
        self.__setstate__((read_model(model), usable_device(device), precision))

    def __getstate__(self) -> tuple[bytes, torch.device, Precision]:
        return self._made_of

    def __setstate__(self, made_of: tuple[bytes, torch.device, Precision]) -> None:
        self._made_of = made_of  # what is compiled of it cannot be copied
        model, device, precision = made_of
        self._network = Network(checkpoint.loads(model), device, precision)

    def __call__(
        self,
        content: _Picture,
        style: Picture | Sequence[Picture],
        *,
        alpha: float = 1.0,
        weights: Sequence[float] | None = None,
        preserve_color: bool = False,
        mask: Picture | Sequence[Picture] | None = None,
    ) -> _Picture:
        """Return the content in the style, of the content's size and type.

        A batch goes through the network in parts of 2 megapixels.

        Args:
            content: a PIL image, or a float tensor [3, H, W] or [N, 3, H, W], RGB in 0..1.
            style: one image or tensor [3, H, W], or several to interpolate between (Eq. 15).
            alpha: content-style trade-off (Eq. 14), 0..1.
            weights: one per style, ≥ 0, normalised to sum 1; equal by default.
            preserve_color: re-colour the styles to each content's colours first (§7.3).
            mask: where each style goes (§7.3): one mask per style, white is this style here; for two styles one
                is enough, the other is its complement. PIL images or tensors [H, W] in 0..1, of any size.

        Raises:
            UsageError: a picture is neither image nor tensor, a tensor is no image or not in 0..1, a side is under 9
                pixels, alpha or the weights are out of range, the masks do not fit the styles, one is black all over,
                or the precision does not do for the picture.
        """
        styles = _several(style)
        if not styles:
            raise UsageError("give at least one style")
        shares = _shares([1.0] * len(styles) if weights is None else weights, len(styles))
        check_fraction("alpha", alpha)
        images = self._batch(content)
        masks = None if mask is None else self._regions(mask, weights, len(styles), images)
        encoded = [self._style(picture) for picture in styles]
        if preserve_color:
            vectors = [self._recolored(encoded, image) for image in images]
        else:
            plain = torch.cat([self._network.encode_styles(style) for style in encoded])
            vectors = [plain] * len(images)
        per_content = torch.stack(vectors)  # [N, K, width]
        if masks is None:
            # A product of matrices would be rounded under the caller's autocast.
            per_content = (shares[:, None] * per_content).sum(1)
        strength = per_content.new_full((len(images),), float(alpha))

        def stylized(some: slice) -> Tensor:
            features = self._network.encode_contents(images[some], metrics=False)
            regions = None if masks is None else masks[some]
            output, _ = self._network.stylize(features, per_content[some], strength[some], regions)
            if output.isnan().any():
                raise UsageError("the network's output is not finite; use precision='fp32'")
            return output

        if isinstance(content, Image.Image):
            (output,) = stylized(slice(1))
            return Image.fromarray(to_array(output))
        # An ordinary tensor, which a training step may use: the network's are for inference.
        made = torch.empty(images.shape, dtype=content.dtype, device=content.device)
        step = images_at_once(images)
        for start in range(0, len(images), step):
            made[start : start + step] = stylized(slice(start, start + step))
        return made.reshape(content.shape)

    def _batch(self, picture: Picture) -> Tensor:
        _check_picture(picture)
        if isinstance(picture, Image.Image):
            check_sides(picture.size)
            try:
                pixels = np.array(to_srgb(picture))
            except ValueError as error:
                raise UsageError(f"the image cannot be used: {error}") from None
            return self._network.upload(torch.from_numpy(pixels)[None])
        fits = picture.ndim in (3, 4) and picture.shape[-3] == 3 and len(picture)
        if not fits or not picture.is_floating_point():
            raise UsageError(
                f"images are floating-point tensors [3, H, W] or [N, 3, H, W] in 0..1, not "
                f"{picture.dtype} {list(picture.shape)}"
            )
        check_sides(picture.shape[-2:])
        images = within_range(picture).reshape(-1, *picture.shape[-3:])
        return images.to(self._network.device, self._network.dtype)

    def _style(self, picture: Picture) -> Tensor:
        images = self._batch(picture)
        if len(images) != 1:
            raise UsageError("a style is one image; give several as a list")
        return images

    def _recolored(self, styles: Sequence[Tensor], content: Tensor) -> Tensor:
        wanted = colors(content)
        maps = [recoloring(colors(style[0]), wanted) for style in styles]
        vectors = [self._network.encode_styles(*each) for each in zip(styles, maps, strict=True)]
        return torch.cat(vectors)

    def _regions(
        self, mask: Picture | Sequence[Picture], weights: Sequence[float] | None, styles: int, images: Tensor
    ) -> Tensor:
        given = [_mask(each) for each in _several(mask)]
        check_masks(len(given), styles, weighted=weights is not None)
        height, width = images.shape[-2:]
        try:
            fitted = [fit_mask(each, width, height) for each in given]
            check_regions(fitted, styles)
        except RowError as error:
            raise UsageError(error.message) from None
        except ValueError as error:
            raise UsageError(f"a mask cannot be used: {error}") from None
        return torch.from_numpy(stack_regions(fitted, styles)).expand(len(images), -1, -1, -1)


def check_fraction(name: str, value: float) -> None:
    """Raise UsageError for what is no number of 0..1."""
    try:
        sound = bool(0 <= value <= 1)
    except (TypeError, ValueError, RuntimeError):  # the last two: of many numbers
        sound = False
    if not sound:
        raise UsageError(f"{name} is {value}, it must be between 0 and 1")


def check_sides(sides: Iterable[int]) -> None:
    """Raise UsageError for an image with a side too short for the network."""
    if min(sides) < MIN_SIDE:
        raise UsageError(f"images need at least {MIN_SIDE} pixels on each side, not {min(sides)}")


def within_range(images: Tensor) -> Tensor:
    """Return floating-point images or masks, at least one pixel, with what is a little outside of 0..1 clamped.

    Raises:
        UsageError: a value is far outside, or is not a number.
    """
    low, high = images.aminmax()
    if not (low >= -ALREADY_NORMALISED and high <= 1 + ALREADY_NORMALISED):
        raise UsageError(
            "floating-point images and masks must be in 0..1: divide those of 0..255 by 255, and stylize before Normalize"
        )
    return images.clamp(0, 1)


def _several(given: Picture | Sequence[Picture]) -> list[Picture]:
    return [given] if isinstance(given, Tensor) or not isinstance(given, Iterable) else list(given)


def _check_picture(picture: Picture) -> None:
    if not isinstance(picture, Tensor | Image.Image):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"pictures are PIL images or tensors, not {type(picture).__name__}; Image.open opens a file, "
            "Image.fromarray takes an array"
        )


def _shares(weights: Sequence[float], styles: int) -> Tensor:
    """Return each style's share, with sum 1, [K]."""
    try:
        shares = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        shares = np.empty(0)
    if shares.shape != (styles,) or not ((shares >= 0).all() and 0 < sum(shares.tolist()) < np.inf):
        raise UsageError("weights must be one number ≥ 0 per style, with a finite sum above 0")
    return torch.from_numpy(shares / shares.sum()).float()


def _mask(mask: Picture) -> Image.Image:
    _check_picture(mask)
    if isinstance(mask, Image.Image):
        return mask
    if mask.ndim != 2 or not mask.numel() or not mask.is_floating_point():
        raise UsageError(
            f"masks are floating-point tensors [H, W] in 0..1, not {mask.dtype} {list(mask.shape)}"
        )
    return Image.fromarray((within_range(mask) * 255).round().byte().cpu().numpy())
