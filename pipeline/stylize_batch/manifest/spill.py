"""The local folder that planning spills to, and those that killed runs have left."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from stylize_batch.process import born, place_digest

TEMPORARY_PREFIX = "stylize-batch-plan-"
"""Of the local folders that planning spills to; a digest of the machine and the number of the process follow."""

STALE_SECONDS = 86_400.0
"""A folder that nobody has added to for so long is left over: planning takes minutes."""


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a local folder for a partition's buckets, removed when its context ends.

    Its name tells which process of which machine made it, so that what killed runs have left there goes too: at once
    on that machine, and elsewhere, or after it was started again, when a day has gone by.
    """
    here = f"{place_digest()}-"
    for stale in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        mark = stale.name.removeprefix(TEMPORARY_PREFIX)
        maker = mark.removeprefix(here).partition("-")[0]
        with suppress(OSError):  # another run removes it, too
            if mark.startswith(here) and maker.isdigit():
                gone = born(int(maker)) is None
            else:
                gone = time.time() - stale.stat().st_mtime > STALE_SECONDS
            if gone:
                shutil.rmtree(stale, ignore_errors=True)
    return tempfile.TemporaryDirectory(
        prefix=f"{TEMPORARY_PREFIX}{here}{os.getpid()}-", ignore_cleanup_errors=True
    )
