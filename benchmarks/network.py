"""The stylize stage alone, on random pictures: what its convolutions cost, and what is left of the machine's speed.

    python benchmarks/network.py [--device cuda] [--model compact] [--sizes 256 512 mixed] [--quick]

Arithmetic is that of the network as it was trained: rates above what plain convolutions of the same shapes reach are
multiplications saved.
"""

from __future__ import annotations

import argparse
import copy
import functools
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar, cast
from unittest.mock import patch

import torch
from harness import PASSES, Page, best, card, options
from torch import Tensor, nn

from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import Architecture
from stylize_batch.model.convolution import EnlargingConv2d
from stylize_batch.model.device import to_host
from stylize_batch.model.network import DTYPES, loss_network
from stylize_batch.model.pixels import to_bytes
from stylize_batch.model.quick import quicken
from stylize_batch.settings import Device, Precision, WorkerSettings
from stylize_batch.stage import StylizeStage
from stylize_batch.stopwatch import Stopwatch

MIXED = ((256, 341), (341, 256), (256, 384), (384, 256), (256, 256))
"""Height and width of what COCO's and the like become with a shorter side of 256."""

STYLE_SIZE = 512

BF16_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}
"""Peak of cards by words of their names, without sparsity, as their makers state it."""

TABLE_1 = {256: "0.018 (0.027)", 512: "0.065 (0.098)"}
"""The paper's own row of its Tab. 1: seconds, in parentheses with style encoding; one Titan X (Pascal)."""

Shape = tuple[int, int]

_Module = TypeVar("_Module", bound=nn.Module)


class Conv(NamedTuple):
    """A convolution at work.

    Attributes:
        channels: in and out.
        kernel: its side.
        stride: of its places.
        height: of its input, padded.
        width: of its input, padded.
        flop: two for each multiplication, of one picture.
    """

    channels: tuple[int, int]
    kernel: int
    stride: int
    height: int
    width: int
    flop: float


