"""A training recipe: everything that decides what a training run makes, as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from stylize_batch.errors import UsageError
from stylize_batch.model.architecture import Architecture


class Stage(BaseModel):
    """Some iterations with one loss at one resolution.

    `reconstruction` learns g(f(x)) ≈ x by pixel MSE: cheap, and what teaches colour.
    `style` is the paper's objective L_c + λ·L_s (Eq. 11). Identity pairs are not in the paper: AdaIN(x, x) = x,
    so they keep teaching the decoder what a photograph looks like, which α < 1 shows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    loss: Literal["reconstruction", "style"]
    iterations: int = Field(gt=0)
    crop: int = Field(256, ge=16, multiple_of=8, description="side of the square training crops, pixels")
    batch: int = Field(8, gt=0, description="content-style pairs per iteration")
    learning_rate: float = Field(1e-4, gt=0)
    decay: float = Field(5e-5, ge=0, description="lr / (1 + decay · iteration of the stage)")
    warm_up: int = Field(0, ge=0, description="iterations over which the rate rises to that")
    style_weight: float = Field(10.0, ge=0, description="λ of Eq. 11")
    identity_pairs: int = Field(
        0, ge=0, description="pairs per batch whose style is the content itself, compared by pixels too"
    )
    identity_weight: float = Field(100.0, ge=0, description="of the pixel MSE of identity pairs")
    grid_weight: float = Field(
        0.0, ge=0, description="of the mean square of what repeats with cells of 2×2 pixels; not in the paper"
    )

    @field_validator("identity_pairs")
    @classmethod
    def _not_above_batch(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("batch", value):
            raise ValueError(f"{value} is more than the batch, {info.data['batch']}")
        return value


class Recipe(BaseModel):
    """All settings of a training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    architecture: Architecture
    encoder: str = Field(
        description="a model whose VGG encoder measures the losses, and is the trained model's own unless that is compact"
    )
    start: str = Field("", description="a model of the same architecture whose weights are the first ones")
    encoder_licence: str = ""
    contents: str = Field("", description="folder or URI with content photographs")
    styles: str = Field("", description="folder or URI with style images")
    holdout: list[str] = Field([], description="file names never trained on; the sample grid shows them")
    group_separator: str = Field(
        "__",
        description="images are drawn by group first: the file name up to this, or else the folder; empty: all alike",
    )
    min_scale: float = Field(
        0.4, gt=0, le=1, description="a crop's side is at least this share of the image's shorter side"
    )
    max_scale: float = Field(1.0, gt=0, le=1, description="and at most this share")
    stages: list[Stage] = Field(min_length=1)
    max_gain: float | None = Field(
        None, gt=0, description="bound of σ(style)/σ(content) in the model's AdaIN; the paper has none"
    )
    average: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay of the running mean of the weights, which is the model; 0 takes the last",
    )
    seed: int = Field(0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_minutes: float = Field(5.0, gt=0)
    sample_every: int = Field(500, gt=0, description="iterations between two sample grids")

    @field_validator("max_scale")
    @classmethod
    def _not_below_min_scale(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("min_scale", 0):
            raise ValueError(f"{value} is less than min_scale, {info.data['min_scale']}")
        return value


def load_recipe(path: str, **given: str) -> Recipe:
    """Read a recipe; settings given beside it win.

    Raises:
        UsageError: the file is missing or says something a recipe cannot say.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return Recipe.model_validate({**settings, **given} if isinstance(settings, dict) else settings)
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the recipe"
        raise UsageError(f"recipe {path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a day 45, !!int "abc", deep nesting
        raise UsageError(f"the recipe {path} is not YAML: {error}") from None
