"""Which contents a manifest has and which styles each gets: the settings of `manifest build`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

from stylize_batch.errors import UsageError


def no_truth(value: Any) -> Any:
    """Return a setting that is a number, unless it is a bool, which pydantic takes for 0 or 1.

    Raises:
        ValueError: it is one.
    """
    if isinstance(value, bool):
        raise ValueError("it is true or false (YAML's yes or no); give a number")
    return value


Whole = Annotated[int, BeforeValidator(no_truth)]
Real = Annotated[float, BeforeValidator(no_truth)]


class Pairing(BaseModel):
    """Which contents there are and which styles each gets, with the names of `manifest build`'s options.

    Attributes:
        styles_per_content: styles drawn for each content, no style twice.
        all_pairs: every style for every content instead.
        style_map: list of contents and their styles instead: CSV, JSON, JSON lines or Parquet.
        seed: of everything drawn.
        style_by_label: contents of one label get styles of one label.
        separate_splits: no style is shared between splits.
        alpha: content-style trade-off: a number, or a range `0.5..1` it is drawn from.
        preserve_color: value of the column of that name.
        keep_originals: each content as it is, beside its stylized pictures.
        sample: only so many contents, drawn; they get the styles they would get among all.
        content_root: what the relative paths of a list of contents start from; the list's folder by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    styles_per_content: Whole | None = None
    all_pairs: bool = False
    style_map: str | None = None
    seed: Whole = 0
    style_by_label: bool = False
    separate_splits: bool = False
    alpha: str | None = None
    preserve_color: bool = False
    keep_originals: bool = False
    sample: Whole | None = None
    content_root: str | None = None

    @field_validator("alpha", mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value


def checked(pairing: Pairing) -> tuple[float, float] | None:
    """Refuse what contradicts itself; returns the range of α, if there is one.

    Raises:
        UsageError: an option has no meaning, alone or beside another.
    """
    ways = {
        "--styles-per-content": pairing.styles_per_content is not None,
        "--all-pairs": pairing.all_pairs,
        "--style-map": pairing.style_map is not None,
    }
    given = [name for name, present in ways.items() if present]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other")
    if pairing.styles_per_content is not None and pairing.styles_per_content < 1:
        raise UsageError("--styles-per-content must be at least 1")
    if pairing.sample is not None and pairing.sample < 1:
        raise UsageError("--sample must be at least 1")
    for name, present in (
        ("--style-by-label", pairing.style_by_label),
        ("--separate-splits", pairing.separate_splits),
    ):
        if present and pairing.style_map is not None:
            raise UsageError(f"{name} has no meaning with --style-map, which names the styles")
    if pairing.alpha is None:
        return None
    low, dots, high = pairing.alpha.partition("..")
    try:
        bounds = float(low), float(high if dots else low)
    except ValueError:
        raise UsageError(f"--alpha {pairing.alpha}: give a number (0.8) or a range (0.5..1)") from None
    if not all(0 <= bound <= 1 for bound in bounds):
        raise UsageError(f"--alpha {pairing.alpha}: it must lie between 0 and 1")
    if bounds[0] > bounds[1]:
        raise UsageError(f"--alpha {pairing.alpha} is reversed; write {high}..{low}")
    return bounds
