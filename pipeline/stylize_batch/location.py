"""Where paths and URIs lead: equal places by different names, and which lies in which."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from stylize_batch.storage import absolute, is_uri

_SAME = {"local": "file", "s3a": "s3", "gcs": "gs", "abfs": "az"}
"""Schemes with two names."""


def follow_links(path: str) -> str:
    """Return a local path without links in it."""
    return os.path.realpath(path)


def lies_in(place: str, folder: str) -> bool:
    """Whether a path or URI is a folder or lies below it, local links followed."""
    return real(place).startswith(real(folder))


def real(place: str, follow: Callable[[str], str] = follow_links) -> str:
    """Return a path or URI in a form that equal places share, with one `/` at its end.

    `follow` follows the links of the folder above; one that remembers serves many places.
    """
    place = absolute(place)
    scheme, _, path = place.partition("://") if is_uri(place) else ("file", "", place)
    scheme = _SAME.get(scheme, scheme)
    if scheme != "file":
        return f"{scheme}://{path.strip('/')}/"
    with suppress(ValueError):  # a NUL in it, which no file has
        above, name = os.path.split(os.path.abspath(path))  # noqa: PTH100 (`Path` costs more than the call)
        path = os.path.join(follow(above), name)  # noqa: PTH118
        if os.path.islink(path):  # noqa: PTH114
            path = follow_links(path)
    return path.rstrip("/") + "/"
