"""The paper's Fig. 6 at small scale: AdaIN against concatenation, and against normalization in the decoder (§7.2).

    python benchmarks/ablation.py --contents PHOTOGRAPHS --styles PAINTINGS -o docs/ablation

Four networks, trained alike by the package's own training loop: the same batches, losses and seed. Writes the curves
of both losses (`content-loss.png`, `style-loss.png`), each network's pictures of unseen pairs (`pictures.jpg`) and a
table of mean losses over the last tenth of the iterations (`README.md`). Repeating the command continues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import SAMPLE, machine
from torch import Tensor, nn

from stylize_batch.images.decode import decode
from stylize_batch.images.encode import encode
from stylize_batch.images.plot import line_plot
from stylize_batch.images.sheet import contact_sheet
from stylize_batch.model.convolution import ReflectedConv2d
from stylize_batch.model.decoder import Decoder
from stylize_batch.model.pixels import to_array
from stylize_batch.model.vgg import Encoder
from stylize_batch.progress import TrainingLines
from stylize_batch.training import log
from stylize_batch.training.data import to_tensor
from stylize_batch.training.loop import Trainer
from stylize_batch.training.objective import Features, Transfer
from stylize_batch.training.recipe import Recipe

PAIRS = [
    ("brandenburg-gate", "van-gogh-cafe-terrace"),
    ("cat", "tapa-cloth"),
    ("machu-picchu", "morisot-daffodils"),
]


class Concatenation(Transfer):
    """Enc-Concat-Dec: the decoder gets both feature maps and must find out what to do with them."""

    def forward(self, contents: Features, styles: Features) -> Tensor:
        """Decode content and style features side by side."""
        return self.decoder(torch.cat([contents[0], styles[0]], 1))


def adain(_: Recipe, phi: Encoder) -> Transfer:
    """Enc-AdaIN-Dec, the paper's own."""
    return Transfer(phi, Decoder("vgg16"))


def concatenation(_: Recipe, phi: Encoder) -> Transfer:
    """Enc-Concat-Dec."""
    decoder = Decoder("vgg16")
    decoder.conv4_1 = ReflectedConv2d(2 * 512, 256, relu=True)
    return Concatenation(phi, decoder)


def normalized(layer: Callable[[int], nn.Module]) -> Callable[[Recipe, Encoder], Transfer]:
    """Enc-AdaIN-BNDec and -INDec: a normalization after every convolution but the last."""

    def make(_: Recipe, phi: Encoder) -> Transfer:
        decoder = Decoder("vgg16")
        for name, conv in list(decoder.named_children())[:-1]:
            assert isinstance(conv, ReflectedConv2d)
            conv.relu = False  # only after the normalization
            setattr(decoder, name, nn.Sequential(conv, layer(conv.out_channels), nn.ReLU()))
        return Transfer(phi, decoder)

    return make


VARIANTS: dict[str, Callable[[Recipe, Encoder], Transfer]] = {
    "Enc-AdaIN-Dec": adain,
    "Enc-Concat-Dec": concatenation,
    "Enc-AdaIN-BNDec": normalized(nn.BatchNorm2d),
    "Enc-AdaIN-INDec": normalized(lambda channels: nn.InstanceNorm2d(channels, affine=True)),
}


def load(kind: str, name: str) -> Tensor:
    """Return the centre crop of a sample image, [1, 3, 256, 256]."""
    data = (SAMPLE / kind / f"{name}.jpg").read_bytes()
    return to_tensor(torch.from_numpy(decode(data, size=256, crop=256).copy())[None])


def main() -> None:
    """Train the four, then draw and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--contents", required=True)
    parser.add_argument("--styles", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--runs", default="training-runs/ablation", help="where the trainings are kept")
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    stage = {"loss": "style", "iterations": options.iterations, "crop": options.crop, "batch": options.batch}
    recipe = Recipe.model_validate(
        {
            "name": "ablation",
            "architecture": "vgg16",
            "encoder": "adain-vgg16",
            "contents": options.contents,
            "styles": options.styles,
            "min_scale": 0.25,
            "precision": "bf16",
            "average": 0.99,
            "sample_every": options.iterations,
            "stages": [{**stage, "learning_rate": 2e-4}],
        }
    )
    pairs = [(load("content", content), load("style", style)) for content, style in PAIRS]
    rows = [[to_array(content[0]), to_array(style[0])] for content, style in pairs]
    curves: dict[str, list[log.Step]] = {}
    for name, network in VARIANTS.items():
        print(name, file=sys.stderr)
        trainer = Trainer(recipe, f"{options.runs}/{name}", options.device, network)
        trainer.run(TrainingLines())
        curves[name] = log.load(trainer.root.read("training.csv"))
        with torch.no_grad(), trainer.averaged():
            for row, pair in zip(rows, pairs, strict=True):
                content, style = (image.to(trainer.device) for image in pair)
                row.append(to_array(trainer.objective.stylize(content, style)[0]))
    options.output.mkdir(parents=True, exist_ok=True)
    for loss in ("content_loss", "style_loss"):
        label = loss.replace("_", " ")
        series = {name: smooth(steps, loss) for name, steps in curves.items()}
        plot = line_plot(series, x_label="iteration", y_label=label, title=f"{label} in training", log_y=True)
        (options.output / f"{loss.replace('_', '-')}.png").write_bytes(plot)
    (options.output / "pictures.jpg").write_bytes(encode(contact_sheet(rows), "jpeg", 90))
    (options.output / "README.md").write_text(describe(curves, options))


def smooth(steps: list[log.Step], loss: str) -> tuple[list[float], list[float]]:
    """Return means over fortieths of the training."""
    groups = np.array_split(np.arange(len(steps)), min(40, len(steps)))
    values = np.array([getattr(step, loss) for step in steps])
    return [float(group[-1] + 1) for group in groups], [float(values[group].mean()) for group in groups]


def describe(curves: dict[str, list[log.Step]], options: argparse.Namespace) -> str:
    """Write the table and how it came about."""
    lines = [
        "# Ablation of the architecture (paper §7.2, Fig. 6)",
        "",
        f"`python benchmarks/ablation.py --iterations {options.iterations} --crop {options.crop} "
        f"--batch {options.batch}` with the training images of the default weights, on {machine(options.device)}. The "
        "paper trains 160,000 iterations at 256 pixels with batches of 8: this shows how the four start, not where they "
        "end.",
        "",
        "| network | content loss | style loss | content + 10 × style |",
        "|---|---|---|---|",
    ]
    for name, steps in curves.items():
        last = steps[-max(1, len(steps) // 10) :]
        content, style = (
            float(np.mean([getattr(step, key) for step in last])) for key in ("content_loss", "style_loss")
        )
        lines.append(f"| {name} | {content:.2f} | {style:.2f} | {content + 10 * style:.1f} |")
    lines += [
        "",
        "Means over the last tenth of the iterations. BNDec and INDec normalize after every convolution but the last.",
        "",
        "![Content loss](content-loss.png)",
        "",
        "![Style loss](style-loss.png)",
        "",
        "![Content, style, and the pictures of the four networks](pictures.jpg)",
        "",
        f"Content, style, {', '.join(VARIANTS)}; the pairs are not among the training images.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
