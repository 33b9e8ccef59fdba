"""Who a pair is: an identifier equal on every machine and run, and the key its picture is stored under."""

# pyarrow makes its compute functions when it is imported.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import hashlib
import posixpath
import re
from collections.abc import Sequence
from json.encoder import encode_basestring

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stylize_batch.images.encode import EXTENSIONS, FORMAT_OF_EXTENSION, Format
from stylize_batch.manifest.naming import VERSION_MARK

MAX_STEM = 96
"""Bytes of a content's or style's name that go into a default key."""


def normalized_weights(weights: Sequence[float]) -> list[float]:
    """Return weights as float32 numbers that sum to 1."""
    values = np.asarray(weights, np.float64)
    return [float(value) for value in (values / values.sum()).astype(np.float32)]


@functools.lru_cache(maxsize=65536)
def shortest(value: float) -> str:
    """Write a number as the shortest decimal that reads back as the same float32; -0 as 0, to which it is equal."""
    return repr(float(str(np.float32(value))) + 0.0)


def controls(
    weights: Sequence[float] | None,
    alpha: float | None,
    preserve_color: bool | None,
    masks: Sequence[str] | None,
) -> str:
    """Write the last four members of a pair's JSON array."""
    shares = "null"
    if weights is not None:
        normal = normalized_weights(weights)
        if len(set(normal)) > 1:
            shares = f"[{','.join(map(shortest, normal))}]"
    return (
        f"{shares},{'null' if alpha is None or alpha == 1 else shortest(alpha)},"
        f"{'true' if preserve_color else 'null'},"
        f"{'[' + ','.join(map(encode_basestring, masks)) + ']' if masks else 'null'}"
    )


DEFAULTS = controls(None, None, None, None)
"""The last four members of most pairs' arrays."""


def pair_ids(contents: pa.Array, styles: pa.Array, settings: pa.Array | str = DEFAULTS) -> pa.Array:
    """Return the identifiers of pairs: BLAKE2b-128, hex, of a compact UTF-8 JSON array.

    The array is [content, styles, weights, alpha, preserve_color, masks]: strings as written, numbers as
    `shortest`, weights normalised, null where a value is absent or the default.

    Args:
        contents: strings, one per pair.
        styles: lists of strings.
        settings: what `controls` writes, one per pair or for all of them.
    """
    quoted = pa.ListArray.from_arrays(styles.offsets, _quoted(styles.values))
    texts = pc.binary_join_element_wise(
        "[", _quoted(contents), ",[", pc.binary_join(quoted, ","), "],", settings, "]", ""
    )
    digests = [hashlib.blake2b(text, digest_size=16).digest() for text in texts.cast(pa.binary()).to_pylist()]
    offsets = np.arange(0, 32 * len(digests) + 1, 32, dtype=np.int32)
    hexadecimal = b"".join(digests).hex().encode()
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(offsets), pa.py_buffer(hexadecimal))


def _quoted(strings: pa.Array) -> pa.Array:
    """Write strings as JSON does."""
    if not pc.any(pc.match_substring_regex(strings, r'["\\\x00-\x1f]')).as_py():
        return pc.binary_join_element_wise('"', strings, '"', "")
    return pa.array([encode_basestring(text) for text in strings.to_pylist()], pa.string())


def output_keys(
    keys: pa.Array | None, contents: pa.Array, styles: pa.Array, identities: pa.Array, format: Format
) -> pa.Array:
    """Return the keys of pairs' pictures under `images/`.

    Args:
        keys: the manifest's `output`, already checked; an explicit image extension is kept.
        contents: URIs of the contents.
        styles: URI of each pair's first style, null where there is none.
        identities: the pairs' identifiers.
        format: the job's image format, whose extension is added otherwise.
    """
    extension = EXTENSIONS[format]
    short = pc.utf8_slice_codeunits(identities, 0, 16)
    names = (_stems(contents), _stems(styles), short)
    default = pc.binary_join_element_wise(*names, "-", null_handling="skip")
    default = pc.binary_join_element_wise(default, extension, "")
    if keys is None:
        return default
    explicit = [None if key is None else _with_extension(key, extension) for key in keys.to_pylist()]
    return pc.coalesce(pa.array(explicit, pa.string()), default)


def _with_extension(key: str, extension: str) -> str:
    return key if posixpath.splitext(key)[1].lower() in FORMAT_OF_EXTENSION else key + extension


def _stems(uris: pa.Array) -> pa.Array:
    """Return the names of files without folder and extension, as they may stand in a key."""
    unversioned = pc.replace_substring_regex(uris, rf"(?s){re.escape(VERSION_MARK)}.*", "")
    names = pc.replace_substring_regex(pc.utf8_rtrim(unversioned, "/"), r"(?s)^.*/", "")
    stems = pc.replace_substring_regex(names, r"(?s)(.)\.[^.]*$", r"\1")
    stems = pc.replace_substring_regex(stems, r"[\pC\p{Zl}\p{Zp}\\]", "_")
    if (pc.max(pc.binary_length(stems)).as_py() or 0) <= MAX_STEM:
        return stems
    return pa.array(
        [stem and stem.encode()[:MAX_STEM].decode(errors="ignore") for stem in stems.to_pylist()], pa.string()
    )
