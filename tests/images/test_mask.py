"""Masks: any image, any size, laid over the content where it was before the crop."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TimedOut
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylize_batch.errors import RowError
from stylize_batch.images import decode as decoding
from stylize_batch.images import mask as module
from stylize_batch.images.decode import Array, Budget, decode
from stylize_batch.images.mask import check_regions, decode_mask, fit_mask, stack_regions, visible_part
from tests.images.samples import encoded

HALF = np.repeat([[255] * 8 + [0] * 8], 16, axis=0).astype(np.uint8)


def test_a_larger_mask_is_averaged_over_areas() -> None:
    dots = np.zeros((12, 20), np.uint8)
    dots[::2, ::2] = 255
    assert set(fit_mask(Image.fromarray(dots), 10, 6).flatten()) == {64}
    assert fit_mask(Image.fromarray(HALF), 4, 2).tolist() == [[255, 255, 0, 0]] * 2


def test_a_smaller_mask_is_enlarged_in_place() -> None:
    assert fit_mask(Image.new("L", (1, 1), 200), 5, 3).tolist() == [[200] * 5] * 3
    assert fit_mask(Image.fromarray(HALF), 32, 16)[:, [15, 16]].tolist() == [[255, 0]] * 16


def test_colour_counts_by_its_luminance() -> None:
    assert fit_mask(Image.new("RGB", (3, 3), (255, 0, 0)), 1, 1).tolist() == [[76]]
    assert fit_mask(Image.new("RGB", (3, 3), (0, 255, 0)), 1, 1).tolist() == [[150]]


def test_a_mask_stays_where_it_was_when_the_content_is_cropped() -> None:
    # A crop of 40 out of 80×40 leaves columns 20 to 60: the mask's own middle half.
    part = visible_part(80, 40, 40)
    assert part == (0.25, 0.0, 0.75, 1.0)
    assert visible_part(40, 80, 40) == (0.0, 0.25, 1.0, 0.75)
    assert fit_mask(Image.fromarray(HALF), 4, 2, part).tolist() == [[255, 255, 0, 0]] * 2
    narrow = np.repeat([[0] * 4 + [255] * 4 + [0] * 8], 16, axis=0).astype(np.uint8)
    assert fit_mask(Image.fromarray(narrow), 4, 2, part).tolist() == [[255, 255, 0, 0]] * 2


def test_a_masks_file_is_read_as_any_image() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded(Image.fromarray(HALF).transpose(Image.Transpose.ROTATE_90), exif=turned)
    assert decode_mask(data, 4, 2).tolist() == [[255, 255, 0, 0]] * 2
    clear = Image.new("LA", (8, 8), (0, 0))
    assert decode_mask(encoded(clear), 4, 2).tolist() == [[255] * 4] * 2


def test_a_masks_pixels_count_as_being_decoded_until_it_has_the_contents_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "pixels_at_once", Budget(HALF.size))
    data = encoded(Image.fromarray(HALF))
    other: list[Future[Array]] = []
    with ThreadPoolExecutor(1) as threads:

        def fit(*arguments: Any) -> Array:
            other.append(threads.submit(decode, data))
            with pytest.raises(TimedOut):
                other[0].result(0.2)
            return fit_mask(*arguments)

        monkeypatch.setattr(module, "fit_mask", fit)
        assert decode_mask(data, 4, 2).shape == (2, 4)
        assert other[0].result(30).shape == (16, 16, 3)


def test_one_mask_for_two_styles_is_the_mask_and_its_complement() -> None:
    soft = np.arange(256, dtype=np.uint8).reshape(16, 16)
    regions = stack_regions([soft], 2)
    assert np.array_equal(regions[0], soft)
    assert (regions.astype(int).sum(0) == 255).all()
    assert np.array_equal(stack_regions([soft, HALF], 2)[1], HALF)


@pytest.mark.parametrize(
    ("masks", "styles"),
    [([HALF * 0], 1), ([HALF, HALF * 0], 2), ([HALF * 0], 2), ([np.full_like(HALF, 255)], 2)],
)
def test_a_style_without_a_region_is_refused(masks: list[np.ndarray], styles: int) -> None:
    with pytest.raises(RowError, match="BadMask"):
        check_regions(masks, styles)


def test_a_region_of_one_pixel_is_enough() -> None:
    dot = HALF * 0
    dot[3, 4] = 1
    check_regions([dot], 1)
    check_regions([dot], 2)
