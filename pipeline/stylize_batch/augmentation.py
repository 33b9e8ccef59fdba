"""Stylization as an augmentation: a transform of torchvision that gives some pictures of a training set random styles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from stylize_batch.errors import UsageError
from stylize_batch.model import checkpoint, container
from stylize_batch.model.device import images_at_once
from stylize_batch.model.network import Network
from stylize_batch.styles import read_bank
from stylize_batch.stylizer import check_fraction, check_sides, within_range
from stylize_batch.weights import read_model


class RandomStyle(v2.Transform):
    """Give each picture, with probability p, a random style of a bank at a random α: `RandomStyle("bank.parquet")`.

    It takes what torchvision's transforms take: a PIL image, a tensor [3, H, W] or a batch [N, 3, H, W], uint8 or
    floating-point in 0..1, plain or as `tv_tensors.Image`, alone or in a structure whose labels, boxes and masks pass
    through. Every sample of a batch draws its own, and those chosen go through the network together, on the device
    the batch is on: in float32 on a CPU, in float16 on a GPU, where a picture that overflows stays as it is. The
    result has the input's size, type and device; it carries no gradient.

    All draws are of torch's generator, which `torch.manual_seed` and a DataLoader's workers seed. The workers share
    the bank's memory, whether forked or spawned, and each makes its own network when it first needs it.

    Args:
        bank: file of `stylize-batch styles encode`; path or URI.
        p: probability that a picture is stylized, 0..1.
        alpha_range: range of the content-style trade-off (Eq. 14), within 0..1, both ends included.
        model: what the bank was encoded with: a shipped model's name, or the path or URI of a model file.

    Raises:
        UsageError: p or alpha_range is out of range, or the bank is missing, damaged, empty or another model's. When called:
            no input is an image, or one is no RGB picture, is not in 0..1, or has a side under 9 pixels.
    """

    _transformed_types = (v2.functional.is_pure_tensor, tv_tensors.Image, tv_tensors.Video, Image.Image)

    def __init__(
        self,
        bank: str | os.PathLike[str],
        p: float = 0.5,
        alpha_range: tuple[float, float] = (0.5, 1.0),
        *,
        model: str = container.DEFAULT,
    ) -> None:
        super().__init__()
        self.bank, self.p = os.fspath(bank), p
        self.alpha_range, self.model = _checked_range(alpha_range), model
        check_fraction("p", p)
        data = read_model(model)
        container.check_model(data)
        found = read_bank(self.bank)
        self._digest = container.digest(data)
        if found.model_digest != self._digest:
            raise UsageError(
                f"the style bank {self.bank} was encoded with another model than {model}; name that one: model=…"
            )
        if not found.styles:
            raise UsageError(f"the style bank {self.bank} holds no styles")
        # A tensor, and not an array: torch moves it to shared memory when it goes to spawned workers.
        self._vectors = torch.from_numpy(found.matrix)
        self._networks: dict[torch.device, Network] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_networks": {}}

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw, for every sample, whether it is stylized, its style and its α; images of one sample share them."""
        if not flat_inputs:
            raise UsageError(
                "RandomStyle finds no image among its inputs; it takes PIL images and tensors, which v2.ToImage() makes of arrays"
            )
        counts = {_samples(each) for each in flat_inputs}
        if len(counts) > 1:
            raise UsageError(f"images of one call must be as many each, not {sorted(counts)}")
        (count,) = counts
        low, high = self.alpha_range
        return {
            "chosen": (torch.rand(count, device="cpu") < self.p).nonzero().flatten(),
            "styles": torch.randint(len(self._vectors), (count,), device="cpu"),
            "alpha": (low + (high - low) * torch.rand(count, device="cpu")).clamp(max=high),
        }

    @torch.no_grad()
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Stylize the chosen samples of one input."""
        chosen: Tensor = params["chosen"]
        if not len(chosen):
            return inpt
        images = _batch(inpt)
        mixed = images.clone()
        for some in chosen.split(images_at_once(images)):
            index = some.to(images.device)
            made = self._stylize(images[index], self._vectors[params["styles"][some]], params["alpha"][some])
            mixed.index_copy_(0, index, made)
        if isinstance(inpt, Image.Image):
            return Image.fromarray(mixed[0].permute(1, 2, 0).contiguous().numpy())
        mixed = mixed.reshape(inpt.shape)
        return tv_tensors.Image(mixed) if isinstance(inpt, tv_tensors.Image) else mixed

    def _stylize(self, images: Tensor, vectors: Tensor, alpha: Tensor) -> Tensor:
        """Return uint8 or floating-point images [n, 3, H, W] in their styles, in the same type and place."""
        if images.is_floating_point():
            images = within_range(images)
        network = self._network(images.device)
        features = network.encode_contents(images, metrics=False)
        made, _ = network.stylize(features, vectors, alpha)
        made = made.to(images.device).float()
        if not images.is_floating_point():
            made = (made * 255).round()
        finite = made.isfinite().flatten(1).all(1)[:, None, None, None]
        return torch.where(finite, made, images).to(images.dtype)

    def _network(self, device: torch.device) -> Network:
        if device not in self._networks:
            data = read_model(self.model)
            if container.digest(data) != self._digest:
                raise UsageError(f"the model {self.model} has changed since RandomStyle was made")
            # Not float32 on a GPU: convolutions of the training itself would lose TF32 with it.
            precision = "fp16" if device.type == "cuda" else "fp32"
            self._networks[device] = Network(checkpoint.loads(data), device, precision)
        return self._networks[device]


def _checked_range(alpha_range: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = alpha_range
        sound = 0 <= low <= high <= 1
    except (TypeError, ValueError):
        sound, low, high = False, 0.0, 0.0
    if not sound:
        raise UsageError(
            f"alpha_range is {alpha_range}, it must be a range within 0 and 1, lower end first, such as (0.5, 1.0)"
        )
    return float(low), float(high)


def _samples(picture: Any) -> int:
    """Return how many images an input holds.

    Raises:
        UsageError: it is no RGB picture, or too small.
    """
    if isinstance(picture, Image.Image):
        if picture.mode != "RGB":
            raise UsageError(f"RandomStyle takes RGB images, not mode {picture.mode}; convert('RGB') first")
        count, sides = 1, picture.size
    else:
        if isinstance(picture, tv_tensors.Video):
            raise UsageError("RandomStyle takes images, no videos")
        sound = picture.dtype == torch.uint8 or picture.is_floating_point()
        if picture.ndim not in (3, 4) or picture.shape[-3] != 3 or not sound:
            raise UsageError(
                "RandomStyle takes RGB images as tensors [3, H, W] or [N, 3, H, W], uint8 or floating-point in 0..1, "
                f"not {picture.dtype} {list(picture.shape)}"
            )
        count, sides = 1 if picture.ndim == 3 else len(picture), picture.shape[-2:]
    check_sides(sides)
    return count


def _batch(picture: Any) -> Tensor:
    """Return an input as a plain tensor [N, 3, H, W]."""
    if isinstance(picture, Image.Image):
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    plain: Tensor = picture.as_subclass(Tensor)
    return plain.reshape(-1, *plain.shape[-3:])
