"""run.json: what an output root holds and how far it has come."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib import metadata
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from stylize_batch.errors import UsageError, told
from stylize_batch.job.spec import FIXED, JobSpec
from stylize_batch.location import lies_in
from stylize_batch.root import FOLDERS, RECORD, Root
from stylize_batch.settings import Device, Precision

KEY = RECORD

REPORT = "report.html"
FILES = (REPORT, "annotations.json")
"""Files that a run writes besides those under `FOLDERS`, and that are deleted with these before a new plan. run.json and
lease.json stay: they belong to the run that makes it."""


class RunRecord(BaseModel):
    """The content of run.json.

    Attributes:
        run: identity of the run, stored in every results part.
        state: `erasing` until what an earlier run wrote is gone, `planning` until the plan is complete.
        fixed: settings the root keeps for good.
        settings: all settings of the last run.
        model_digest: BLAKE2b-128 of the model file.
        manifest_fingerprint: BLAKE2b-128 of the manifest's bytes.
        base: folder that relative image paths start from.
        home: the output root as runs reach it, with a `/` at its end.
        precision: of the network, by the devices it has run on.
        shard_pairs: pairs per shard, as planned.
        pairs: rows of the manifest.
        shards: files under `plan/`.
        chroma_subsampling: of JPEG pictures.
        versions: of Python and the packages that decide pixels.
        totals: of the last run, once it ended.
    """

    model_config = ConfigDict(extra="forbid")

    run: str
    state: Literal["erasing", "planning", "running", "finished"]
    fixed: dict[str, Any]
    settings: dict[str, Any]
    model_digest: str
    manifest_fingerprint: str
    base: str
    home: str
    precision: dict[Device, Precision] = {}
    shard_pairs: int
    pairs: int = 0
    shards: int = 0
    chroma_subsampling: str | None = None
    versions: dict[str, str] = {}
    totals: dict[str, Any] = {}

    def save(self, root: Root) -> None:
        """Write run.json."""
        root.put(KEY, (self.model_dump_json(indent=2) + "\n").encode())

    def change(self, spec: JobSpec, model_digest: str, fingerprint: str, base: str, home: str) -> str | None:
        """Name the first thing that is fixed and differs from this record, and what to do; None if nothing does."""
        advice = "choose another --output, or start anew with --overwrite"
        if home != self.home:
            return f"the results name their pictures at {self.home}; move them back there, {advice}"
        if fingerprint != self.manifest_fingerprint:
            return f"the manifest has changed since {KEY} was written; {advice}"
        if not (lies_in(base, self.base) and lies_in(self.base, base)):
            return f"the manifest's relative paths started from {self.base} and now start from {base}; move it back, {advice}"
        if model_digest != self.model_digest:
            before = self.settings.get("model")
            if before != spec.model:
                return f"model was {before} for this output root and is now {spec.model}; {advice}"
            return f"the model's file has changed since {KEY} was written; {advice}"
        now = fixed_settings(spec)
        for name, value in now.items():
            before = self.fixed.get(name)
            if name == "shard_pairs" and value in (None, self.shard_pairs):
                continue
            if value != before:
                if name == "metrics":
                    name = "--no-metrics"
                    before, value = ("left out" if measured else "given" for measured in (before, value))
                return f"{name} was {told(before)} for this output root and is now {told(value)}; {advice}"
        return None


def fixed_settings(spec: JobSpec) -> dict[str, Any]:
    """Return the settings an output root keeps for good (the manifest and the model count by their bytes)."""
    return {name: getattr(spec, name) for name in FIXED if name != "model"}


def load_record(root: Root) -> RunRecord | None:
    """Read run.json; None if there is none.

    Raises:
        UsageError: it is not one of ours.
    """
    try:
        data = root.read(KEY)
    except FileNotFoundError:
        return None
    try:
        return RunRecord.model_validate(cast("dict[str, Any]", json.loads(data)))
    except (ValueError, RecursionError):
        raise UsageError(
            f"{root.uri_of(KEY)} was not written by this version; choose another --output"
        ) from None


def untouched(root: Root) -> bool:
    """Whether nothing has been made of a plan yet, so that another may take its place."""
    made = (root.walk(prefix) for prefix in FOLDERS if prefix != "plan")
    return all(next(keys, None) is None for keys in made)


def erase(root: Root) -> None:
    """Delete everything an earlier run wrote under its root except run.json, and nothing else.

    run.json must say `erasing` by then, so that a run killed meanwhile is begun anew.
    """
    for prefix in FOLDERS:
        root.clear(prefix)
    root.delete([key for key in FILES if root.exists(key)])


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed: a run in one process needs no Ray."""
    found: dict[str, str] = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
