"""The styles of a job: encoded, unless the root's parts or a bank file have them as they are now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stylize_batch.engine.base import Engine, StyleRequest
from stylize_batch.errors import RowError, UsageError
from stylize_batch.progress import Observer
from stylize_batch.root import Root
from stylize_batch.storage import absolute
from stylize_batch.styles import BankFile, StyleVector, bank_key, put_part, read_bank, read_parts

STYLES_PER_PART = 64
"""Styles encoded by one task and committed in one part, at most."""


class EncodedStyles(NamedTuple):
    """What became of the styles that were asked for.

    Attributes:
        vectors: by URI, in the order asked for; those that failed are missing.
        failures: the reason for each style that failed.
        encoded: how many were encoded now.
        taken: those that a bank file gave.
        changed: those that the root's parts had otherwise, since their file was another when it was encoded.
        seconds: of workers, by stage.
    """

    vectors: dict[str, StyleVector]
    failures: dict[str, RowError]
    encoded: int
    taken: list[StyleVector]
    changed: list[str]
    seconds: Mapping[str, float]

    def counts(self) -> dict[str, int]:
        """Return how many were encoded, taken from a bank file, kept from earlier runs, and failed."""
        kept = len(self.vectors) - self.encoded - len(self.taken)
        return {
            "encoded": self.encoded,
            "from_bank": len(self.taken),
            "kept": kept,
            "failed": len(self.failures),
        }


def encode_styles(
    engine: Engine,
    root: Root,
    uris: Sequence[str],
    key: str,
    observer: Observer,
    offered: Mapping[str, StyleVector],
) -> EncodedStyles:
    """Encode the styles that nobody has or whose file has changed since, committing them in parts.

    Args:
        engine: started.
        root: the parts' root.
        uris: of the styles, none twice.
        key: of the parts; see `bank_key`.
        observer: hears of progress.
        offered: styles of a bank file of the same key, by URI. A worker asks for the version of each, and reads and
            encodes those only that have another by now.
    """
    kept = read_parts(root, key)
    known = {**offered, **kept}
    requests: list[StyleRequest] = []
    # Shared out evenly: of a last style on its own it could not be told whether it or storage is to blame.
    count = -(-len(uris) // STYLES_PER_PART)
    for start in range(count):
        part = list(uris[start::count])
        requests.append(StyleRequest(part, {uri: known[uri].version for uri in part if uri in known}))
    fresh: dict[str, StyleVector] = {}
    failures: dict[str, RowError] = {}
    seconds: Counter[str] = Counter()
    banked = sum(uri in offered for uri in uris)
    observer.phase(f"Encoding styles{f' ({banked} in the bank)' if banked else ''}", len(uris))
    done = 0
    for batch in engine.encode_styles(requests):
        if batch.vectors:
            put_part(root, batch.vectors, key)
        fresh.update({style.uri: style for style in batch.vectors})
        failures.update(batch.failures)
        seconds.update(batch.seconds)
        done += batch.styles
        observer.advance(done, len(failures))
    found = {**known, **fresh}
    vectors = {uri: found[uri] for uri in uris if uri in found and uri not in failures}
    taken = [vector for uri, vector in vectors.items() if vector is offered.get(uri)]
    changed = [
        uri
        for uri, style in fresh.items()
        if uri in kept
        and not np.array_equal(style.vector, kept[uri].vector)  # equal: only its time has changed
    ]
    return EncodedStyles(vectors, failures, len(fresh), taken, changed, seconds)


def open_bank(uri: str, model_digest: str, style_size: int) -> BankFile:
    """Read the bank file of a run.

    Raises:
        UsageError: there is none, it is damaged, or its vectors are of another model or style size.
    """
    bank = read_bank(uri)
    if bank.key != bank_key(model_digest, style_size):
        if bank.model_digest != model_digest:
            raise UsageError(
                f"the style bank {uri} was encoded with another model than this run's; name that --model, or encode "
                "the styles again with this one"
            )
        raise UsageError(
            f"the style bank {uri} holds styles of size {bank.style_size}, --style-size is {style_size}; "
            "give the same, or encode the styles again"
        )
    return bank


def offers(bank: BankFile, uris: Sequence[str], base: str) -> dict[str, StyleVector]:
    """Return what a bank file has of some styles, named as a manifest in the folder `base` names them."""
    held = bank.by_uri()
    found = {uri: held.get(absolute(uri, base)) for uri in uris}
    return {uri: style._replace(uri=uri) for uri, style in found.items() if style is not None}
