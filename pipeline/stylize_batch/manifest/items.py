"""Items of a source: the columns that every one has, and what is none."""

from __future__ import annotations

import os
from collections import Counter

KEY, URI = "stylize_batch.key", "stylize_batch.uri"
"""Columns of an item: its path below its source, and where it is."""

UNREAD = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
"""Endings of pictures that cannot be read, whatever their names: formats of telephones and cameras above all."""

ENDINGS = 5
"""Endings of names that a note about files left out counts one by one."""


class LeftOut:
    """Files that are left out, counted by the endings of their names."""

    def __init__(self) -> None:
        self._endings: Counter[str] = Counter()
        self._example = ""

    def add(self, name: str) -> None:
        """Count one."""
        self._endings[os.path.splitext(name)[1].lower() or "no ending"] += 1  # noqa: PTH122 (a key)
        self._example = self._example or name

    def __len__(self) -> int:
        return self._endings.total()

    @property
    def advice(self) -> str:
        """What can be done about them."""
        if pictures := sorted(self._endings.keys() & UNREAD):
            return f"{', '.join(pictures)} cannot be read: convert such pictures to JPEG or PNG"
        if ".arrow" in self._endings:
            return ".arrow cannot be read: save the data set as Parquet"
        return "a list can name them"

    def __str__(self) -> str:
        endings = ", ".join(f"{ending} {count}" for ending, count in self._endings.most_common(ENDINGS))
        return f"({endings}{', …' if len(self._endings) > ENDINGS else ''}), such as {self._example}"
