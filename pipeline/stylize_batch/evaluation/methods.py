"""What is compared: the unstylized content, models, and the optimisation baseline; and how a picture is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from stylize_batch.evaluation.baseline import RECIPE, optimise
from stylize_batch.model.adain import Statistics, statistics
from stylize_batch.model.grid import grid_energy
from stylize_batch.model.losses import feature_distance, style_loss
from stylize_batch.model.network import Network
from stylize_batch.model.vgg import Encoder

UNSTYLIZED = "unstylized content"
GATYS = "Gatys et al."


class Content(NamedTuple):
    """A content image [1, 3, H, W] in 0..1 on the device, and φ₄ of it."""

    name: str
    digest: str
    image: Tensor
    features: Tensor


class Style(NamedTuple):
    """A style image [1, 3, H, W] in 0..1 on the device, and its statistics at φ's taps."""

    name: str
    digest: str
    image: Tensor
    targets: list[Statistics]


class Scores(NamedTuple):
    """Of one picture, clamped to 0..1: the losses on φ, structural similarity to the content, and its grid.

    The grid is the root of `grid_energy`, in steps of 1/255.
    """

    style_loss: float
    content_distance: float
    ssim: float
    grid: float


@torch.no_grad()
def encode_content(phi: Encoder, name: str, digest: str, image: Tensor) -> Content:
    """Compute what pictures of a content are compared with."""
    return Content(name, digest, image, phi.taps(image)[-1])


@torch.no_grad()
def encode_style(phi: Encoder, name: str, digest: str, image: Tensor) -> Style:
    """Compute what pictures in a style are compared with."""
    return Style(name, digest, image, [statistics(tap) for tap in phi.taps(image)])


@torch.no_grad()
def measure(phi: Encoder, picture: Tensor, content: Content, style: Style) -> Scores:
    """Measure one picture [1, 3, H, W] in 0..1."""
    taps = phi.taps(picture.contiguous(memory_format=torch.channels_last))
    similarity = structural_similarity_index_measure(picture, content.image, data_range=1.0)
    assert isinstance(similarity, Tensor)
    return Scores(
        style_loss(taps, style.targets).item(),
        feature_distance(taps[-1], content.features).item(),
        similarity.item(),
        255 * grid_energy(picture).sqrt().item(),
    )


class Method(Protocol):
    """A way to make pictures of a content in a style.

    Attributes:
        name: in tables and plots.
        identity: equal means that the same content and style give the same pictures.
        steps: pictures made of a pair.
    """

    name: str
    identity: str
    steps: int

    def pictures(self, content: Content, style: Style) -> Iterator[tuple[int | None, Tensor]]:
        """Yield pictures [1, 3, H, W] in 0..1, each with the iterations so far (None: not iterative)."""
        ...

    def reconstruction_psnr(self, content: Content) -> float | None:
        """Return the PSNR (dB) of the content made with α = 0; None where there is no α."""
        ...


class Unstylized:
    """The content as it is."""

    name = UNSTYLIZED
    identity = "unstylized"
    steps = 1

    def pictures(self, content: Content, style: Style) -> Iterator[tuple[int | None, Tensor]]:
        """Yield the content."""
        yield None, content.image

    def reconstruction_psnr(self, content: Content) -> None:
        """There is no α."""


class Model:
    """A trained network."""

    steps = 1

    def __init__(self, name: str, digest: str, network: Network, styles: Sequence[Style]) -> None:
        self.name = name
        self.identity = f"model {digest}"
        self._network = network
        self._vectors = {style.digest: network.encode_styles(style.image) for style in styles}
        self._psnr: dict[str, float] = {}

    def pictures(self, content: Content, style: Style) -> Iterator[tuple[int | None, Tensor]]:
        """Yield the content in the style, α = 1."""
        yield None, self._stylize(content, self._vectors[style.digest], 1.0)

    def reconstruction_psnr(self, content: Content) -> float:
        """Return how well the network gives the content back; the style plays no part in it."""
        if content.digest not in self._psnr:
            same = self._stylize(content, next(iter(self._vectors.values())), 0.0)
            self._psnr[content.digest] = peak_signal_noise_ratio(same, content.image, data_range=1.0).item()
        return self._psnr[content.digest]

    def _stylize(self, content: Content, vector: Tensor, alpha: float) -> Tensor:
        features = self._network.encode_contents(content.image, metrics=False)
        images, _ = self._network.stylize(features, vector, torch.full((1,), alpha))
        return images.to(content.image.device)  # large ones are collected on the CPU


class Gatys:
    """The optimisation baseline; see `optimise`."""

    name = GATYS

    def __init__(self, phi: Encoder, iterations: int) -> None:
        self.identity = f"{RECIPE}, {iterations} iterations"
        self.steps = iterations
        self._phi = phi

    def pictures(self, content: Content, style: Style) -> Iterator[tuple[int | None, Tensor]]:
        """Yield the picture after every iteration."""
        steps = optimise(self._phi, content.image, content.features, style.targets)
        yield from enumerate(islice(steps, self.steps), 1)

    def reconstruction_psnr(self, content: Content) -> None:
        """There is no α."""
