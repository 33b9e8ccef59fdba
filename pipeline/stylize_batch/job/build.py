"""A job's manifest, built from a dataset when a job names one in a manifest's place."""

from __future__ import annotations

import re

from stylize_batch.errors import UsageError, told
from stylize_batch.manifest.build import build
from stylize_batch.manifest.built import read_settings, settings_of
from stylize_batch.manifest.pairing import Pairing
from stylize_batch.progress import Observer


def ensure_manifest(
    manifest: str, content: str, style: str, pairing: Pairing, observer: Observer, *, anew: bool
) -> list[str]:
    """Build a manifest, or leave the one that an earlier run has built as it is: sources are listed once.

    Args:
        manifest: path or URI to put it at.
        content: as for `manifest build`.
        style: the same.
        pairing: how contents and styles are paired.
        observer: hears of progress.
        anew: build it whether or not one is there.

    Returns:
        One line for each thing a user should know of.

    Raises:
        UsageError: a source or a setting cannot be used, or the manifest there was built with others.
    """
    wanted = settings_of(content, style, pairing)
    found = read_settings(manifest)
    if found is not None and not anew:
        for name, value in wanted.items():
            if found.get(name) != value:
                raise UsageError(
                    f"{name} was {told(found.get(name))} when {manifest} was built and is now {told(value)}; choose another "
                    "--output, or start anew with --overwrite"
                )
        return [f"{manifest} is used as it was built; its sources are not listed again"]
    replaced = [] if found is None else [f"{manifest} was there and has been built anew"]
    try:
        return replaced + build(content, style, manifest, pairing, observer=observer).notes
    except UsageError as error:
        raise UsageError(_as_settings(str(error))) from None


def _as_settings(message: str) -> str:
    """Return a message with the options of `manifest build` named as they are here."""
    options = "|".join(name.replace("_", "-") for name in Pairing.model_fields)
    named, count = re.subn(rf"(?<![\w-])--({options})(?![\w-])", r"build.\1", message)
    return f"{named} (`build` is a section of a job file)" if count else named
