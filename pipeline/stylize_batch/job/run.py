"""A run, phase by phase: plan, styles, stylize, finish. Each starts from what earlier runs have committed."""

from __future__ import annotations

import os
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from stylize_batch.annotations import write_annotations
from stylize_batch.engine.base import Engine
from stylize_batch.errors import (
    GaveUpError,
    JobFailedError,
    SystemicError,
    UsageError,
    counted,
    one_line,
    os_errors_as,
)
from stylize_batch.job.build import ensure_manifest
from stylize_batch.job.lease import refuse_others
from stylize_batch.job.planning import examine, planned
from stylize_batch.job.record import RunRecord, load_record, untouched
from stylize_batch.job.reporting import put_report
from stylize_batch.job.spec import JobSpec, allowed_failures, make_spec
from stylize_batch.job.styles import encode_styles, offers, open_bank
from stylize_batch.layout.container import unnamed
from stylize_batch.manifest.shards import largest_first, read_styles
from stylize_batch.manifest.source import categories_of, locate
from stylize_batch.model import container
from stylize_batch.model.architecture import Architecture, style_width
from stylize_batch.process import peak_memory
from stylize_batch.progress import Observer, Silent
from stylize_batch.results import Totals, examples_of_failures, finished_shards
from stylize_batch.root import Root
from stylize_batch.settings import Device, WorkerSettings
from stylize_batch.styles import ROW_GROUP, BankFile, StyleBank, bank_key, bank_of, put_part
from stylize_batch.vanished import vanished, vanished_folder
from stylize_batch.weights import read_model

TOLD = 20
"""Notes that are told at once; the summary has them all."""

NAMED = 5
"""Styles that are named in one note."""


