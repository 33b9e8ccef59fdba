"""How well a model stylizes the sample pairs, none of which it was trained on.

    python benchmarks/quality.py [MODEL]

For each content × style at 256×256 (centre crops): the style loss and content distance of the result, and the
style loss the content has unstylized; for each content, the PSNR of its own reconstruction (α = 0).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from stylize_batch.images.decode import decode
from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import CHANNELS
from stylize_batch.model.losses import style_loss
from stylize_batch.model.network import Network, loss_network, unpack
from stylize_batch.weights import read_model

SAMPLE = Path(__file__).parent.parent / "manifests" / "sample"
SIZE = 256


class Quality(NamedTuple):
    """Of one pair."""

    content: str
    style: str
    unstylized_style_loss: float
    style_loss: float
    content_distance: float


def images(network: Network, folder: str) -> dict[str, torch.Tensor]:
    """Load the centre crops of a sample folder, [1, 3, 256, 256] each."""
    return {
        path.stem: network.upload(
            torch.from_numpy(np.array(decode(path.read_bytes(), size=SIZE, crop=SIZE)))[None]
        )
        for path in sorted((SAMPLE / folder).glob("*.jpg"))
    }


def measure(model: str = container.DEFAULT) -> tuple[list[Quality], dict[str, float]]:
    """Return the quality of every pair, and the PSNR in dB of every content's reconstruction."""
    loaded = checkpoint.loads(read_model(model))
    network = Network(loaded)
    phi = loss_network(loaded)
    contents, styles = images(network, "content"), images(network, "style")
    vectors = {name: network.encode_styles(image) for name, image in styles.items()}
    pairs: list[Quality] = []
    fidelity: dict[str, float] = {}
    for content, image in contents.items():
        features = network.encode_contents(image)
        taps = phi.taps(image)
        for style, vector in vectors.items():
            _, losses = network.stylize(features, vector, torch.ones(1))
            assert losses is not None
            before = style_loss(taps, unpack(vector, CHANNELS))
            pairs.append(
                Quality(
                    content, style, before.item(), losses.style_loss.item(), losses.content_distance.item()
                )
            )
        same, _ = network.stylize(features, next(iter(vectors.values())), torch.zeros(1))
        fidelity[content] = -10 * math.log10((same - image).square().mean().item())
    return pairs, fidelity


def main() -> None:
    """Print the tables in Markdown."""
    pairs, fidelity = measure(*sys.argv[1:2])
    print("| content | style | style loss, unstylized | style loss | ratio | content distance |")
    print("|---|---|---|---|---|---|")
    for pair in pairs:
        ratio = pair.style_loss / pair.unstylized_style_loss
        print(
            f"| {pair.content} | {pair.style} | {pair.unstylized_style_loss:.2f} | {pair.style_loss:.2f} "
            f"| {ratio:.2f} | {pair.content_distance:.2f} |"
        )
    ratios = [math.log(pair.style_loss / pair.unstylized_style_loss) for pair in pairs]
    print(
        f"\nstyle loss ÷ that of the unstylized content, geometric mean of {len(pairs)} pairs: "
        f"{math.exp(sum(ratios) / len(ratios)):.3f} (worst {math.exp(max(ratios)):.3f})"
    )
    print(
        f"mean style loss {np.mean([p.style_loss for p in pairs]):.2f}, "
        f"mean content distance {np.mean([p.content_distance for p in pairs]):.2f}"
    )
    print("PSNR at α = 0: " + ", ".join(f"{name} {value:.1f} dB" for name, value in fidelity.items()))


if __name__ == "__main__":
    main()
