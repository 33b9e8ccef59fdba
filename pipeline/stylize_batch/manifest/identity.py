"""Who a pair is: an identifier equal on every machine and run, and the key its picture is stored under."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from stylize_batch.images.encode import EXTENSIONS, FORMAT_OF_EXTENSION, Format

MAX_STEM = 96
"""Bytes of a content's or style's name that go into a default key."""


def normalized_weights(weights: Sequence[float]) -> list[float]:
    """Return weights as float32 numbers that sum to 1."""
    values = np.asarray(weights, np.float32).astype(np.float64)
    return [float(value) for value in (values / values.sum()).astype(np.float32)]


@functools.lru_cache(maxsize=65536)
def shortest(value: float) -> str:
    """Write a number as the shortest decimal that reads back as the same float32."""
    return repr(float(str(np.float32(value))))


def pair_id(
    content: str,
    styles: Sequence[str],
    weights: Sequence[float] | None = None,
    alpha: float | None = None,
    preserve_color: bool | None = None,
    masks: Sequence[str] | None = None,
) -> str:
    """Return the identifier of a pair: BLAKE2b-128, hex, of a compact UTF-8 JSON array.

    The array is [content, styles, weights, alpha, preserve_color, masks]: strings as written, numbers as
    `shortest`, weights normalised, null where a value is absent or the default.
    """
    shares = "null"
    if weights is not None:
        normal = normalized_weights(weights)
        if len(set(normal)) > 1:
            shares = f"[{','.join(map(shortest, normal))}]"
    text = (
        f"[{_quoted(content)},{_quoted_list(styles)},{shares},"
        f"{'null' if alpha is None or alpha == 1 else shortest(alpha)},"
        f"{'true' if preserve_color else 'null'},{_quoted_list(masks) if masks else 'null'}]"
    )
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _quoted(text: str) -> str:
    return json.encoder.encode_basestring(text)


def _quoted_list(texts: Sequence[str]) -> str:
    return f"[{','.join(map(_quoted, texts))}]"


def output_key(key: str | None, content: str, style: str, identity: str, format: Format) -> str:
    """Return the key of a pair's picture under `images/`.

    Args:
        key: the manifest's `output`, already checked; an explicit image extension is kept.
        content: URI of the content.
        style: URI of the first style.
        identity: the pair's identifier.
        format: the job's image format, whose extension is added otherwise.
    """
    if key is None:
        return f"{_stem(content)}-{_stem(style)}-{identity[:16]}{EXTENSIONS[format]}"
    if PurePosixPath(key).suffix.lower() in FORMAT_OF_EXTENSION:
        return key
    return key + EXTENSIONS[format]


def _stem(uri: str) -> str:
    stem = PurePosixPath(uri.rstrip("/")).stem.replace("\\", "_")
    if not stem.isprintable():
        stem = "".join(character if character.isprintable() else "_" for character in stem)
    return stem.encode("utf-8", "replace")[:MAX_STEM].decode("utf-8", "ignore")