@dataclass
class RunSummary:
    """What a run did; counts and means cover the whole manifest, seconds and rate this run alone.

    Attributes:
        skipped: rows finished by earlier runs, counted in `ok` and `failed` as well.
        seconds: from the start of planning to the last results part.
        images_per_second: pictures made by this run ÷ seconds.
        output: the output root.
        kinds: failed rows by kind.
        examples: some of them by kind, each a line with the photograph and the reason.
        styles: how many were encoded, taken from a bank file, kept from earlier runs, and failed.
        stages: seconds by stage, summed over workers and their threads; `stopwatch` says what each is.
        peak_memory: bytes; of the driver and of the largest worker.
        annotations: files written beside the pictures.
        report_error: why there is no report.html.
        notes: of the manifest and the styles, one line for each thing a user should know of.
        dropped_nodes: nodes of the cluster that were given no more work, and why.
    """

    pairs: int
    ok: int
    failed: int
    skipped: int
    seconds: float
    images_per_second: float
    output: str
    mean_content_loss: float | None
    mean_style_loss: float | None
    kinds: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    styles: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    annotations: list[str] = field(default_factory=list)
    report_error: str | None = None
    notes: list[str] = field(default_factory=list)
    dropped_nodes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object `--json` prints."""
        keys = (
            "pairs", "ok", "failed", "skipped", "seconds", "images_per_second", "output",
            "mean_content_loss", "mean_style_loss",
        )  # fmt: skip
        return {key: getattr(self, key) for key in keys}


def run(
    manifest: str | os.PathLike[str] | None = None,
    *,
    job: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> RunSummary:
    """Stylize every pair of a manifest, `run("pairs.parquet", output="out", size=256)`, or of the one built from a
    dataset, `run(content="photos/", style="paintings/", build={"alpha": "0.5..1"}, output="out")`.

    Args:
        manifest: Parquet file, folder or glob; path or URI.
        job: YAML file with settings; those given directly win.
        settings: see `JobSpec`.

    Raises:
        UsageError: wrong settings, manifest or model; no picture was made.
        GaveUpError: more rows failed than `max_failed` allows.
        JobFailedError: the job could not finish; running it again continues.
    """
    given = settings if manifest is None else {"manifest": manifest, **settings}
    return execute(make_spec(given, job), Silent())


def execute(spec: JobSpec, observer: Observer) -> RunSummary:
    """Run a job; see `run`."""
    model = read_model(spec.resolved_model())
    container.check_model(model)
    root = Root(spec.resolved_output(), run=uuid.uuid4().hex[:12])
    # A list, so that who takes the bank file out is the last to hold it.
    lent = [open_bank(spec.styles, container.digest(model), spec.style_size)] if spec.styles else []
    manifest = spec.resolved_manifest()
    notes: list[str] = []

    def tell(lines: list[str]) -> None:
        notes.extend(lines)
        for line in lines[:TOLD]:
            observer.note(line)

    if spec.content:
        with os_errors_as(UsageError, f"cannot write to the output root {root.uri}"):
            # A manifest of which nothing has been made yet fixes nothing: it may be what has to be mended.
            anew = examine(root) is None or spec.overwrite or untouched(root)
            if anew:  # whoever is at work here needs the manifest to be resumed
                refuse_others(root)
        tell(ensure_manifest(manifest, spec.content, spec.style, spec.build, observer, anew=anew))
    started = time.monotonic()
    source = locate(manifest)
    categories = categories_of(source)
    with ExitStack() as held:
        with os_errors_as(UsageError, f"cannot write to the output root {root.uri}"):
            record = planned(spec, source, root, container.digest(model), held, observer, tell)
        try:
            summary = _work(spec, root, record, model, lent, observer, tell, started)
            summary.notes = notes
            record.state = "finished"
            if spec.layout == "files":
                written = write_annotations(root, record.run, record.shards, spec.size, spec.crop, categories)
                summary.annotations = [root.uri_of(key) for key in written.keys]
                tell(written.notes)
            else:
                spare = unnamed(root, record.run, record.shards)
                _refuse_usurped(root, record)  # or these may be what the other has made
                root.delete(spare)
            # Else the run that did the work says more.
            if summary.skipped < summary.pairs or not record.totals:
                record.totals = asdict(summary)
            _refuse_usurped(root, record)
            record.save(root)
        except SystemicError as error:
            raise JobFailedError(str(error)) from None
        except OSError as error:
            with suppress(OSError):
                _refuse_usurped(root, record)  # whose results would be gone for that reason
            raise JobFailedError(f"cannot use {root.uri}: {error.strerror or error}") from None
        try:
            put_report(root, record)
        except Exception as error:  # nothing about a page of pictures may fail the work, which is kept
            summary.report_error = one_line(f"{type(error).__name__}: {error}")
    root.clear_temporaries()
    return summary


def _work(
    spec: JobSpec,
    root: Root,
    record: RunRecord,
    model: bytes,
    lent: list[BankFile],
    observer: Observer,
    tell: Callable[[list[str]], None],
    started: float,
) -> RunSummary:
    """Do what earlier runs have left to do, and sum up the whole manifest."""
    finished = finished_shards(root, record.run)
    pending = [
        shard
        for shard in range(record.shards)
        if shard not in finished or (spec.retry_failed and finished[shard].failed)
    ]
    totals = Totals()
    redone = set(pending)
    for shard, earlier in finished.items():
        if shard not in redone:
            totals.add(earlier)
    earlier_ok = {shard: earlier.ok for shard, earlier in finished.items()}
    done = skipped = totals.pairs + sum(earlier_ok.get(shard, 0) for shard in pending)
    stages: Counter[str] = Counter()
    style_counts: dict[str, int] = {}
    peak_worker = 0
    dropped: dict[str, str] = {}
    seconds = time.monotonic() - started
    limit = allowed_failures(spec.max_failed, record.pairs)
    _check_failures(totals, limit)
    if pending:
        styles = read_styles(root, record.run)
        width = style_width(cast("Architecture", container.check_model(model)["architecture"]))
        observer.phase("Starting workers", None)
        with _engine(spec, len(styles) * 4 * width, len(pending)) as engine:
            devices = spec.devices or [engine.device]
            engine.start([_worker_settings(spec, root, record, device) for device in devices], model)
            _refuse_usurped(root, record)
            record.save(root)
            bank, style_counts, changed, style_seconds = _encode_styles(
                engine, root, styles, record, spec, lent, observer
            )
            if changed and any(earlier_ok.values()):
                tell([_mixture(changed)])
            stages.update(style_seconds)
            observer.phase("Stylizing", record.pairs, skipped, engine.rows_in_hand)
            reports = engine.run_shards(largest_first(root, pending), bank)
            del bank  # the engine has it
            for report in reports:
                totals.add(report.totals)
                stages.update(report.seconds)
                peak_worker = max(peak_worker, report.peak_memory)
                seconds = time.monotonic() - started
                done += report.totals.pairs - earlier_ok.get(report.shard, 0)
                observer.advance(done, totals.failed)
                _check_failures(totals, limit)
            dropped = engine.dropped
        # What is stored counts: a shard that two workers were at has the results of the last one.
        finished, totals = finished_shards(root, record.run), Totals()
        _refuse_usurped(root, record)
        for stored in finished.values():
            totals.add(stored)
    if totals.pairs != record.pairs or len(finished) != record.shards:
        raise JobFailedError(
            f"the results hold {totals.pairs} of {counted(record.pairs, 'row')} and {len(finished)} of "
            f"{counted(record.shards, 'part')}; please report this"
        )
    _check_failures(totals, limit)
    return RunSummary(
        pairs=record.pairs,
        ok=totals.ok,
        failed=totals.failed,
        skipped=skipped,
        seconds=round(seconds, 3),
        images_per_second=round((totals.ok - sum(earlier_ok.values())) / seconds, 3),
        output=root.uri,
        mean_content_loss=totals.content_loss / totals.measured if totals.measured else None,
        mean_style_loss=totals.style_loss / totals.measured if totals.measured else None,
        kinds=dict(totals.kinds.most_common()),
        examples=examples_of_failures(root, record.run, finished),
        styles=style_counts,
        stages={stage: round(value, 3) for stage, value in stages.most_common()},
        peak_memory={
            "driver": peak_memory(),
            "worker": peak_worker,
        },
        dropped_nodes=dropped,
    )


def _refuse_usurped(root: Root, record: RunRecord) -> None:
    """Raise JobFailedError when another run has begun anew under the root since this one began."""
    now = load_record(root)
    if now is None or now.run != record.run:
        raise JobFailedError(f"another run has begun anew at {root.uri} meanwhile, and this one ends")


def _worker_settings(spec: JobSpec, root: Root, record: RunRecord, device: Device) -> WorkerSettings:
    """Say what workers on a device need, and note it in the record."""
    precision = spec.precision
    if precision == "auto":
        precision = "fp16" if device == "cuda" else "fp32"
    record.precision[device] = precision
    return WorkerSettings(
        root=root.uri,
        run=record.run,
        base=record.base,
        model=spec.model.rsplit("/", 1)[-1].removesuffix(".safetensors"),
        size=spec.size,
        crop=spec.crop,
        style_size=spec.style_size,
        format=spec.format,
        quality=spec.quality,
        layout=spec.layout,
        metrics=spec.metrics,
        batch_size=spec.batch_size,
        device=device,
        precision=precision,
    )


@contextmanager
def _engine(spec: JobSpec, bank_bytes: int, shards: int) -> Generator[Engine]:
    if spec.in_process:
        from stylize_batch.engine.in_process import InProcessEngine

        engine: Engine = InProcessEngine()
    else:
        from stylize_batch.engine.on_ray import RayEngine

        engine = RayEngine(spec.address, spec.actors, spec.gpus_per_actor, bank_bytes, shards)
    try:
        yield engine
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # whoever keeps the error would keep the engine's inside
        raise
    finally:
        engine.close()


def _encode_styles(
    engine: Engine,
    root: Root,
    uris: list[str],
    record: RunRecord,
    spec: JobSpec,
    lent: list[BankFile],
    observer: Observer,
) -> tuple[StyleBank, dict[str, int], list[str], Mapping[str, float]]:
    """Encode the styles that nobody has; return all of them in one piece, their numbers, those that have changed since an
    earlier run encoded them, and seconds by stage.

    What a bank file lent is committed, too.

    Raises:
        SystemicError: not one style is there, nor is their folder.
    """
    key = bank_key(record.model_digest, spec.style_size)
    offered = offers(lent.pop(), uris, record.base) if lent else {}
    found = encode_styles(engine, root, uris, key, observer, offered)
    if uris and all(uri in found.failures and found.failures[uri].kind == "NotFound" for uri in uris):
        folder = vanished_folder(uris, record.base)
        if folder:
            raise vanished(folder)
    for start in range(0, len(found.taken), ROW_GROUP):
        put_part(root, found.taken[start : start + ROW_GROUP], key)
    bank = bank_of(found.vectors.values(), found.failures)
    return bank, found.counts(), found.changed, found.seconds


def _mixture(changed: list[str]) -> str:
    """Say which styles have changed between the pictures of earlier runs and those of this one."""
    names = ", ".join(changed[:NAMED]) + (", …" if len(changed) > NAMED else "")
    return (
        f"{counted(len(changed), 'style has', 'styles have')} changed since an earlier run ({names}): pictures that it made stay as they are; "
        "--overwrite makes all anew"
    )


def _check_failures(totals: Totals, limit: int) -> None:
    if totals.failed > limit:
        kinds = ", ".join(f"{count} {kind}" for kind, count in totals.kinds.most_common())
        raise GaveUpError(
            f"{counted(totals.failed, 'row')} failed ({kinds}), --max-failed allows {limit}; what is done is kept: `stylize-batch report` "
            "shows some of them, --retry-failed tries them again, and a higher --max-failed goes on"
        )
