"""Batch arbitrary style transfer with AdaIN (Huang & Belongie, ICCV 2017).

`run(manifest, output=…)` runs a job; `Stylizer()(content, style)` stylizes one picture without Ray;
`RandomStyle(bank)` is an augmentation for training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stylize_batch.augmentation import RandomStyle
    from stylize_batch.job.run import RunSummary, run
    from stylize_batch.stylizer import Stylizer

__all__ = ["RandomStyle", "RunSummary", "Stylizer", "run"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that `import stylize_batch` stays fast.
    if name in ("run", "RunSummary"):
        from stylize_batch.job import run as module

        return getattr(module, name)
    if name == "Stylizer":
        from stylize_batch.stylizer import Stylizer

        return Stylizer
    if name == "RandomStyle":
        from stylize_batch.augmentation import RandomStyle

        return RandomStyle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
