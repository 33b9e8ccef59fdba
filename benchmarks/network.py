"""The network alone: its convolutions as trained and as rewritten for inference, in one run.

    python benchmarks/network.py [SIZE …]

Milliseconds for one picture on a CPU, best of several passes, and the rate of the multiplications that the trained form
would take: above what a plain convolution reaches on the machine, it is multiplications saved. The plain rate is that of
the encoder's widest layers, measured beside them.
"""

from __future__ import annotations

import copy
import os
import platform
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import CHANNELS, TAP_STRIDES, vgg_decoder, vgg_encoder
from stylize_batch.model.convolution import quicken

PASSES = 7


def best(call: Callable[..., object], *given: object) -> float:
    """Return the shortest of several times, seconds."""
    call(*given)
    times: list[float] = []
    for _ in range(PASSES):
        started = time.perf_counter()
        call(*given)
        times.append(time.perf_counter() - started)
    return min(times)


def multiplications(size: int) -> tuple[float, float]:
    """Return those of the encoder and of the decoder as trained, for a square picture."""
    strides = dict(enumerate(TAP_STRIDES, 1))

    def total(convolutions: list[tuple[int, int, int]]) -> float:
        return sum(9 * one * other * (size / strides[block]) ** 2 for block, one, other in convolutions)

    encoder = [(int(conv.name[4]), conv.channels_in, conv.channels_out) for conv in vgg_encoder("vgg16")]
    decoder = [(int(conv.name[4]), conv.channels_in, conv.channels_out) for conv in vgg_decoder("vgg16")]
    return total(encoder), total(decoder)


def plain_rate(size: int) -> float:
    """Return multiplications a second of a plain convolution of the shape of conv3_2."""
    channels = CHANNELS[2]
    conv = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)  # pyright: ignore
    features = torch.rand(1, channels, size // 4, size // 4).to(memory_format=torch.channels_last)
    return 9 * channels**2 * (size // 4) ** 2 / best(conv, features)


@torch.inference_mode()
def main() -> None:
    """Print a Markdown table."""
    sizes = [int(each) for each in sys.argv[1:]] or [224, 256, 512]
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n"
    )
    print(
        "| size | | as trained, ms | rewritten, ms | ratio | GMAC/s as trained | rewritten | plain convolution |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in sizes:
        images = torch.rand(1, 3, size, size).to(memory_format=torch.channels_last)
        features = model.encoder(images)
        rate = plain_rate(size)
        for name, network, given, work in zip(
            ("encoder", "decoder"), (model.encoder, model.decoder), (images, features), multiplications(size),
            strict=True,
        ):  # fmt: skip
            trained = network.to(memory_format=torch.channels_last)  # pyright: ignore
            quick = copy.deepcopy(trained)
            quicken(quick)
            before, after = (best(form, given) for form in (trained, quick))
            print(
                f"| {size} | {name} | {before * 1e3:.0f} | {after * 1e3:.0f} | {before / after:.2f} | "
                f"{work / before / 1e9:.0f} | {work / after / 1e9:.0f} | {rate / 1e9:.0f} |"
            )


if __name__ == "__main__":
    main()
