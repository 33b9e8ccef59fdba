"""Masks (paper §7.3, spatial control): gray or colour images of any size, laid over a content of any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from stylize_batch.errors import RowError
from stylize_batch.images.decode import Array, crop_corner, loaded, to_srgb

WHOLE = (0.0, 0.0, 1.0, 1.0)


def visible_part(width: int, height: int, crop: int | None) -> tuple[float, float, float, float]:
    """Return what a centre crop leaves of a picture: left, top, right and bottom as fractions of its sides."""
    if crop is None:
        return WHOLE
    left, top = crop_corner(width, height, crop)
    return left / width, top / height, (left + crop) / width, (top + crop) / height


def decode_mask(
    data: bytes, width: int, height: int, part: tuple[float, float, float, float] = WHOLE
) -> Array:
    """Decode a mask's file, and fit it as `fit_mask` while its pixels count as being decoded.

    Raises:
        RowError: `Undecodable`, `TooLarge` or `OutOfMemory`.
    """
    with loaded(data) as mask:
        return fit_mask(mask, width, height, part)


def fit_mask(
    mask: Image.Image,
    width: int,
    height: int,
    part: tuple[float, float, float, float] = WHOLE,
) -> Array:
    """Return a mask's luminance, uint8 [height, width], averaged over areas where it is larger than that.

    Args:
        mask: any image; transparency is laid over white, as everywhere.
        width: of the content that it covers.
        height: of the content.
        part: of the mask that covers the content, when the content was cropped.
    """
    gray = to_srgb(mask).convert("L")
    left, top, right, bottom = part
    box = (left * gray.width, top * gray.height, right * gray.width, bottom * gray.height)
    return np.asarray(gray.resize((width, height), Image.Resampling.BOX, box=box))


def check_regions(masks: Sequence[Array], styles: int) -> None:
    """Check that every style has some of the picture.

    Raises:
        RowError: `BadMask`, a mask is all black, or white where its complement is meant to be used.
    """
    if not all(mask.any() for mask in masks):
        raise RowError("BadMask", "a mask is black all over the picture; its style would go nowhere")
    if len(masks) < styles and (masks[0] == 255).all():
        raise RowError("BadMask", "the mask is white all over the picture; the second style would go nowhere")


def stack_regions(masks: Sequence[Array], styles: int) -> Array:
    """Return the regions of the styles, uint8 [K, H, W]; one mask for two styles: the mask and its complement."""
    return np.stack([masks[0], 255 - masks[0]] if len(masks) < styles else masks)
