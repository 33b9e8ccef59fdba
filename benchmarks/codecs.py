"""What decoding and encoding pictures costs on one core, and its share of a picture's time.

    python benchmarks/codecs.py [--quick]

The share is that of one core's seconds in those of decoding, network and encoding: a content is decoded once however
many styles it gets, and both happen beside the network, on other threads.
"""

from __future__ import annotations

import io

import torch
from harness import SAMPLE, Page, best, options
from PIL import Image

from stylize_batch.images.decode import decode
from stylize_batch.images.encode import Format, encode
from stylize_batch.model import checkpoint, container
from stylize_batch.model.network import Network

SOURCES = {"683 × 512": None, "4000 × 3000": (4000, 3000)}
"""Sizes of photographs, pixels: the sample's own, and a camera's of 12 megapixels."""

SIZES = (256, 512, 1024)
FORMATS: tuple[Format, ...] = ("jpeg", "png", "webp")
QUALITY = 95


def photograph(size: tuple[int, int] | None) -> Image.Image:
    """Return a sample photograph, enlarged or not."""
    with Image.open(SAMPLE / "content" / "cat.jpg") as image:
        return image.convert("RGB") if size is None else image.resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, format: Format) -> bytes:
    """Return the file that a camera or a program would have written."""
    buffer = io.BytesIO()
    image.save(buffer, format, quality=90)
    return buffer.getvalue()


def network_seconds(size: int) -> dict[str, float]:
    """Return a picture's seconds on one core in each network: one style, no losses."""
    images = torch.randint(256, (1, 3, size, size * 4 // 3), dtype=torch.uint8)
    found: dict[str, float] = {}
    for name in container.BUILTIN:
        network = Network(checkpoint.loads(container.builtin_bytes(name)))
        style = network.encode_styles(images[..., :64, :64])

        def make(network: Network = network, style: torch.Tensor = style) -> None:
            network.stylize(network.encode_contents(images, metrics=False), style, torch.ones(1))

        found[name] = best(make, passes=3)
    return found


def main() -> None:
    """Write the page."""
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    sizes = (64,) if given.quick else SIZES
    with Page("Codecs", given) as page:
        networks = {size: network_seconds(size) for size in sizes}
        page.say(
            "All on one core, best of several passes, contents of 4 : 3. A share is codec ÷ (codec + network), with the "
            "network on one core as well, one style for each content, and no losses."
        )
        columns = ("ms", "pictures/s", "share with `adain-vgg16`", "share with `adain-compact`")

        def cells(seconds: float, size: int) -> list[str]:
            shares = (f"{seconds / (seconds + other):.1%}" for other in networks[size].values())
            return [f"{seconds * 1e3:.1f}", f"{1 / seconds:,.0f}", *shares]

        page.say("## Decoding, and resizing to a shorter side of")
        page.table("photograph", "format", "KB", "shorter side", *columns)
        for name, source in SOURCES.items():
            image = photograph(source)
            for format in FORMATS:
                data = saved(image, format)
                for size in sizes:
                    took = best(lambda: decode(data, size=size))  # noqa: B023 (called at once)
                    page.row(name, format, f"{len(data) / 1e3:,.0f}", size, *cells(took, size))
        page.end_table()

        page.say(f"## Encoding (JPEG and WebP at quality {QUALITY})")
        page.table("shorter side", "format", "KB", *columns)
        for size in sizes:
            pixels = decode(saved(photograph(None), "png"), size=size)
            for format in FORMATS:
                took = best(encode, pixels, format, QUALITY)
                length = len(encode(pixels, format, QUALITY))
                page.row(size, format, f"{length / 1e3:,.0f}", *cells(took, size))
        page.end_table()


if __name__ == "__main__":
    main()
