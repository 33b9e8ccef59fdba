"""The plan of a run: the one that the output root has, or a new one where it has none or may have another."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from stylize_batch import __version__
from stylize_batch.errors import UsageError
from stylize_batch.images.encode import FULL_CHROMA_QUALITY
from stylize_batch.job import record as records
from stylize_batch.job.lease import lease
from stylize_batch.job.record import RunRecord, load_record
from stylize_batch.job.spec import JobSpec
from stylize_batch.location import lies_in
from stylize_batch.manifest.partition import Partition, check_and_partition
from stylize_batch.manifest.plan import usual_shard_pairs, write_plan
from stylize_batch.manifest.reach import IN_OUTPUT
from stylize_batch.manifest.schema import misspellings
from stylize_batch.manifest.shards import is_whole
from stylize_batch.manifest.source import Source, columns_of, fingerprint, unread_partitions
from stylize_batch.manifest.spill import temporary_folder
from stylize_batch.progress import Observer
from stylize_batch.root import FOLDERS, LEASE, Root


def planned(
    spec: JobSpec,
    source: Source,
    root: Root,
    model_digest: str,
    held: ExitStack,
    observer: Observer,
    tell: Callable[[list[str]], None],
) -> RunRecord:
    """Return the root's plan, made now if there is none; from then on `held` holds the root's lease.

    Every row is checked before anything is written, the lease included. A plan of which nothing has been made yet
    fixes nothing: with other settings, another takes its place.

    Raises:
        UsageError: the manifest has a mistake, the settings are not those of the root's plan, another run is at work there,
            or it cannot be used.
        OSError: the root cannot be read or written.
    """
    replaced = [root.uri_of(folder) for folder in FOLDERS]
    for file in source.files:
        if any(lies_in(file, folder) for folder in replaced):
            raise UsageError(f"the manifest {file} {IN_OUTPUT}")
    if load_record(root) is None and any(lies_in(file, root.uri) for file in source.files):
        raise UsageError(f"the output root {root.uri} holds the manifest; choose another --output")
    manifest = fingerprint(source)

    def look() -> tuple[RunRecord | None, bool]:
        """Return what the root says of itself, and whether another plan takes the place of that one's."""
        record = examine(root)
        if record is None or spec.overwrite:
            return record, True
        change = record.change(spec, model_digest, manifest, source.base, root.uri_of(""))
        if change and not records.untouched(root):
            raise UsageError(change)
        return record, change is not None

    columns = columns_of(source)
    tell([*misspellings(columns), *unread_partitions(source, columns)])
    with temporary_folder() as folder:

        def check(*, empty: bool) -> Partition:
            observer.phase("Checking the manifest", None)
            # In an empty root there is nothing to lose, and no need to look at every row's folder.
            kept = [] if empty else replaced
            return check_and_partition(source, Path(folder), spec.format, spec.limit, kept)

        record, anew = look()
        partition = check(empty=record is None) if _lacks_plan(root, record, anew) else None
        held.enter_context(lease(root, uuid.uuid4().hex))
        root.clear_temporaries()
        record, anew = look()  # again: another run may just have ended
        if record is None or _lacks_plan(root, record, anew):
            partition = partition or check(empty=record is None)
            begun = None if record is None or record.state == "erasing" or anew else record
            there = record is not None
            return _plan(spec, partition, source, root, model_digest, manifest, begun, erasing=there)
    record.settings, record.base = spec.model_dump(), source.base
    record.state = "running"
    record.save(root)
    return record


def examine(root: Root) -> RunRecord | None:
    """Return what an output root says of itself; None for an empty one.

    Raises:
        UsageError: it holds something, and no run.json of ours.
    """
    record = load_record(root)
    if record is None and not root.empty(but=(LEASE,)):
        raise UsageError(
            f"{root.uri} is not empty and holds no {records.KEY}; choose another --output or empty it yourself"
        )
    return record


def _lacks_plan(root: Root, record: RunRecord | None, anew: bool) -> bool:
    if record is None or anew or record.state in ("erasing", "planning"):
        return True
    return record.state == "running" and not is_whole(root, record.shards, record.run)


def _plan(
    spec: JobSpec,
    partition: Partition,
    source: Source,
    root: Root,
    model_digest: str,
    manifest: str,
    begun: RunRecord | None,
    *,
    erasing: bool,
) -> RunRecord:
    """Write run.json, and the plan in place of whatever was there.

    A plan that was begun and not completed, or has lost files, is made again under its own identity, and nothing is
    erased: should the run that began it be alive after all, both make the same.
    """
    shard_pairs = (begun or spec).shard_pairs or usual_shard_pairs(partition.pairs, gpus=_on_gpus(spec))
    record = RunRecord(
        run=begun.run if begun else uuid.uuid4().hex,
        state="erasing" if erasing and not begun else "planning",
        fixed=records.fixed_settings(spec),
        settings=spec.model_dump(),
        model_digest=model_digest,
        manifest_fingerprint=manifest,
        base=source.base,
        home=root.uri_of(""),
        shard_pairs=shard_pairs,
        chroma_subsampling=_chroma(spec),
        versions={
            "python": platform.python_version(),
            "stylize-batch": __version__,
            **records.installed("torch", "numba", "pillow", "ray"),
        },
    )
    record.save(root)
    if record.state == "erasing":
        records.erase(root)
        record.state = "planning"
        record.save(root)
    record.shards = write_plan(partition, root, shard_pairs, record.run)
    record.pairs, record.state = partition.pairs, "running"
    record.save(root)
    return record


def _on_gpus(spec: JobSpec) -> bool:
    """Whether GPUs alone will do the work, as far as can be said before Ray has started."""
    if spec.in_process and spec.device == "auto":
        from stylize_batch.model.device import usable_device  # brings torch

        return usable_device("auto").type == "cuda"
    return spec.devices == ["cuda"]


def _chroma(spec: JobSpec) -> str | None:
    if spec.format != "jpeg":
        return None
    return "4:4:4" if spec.quality >= FULL_CHROMA_QUALITY else "4:2:0"
