"""A style bank file: the styles of a source, encoded once for many runs and for training."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stylize_batch.errors import JobFailedError, RowError, UsageError
from stylize_batch.job.lease import lease
from stylize_batch.job.styles import EncodedStyles, encode_styles
from stylize_batch.manifest.collect import collect
from stylize_batch.manifest.items import URI
from stylize_batch.manifest.reach import reach, refuse_credentials
from stylize_batch.model import container
from stylize_batch.progress import Observer
from stylize_batch.root import Root
from stylize_batch.settings import Device, WorkerSettings
from stylize_batch.storage import absolute, filesystem, kind
from stylize_batch.styles import BankFile, StyleVector, bank_key, read_bank, write_bank
from stylize_batch.weights import read_model


@dataclass
class Encoded:
    """What a bank file was made of.

    Attributes:
        output: the file.
        styles: in it.
        encoded: of them, now; the others were as an earlier call had found them.
        dropped: styles that the file held before, and that are not of the source.
        failures: why styles are not in it.
        notes: one line for each thing a user should know of the source.
        problems: one line for each thing that was there and could not be read.
    """

    output: str
    styles: int
    encoded: int
    dropped: int
    failures: dict[str, RowError]
    notes: list[str]
    problems: list[str]


def encode(
    source: str,
    output: str,
    *,
    model: str = container.DEFAULT,
    style_size: int = 512,
    device: Device | Literal["auto"] = "auto",
    unpack: str | None = None,
    observer: Observer,
) -> Encoded:
    """Encode the styles of a source, in float32, and write them as one bank file, whole or not at all.

    An existing bank file gives the styles whose image is as it was, and keeps none that are not of the source. What
    an interrupted call had encoded is in `<output>.parts/`, and the next one goes on from there.

    Args:
        source: folder, list or archives; see `collect`.
        output: path or URI of the bank file; styles below its folder are named relative to it.
        model: a shipped model's name, or the path or URI of a model file.
        style_size: length of the style's shorter side, pixels.
        device: where the network runs.
        unpack: folder or URI that archives are extracted to.
        observer: hears of progress.

    Raises:
        UsageError: the source, the model or a setting cannot be used, or what is at `output` is no bank file, or one of
            another model or style size.
        JobFailedError: it could not be done to the end; repeating the call goes on.
    """
    if not output.endswith(".parquet"):
        raise UsageError(f"-o {output}: a style bank's name ends in .parquet")
    refuse_credentials(styles=source, output=output, model=model, unpack=unpack)
    data = read_model(model)
    container.check_model(data)
    key = bank_key(container.digest(data), style_size)
    before = _existing(output, key)
    with tempfile.TemporaryDirectory(prefix="stylize-batch-encode-", ignore_cleanup_errors=True) as folder:
        unpacked = Root(unpack) if unpack else None
        listed = collect(source, "style", Path(folder), unpacked=unpacked, observer=observer)
        uris = list(dict.fromkeys(uri for table in listed.tables() for uri in table[URI].to_pylist()))
    _refuse_unreachable(uris, source)
    held = before.by_uri() if before is not None else {}
    with _parts(absolute(output)) as root:
        found = _encode(root, data, style_size, device, uris, key, held, observer)
        vectors = list(found.vectors.values())
        if not vectors:
            first = next(iter(found.failures.values()))
            raise UsageError(f"no style of {source} can be encoded; {first}")
        if before is None or found.encoded or list(found.vectors) != before.styles:
            write_bank(output, vectors, key)
        root.delete(root.list("styles"))
    return Encoded(
        output=absolute(output),
        styles=len(vectors),
        encoded=found.encoded,
        dropped=len(held.keys() - set(uris)),
        failures=found.failures,
        notes=listed.notes,
        problems=listed.problems,
    )


def _encode(
    root: Root,
    model: bytes,
    style_size: int,
    device: Device | Literal["auto"],
    uris: list[str],
    key: str,
    held: dict[str, StyleVector],
    observer: Observer,
) -> EncodedStyles:
    from stylize_batch.engine.in_process import InProcessEngine  # brings torch

    engine = InProcessEngine()
    settings = WorkerSettings(
        root=root.uri,
        run="",
        base="",
        model="",
        size=None,
        crop=None,
        style_size=style_size,
        format="jpeg",
        quality=95,
        layout="files",
        metrics=False,
        batch_size=None,
        device=engine.device if device == "auto" else device,
        precision="fp32",
    )
    engine.start([settings], model)
    try:
        return encode_styles(engine, root, uris, key, observer, held)
    finally:
        engine.close()


def _existing(output: str, key: str) -> BankFile | None:
    """Return the bank file that is to be replaced.

    Raises:
        UsageError: something else is there, or a bank of another key, which runs and jobs may rely on.
    """
    fs, path = filesystem(absolute(output))
    try:
        found = kind(fs, path)
    except Exception as error:
        raise UsageError(f"cannot use {output}: {error}") from None
    if found == "directory":
        raise UsageError(f"-o {output} is a folder; name a file")
    if found is None:
        return None
    bank = read_bank(output)
    if bank.key != key:
        with_what = "another model"
        if bank.model_digest == key.rpartition("-")[0]:
            with_what = f"--style-size {bank.style_size}"
        raise UsageError(
            f"the style bank {output} was encoded with {with_what}; choose another -o, or delete it to make it anew"
        )
    return bank


@contextmanager
def _parts(output: str) -> Generator[Root]:
    """Hold the folder of what is encoded until the bank file is written; it goes when it is empty."""
    root = Root(f"{output}.parts", run="encode")
    started = False
    try:
        with lease(root, uuid.uuid4().hex):
            started = True
            try:
                yield root
            finally:
                root.clear_temporaries()
    except OSError as error:
        failed = JobFailedError if started else UsageError
        raise failed(f"cannot write the style bank {output}: {error.strerror or error}") from None
    finally:
        if root.local:
            for folder in (Path(root.uri_of("styles")), Path(root.uri_of("styles")).parent):
                with suppress(OSError):  # holds what the next call goes on from
                    folder.rmdir()


def _refuse_unreachable(uris: list[str], source: str) -> None:
    """Refuse what a manifest's rows may not name either: a list of styles may come from elsewhere, too."""
    allowed = reach("")
    for uri in uris:
        if reason := allowed.refusal(uri):
            raise UsageError(f"{source}: style {uri[:200]!r} {reason}")