class Stage:
    """The worker's own stage: a model on a device, its lanes and batches; and what the model's parts cost as trained."""

    def __init__(
        self,
        name: str,
        device: Device,
        precision: Precision,
        *,
        all_cores: bool = False,
        give_memory_back: bool = False,
    ) -> None:
        """Load the model.

        Args:
            name: a shipped model, or an architecture.
            device: `cpu` or `cuda`.
            precision: a key of `DTYPES`.
            all_cores: on a CPU, one picture after the other on all cores, as the worker does only with large ones.
            give_memory_back: on a CPU, have the C library treat feature maps' memory as it does without a worker.
        """
        data = container.builtin_bytes(name) if name in container.BUILTIN else random_model(name)
        settings = WorkerSettings(
            root="", run="", base="", model=name, size=None, crop=None, style_size=STYLE_SIZE, format="jpeg", quality=95,
            layout="files", metrics=True, batch_size=None, device=device, precision=precision,
        )  # fmt: skip
        with patch("stylize_batch.stage.keep_freed_memory") if give_memory_back else nullcontext():
            self._worker = StylizeStage(settings, data, Stopwatch())
        self.model = checkpoint.loads(data)
        self.device, self.precision = device, precision
        self.network = self._worker._network  # pyright: ignore[reportPrivateUsage]
        self.phi = loss_network(self.model)
        self.form: dict[str, Any] = {
            "device": device, "dtype": DTYPES[precision], "memory_format": torch.channels_last,
        }  # fmt: skip
        self._known: dict[tuple[Conv, int, int], float] = {}

        self.lanes = self._worker.lanes()
        self.at_once = self.lanes.count
        """Units of work that keep all lanes of the worker busy."""
        self._all_cores = all_cores and device == "cpu"
        if self._all_cores:
            self.arrangement = "one after the other, each on all cores"
        elif device == "cpu":
            self.arrangement = "side by side on cores of their own, as the worker has them"
        else:
            self.arrangement = f"in {self.lanes.count} streams, as the worker has them"

    def sync(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, pixels: int, call: Callable[[], object], passes: int = PASSES) -> float:
        """Return the seconds from one call to the next, as many side by side as the worker would run."""
        if self._all_cores:
            pixels = self.lanes.pass_pixels

        def unit() -> list[object]:
            with torch.inference_mode():
                return [call()]

        def fill() -> None:
            for future in [self.lanes.submit(pixels, unit) for _ in range(self.at_once)]:
                future.result()
            self.sync()

        return best(fill, passes=passes) / self.at_once

    def batch(self, shape: Shape) -> int:
        """Return how many pictures the worker takes at once."""
        return self._worker.batch_size(shape)

    def run(self, contents: Tensor, styles: Tensor, metrics: bool) -> None:
        """Encode contents once and stylize each with all styles, a batch at a time: bytes in, bytes out."""
        features = self.network.encode_contents(contents, metrics=metrics)
        each = torch.arange(len(contents) * len(styles))
        height, width = contents.shape[2:]
        for part in each.split(self.batch((height, width))):
            _, losses = self.network.stylize(
                features.select((part // len(styles)).to(self.device)), styles[part % len(styles)],
                torch.ones(len(part)),
                finish=to_pixels,
            )  # fmt: skip
            if losses is not None:
                torch.stack(losses, 1).tolist()

    def plan(self, shape: Shape, per_content: int, metrics: bool) -> list[tuple[float, Conv]]:
        """List what one picture takes, as trained: how often, and which convolution."""
        images = torch.empty(1, 3, *shape, device="meta")
        encoder, decoder, phi = on_meta(self.model.encoder), on_meta(self.model.decoder), on_meta(self.phi)
        maps = encoder.features(images)
        losses = convolutions(phi, images) if metrics else []
        content = convolutions(encoder, images) + (losses if self.phi is not self.model.encoder else [])
        return [
            *((1 / per_content, conv) for conv in content),
            *((1.0, conv) for conv in convolutions(decoder, *maps) + losses),
        ]

    def plain(self, plan: list[tuple[float, Conv]], shape: Shape, batch: int) -> float:
        """Return the seconds of plain convolutions of the same shapes, for one picture of a batch."""
        return sum(often * self._plain(conv, shape[0] * shape[1], batch) for often, conv in plan)

    def _plain(self, conv: Conv, pixels: int, batch: int) -> float:
        key = (conv, pixels, batch)
        if key not in self._known:
            layer = nn.Conv2d(*conv.channels, conv.kernel, conv.stride).to(**self.form)
            given = torch.rand(batch, conv.channels[0], conv.height, conv.width).to(**self.form)
            self._known[key] = self.seconds(pixels * batch, lambda: layer(given), passes=3) / batch
        return self._known[key]


def random_model(architecture: str) -> bytes:
    """Return a model file with random weights: it is as fast as a trained one."""
    torch.manual_seed(0)
    encoder, decoder = checkpoint.build(cast("Architecture", architecture))
    return checkpoint.dumps(encoder, decoder, {"name": architecture})


def on_meta(network: _Module) -> _Module:
    """Return a copy of a network that knows shapes alone."""
    return copy.deepcopy(network).to("meta")


def convolutions(network: nn.Module, *given: Tensor) -> list[Conv]:
    """Run a network on the meta device; list the convolutions it did."""
    found: list[Conv] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        kernel, stride = layer.kernel_size[0], layer.stride[0]
        scale = 2 if isinstance(layer, EnlargingConv2d) else 1
        height, width = (scale * -(-side // stride) for side in given[0].shape[2:])
        flop = 2 * layer.weight.numel() * height * width
        padded_height, padded_width = (stride * (side - 1) + kernel for side in (height, width))
        channels = (layer.in_channels, layer.out_channels)
        found.append(Conv(channels, kernel, stride, padded_height, padded_width, flop))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(note)
    features = getattr(network, "features", network)
    features(*given)
    return found


def to_pixels(images: Tensor) -> Tensor:
    """Return pictures as bytes on the CPU, after a look for NaN: what the worker does with them."""
    pixels, _ = to_host(*to_bytes(images))
    return pixels


def random_pictures(count: int, shape: Shape) -> Tensor:
    """Return uint8 [N, 3, H, W], channels last."""
    pictures = torch.randint(256, (count, 3, *shape), dtype=torch.uint8)
    return pictures.contiguous(memory_format=torch.channels_last)


def write_halves(page: Page, stage: Stage, sizes: list[int], passes: int) -> None:
    """Table of encoder and decoder, as trained and as rewritten for inference."""
    page.say(
        "## The convolutions, as trained and as rewritten for inference\n\n"
        f"Pictures of size × size, in batches of the worker's size, {stage.precision}, {stage.arrangement}; milliseconds "
        f"from one picture to the next, the best of up to {passes} passes. The last column is the network's convolutions "
        "one by one, without what stands between them."
    )
    page.table(
        "size", "part", "GFLOP", "as trained, ms", "rewritten, ms", "ratio", "GFLOP/s as trained", "rewritten",
        "plain convolutions",
    )  # fmt: skip
    for size in sizes:
        batch = stage.batch((size, size))
        images = torch.rand(batch, 3, size, size).to(**stage.form)
        given: tuple[Tensor, ...] = (images,)
        for name in ("encoder", "decoder"):
            trained = copy.deepcopy(getattr(stage.model, name)).to(**stage.form)
            quick = copy.deepcopy(trained)
            quicken(quick)
            calls = [getattr(network, "features", network) for network in (trained, quick)]
            shapes = (torch.empty(each.shape, device="meta") for each in given)
            convs = convolutions(on_meta(getattr(stage.model, name)), *shapes)
            flop = sum(conv.flop for conv in convs)
            before, after = (
                stage.seconds(batch * size * size, functools.partial(call, *given), passes) / batch
                for call in calls
            )
            plain = stage.plain([(1.0, conv) for conv in convs], (size, size), batch)
            given = calls[0](*given) if name == "encoder" else ()
            page.row(
                size, name, f"{flop / 1e9:.1f}", f"{before * 1e3:.1f}", f"{after * 1e3:.1f}", f"{before / after:.2f}",
                *(f"{flop / seconds / 1e9:,.0f}" for seconds in (before, after, plain)),
            )  # fmt: skip
    page.end_table()


def write_stage(page: Page, stage: Stage, sizes: list[str], peak: float | None, passes: int) -> None:
    """Table of the whole stage."""
    share = (
        "; its share of the card's peak is GFLOP/s ÷ " + f"{peak:,.0f} TFLOP/s (bf16, without sparsity)"
        if peak
        else ""
    )
    page.say(
        "## The stylize stage\n\n"
        "Random pictures, as bytes, encoded once however many styles, stylized with known style statistics, measured where "
        "losses are wanted, and back to bytes; in batches of the worker's size, "
        f"{stage.arrangement}. GFLOP are those of the trained form for one stylized picture, its share of the encoding "
        "included, and GFLOP/s are GFLOP ÷ seconds of a picture"
        f"{share}. The last column is that rate ÷ the one of plain convolutions of the same shapes and batch. *mixed* is "
        + ", ".join(f"{height} × {width}" for height, width in MIXED) + " in turn."
    )  # fmt: skip
    page.table(
        "size", "styles per content", "losses", "batch", "ms a picture", "pictures/s", "GFLOP", "GFLOP/s",
        *(["of the peak"] if peak else []), "÷ plain",
    )  # fmt: skip
    for size in sizes:
        shapes = MIXED if size == "mixed" else ((int(size), int(size)),)
        for per_content in (1, 4):
            styles = stage.network.encode_styles(random_pictures(per_content, (128, 128)))
            for metrics in (False, True):
                seconds = plain = flop = 0.0
                for shape in shapes:
                    batch = stage.batch(shape)
                    contents = random_pictures(max(1, batch // per_content), shape)
                    made = len(contents) * per_content
                    call = functools.partial(stage.run, contents, styles, metrics)
                    took = stage.seconds(batch * shape[0] * shape[1], call, passes)
                    plan = stage.plan(shape, per_content, metrics)
                    seconds += took / made / len(shapes)
                    plain += stage.plain(plan, shape, batch) / len(shapes)
                    flop += sum(often * conv.flop for often, conv in plan) / len(shapes)
                page.row(
                    size, per_content, "yes" if metrics else "no", stage.batch(shapes[-1]), f"{seconds * 1e3:.1f}",
                    f"{1 / seconds:,.2f}", f"{flop / 1e9:,.0f}", f"{flop / seconds / 1e9:,.0f}",
                    *([f"{flop / seconds / 1e12 / peak:.0%}"] if peak else []), f"{plain / seconds:.2f}",
                )  # fmt: skip
    page.end_table()


def write_table_1(page: Page, stage: Stage, pictures: int) -> None:
    """Table of the row "Ours" of the paper's Tab. 1, by its protocol."""
    page.say(
        f"## The paper's Tab. 1, row “Ours”\n\nSeconds for one picture, mean of {pictures}, one at a time, without files "
        "and losses; in parentheses with the style encoded each time, at the content's size."
    )
    page.table("size", "here", "the paper, on a Titan X (Pascal)")
    for size, paper in list(TABLE_1.items())[: 1 if pictures == 1 else None]:
        contents, styles = (random_pictures(pictures, (size, size)) for _ in range(2))
        known = stage.network.encode_styles(styles[:1])
        took: list[float] = []
        for encoding in (False, True):
            stage.run(contents[:1], known, False)
            stage.sync()
            started = time.perf_counter()
            for content, style in zip(contents.split(1), styles.split(1), strict=True):
                stage.run(content, stage.network.encode_styles(style) if encoding else known, False)
            stage.sync()
            took.append((time.perf_counter() - started) / pictures)
        page.row(size, f"{took[0]:.4f} ({took[1]:.4f})", paper)
    page.end_table()


def peak_of(given: argparse.Namespace) -> float | None:
    """Return the card's peak in TFLOP/s, as told or by its name."""
    if given.device == "cpu":
        return None
    words = set(re.findall(r"\w+", card()))  # whole ones: an L40 is no L4
    known = (peak for part, peak in BF16_TFLOPS.items() if words.issuperset(part.split()))
    return given.peak_tflops or next(known, None)


def main() -> None:
    """Write the page."""
    parser = options(__doc__)
    parser.add_argument("--model", default=container.DEFAULT, help="a shipped model, or an architecture")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--all-cores", action="store_true", help="one picture at a time, on all cores of a CPU"
    )
    parser.add_argument(
        "--give-memory-back", action="store_true", help="on a CPU, feature maps' memory, as without a worker"
    )
    parser.add_argument(
        "--precision", choices=tuple(DTYPES), help="as in a run by default: fp32, on a GPU fp16"
    )
    parser.add_argument(
        "--peak-tflops", type=float, help="of the card in bfloat16, where its name is not known"
    )
    parser.add_argument("--sizes", nargs="+", default=["224", "256", "512", "1024", "mixed"])
    given = parser.parse_args()
    sizes = ["64"] if given.quick else given.sizes
    passes = 1 if given.quick else PASSES
    precision = given.precision or ("fp16" if given.device == "cuda" else "fp32")
    stage = Stage(
        given.model,
        given.device,
        precision,
        all_cores=given.all_cores,
        give_memory_back=given.give_memory_back,
    )
    with (
        Page(f"The network alone: {given.model}", given, device=given.device) as page,
        torch.inference_mode(),
    ):
        write_halves(page, stage, [int(size) for size in sizes if size != "mixed"], passes)
        write_stage(page, stage, sizes, peak_of(given), passes)
        write_table_1(page, stage, 1 if given.quick else 100)


if __name__ == "__main__":
    main()
