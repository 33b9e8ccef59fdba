"""JobSpec: all settings of a run, validated once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stylize_batch.errors import UsageError
from stylize_batch.images.encode import Format
from stylize_batch.location import lies_in
from stylize_batch.manifest.pairing import Pairing, Real, Whole
from stylize_batch.manifest.reach import IN_OUTPUT, refuse_credentials
from stylize_batch.model import container
from stylize_batch.settings import Device, Layout, Precision
from stylize_batch.storage import absolute, is_uri

FIXED = (
    "model", "size", "crop", "style_size", "format", "quality", "layout", "metrics", "precision", "limit", "shard_pairs",
)  # fmt: skip
"""Settings an output root keeps for good, beside the manifest; the others may change from run to run."""

LOCATIONS = ("manifest", "content", "style", "output", "model", "styles")
"""Settings that are paths or URIs."""

BUILD_LOCATIONS = ("style_map", "content_root")
"""The same, below `build`."""


class JobSpec(BaseModel):
    """Settings of a run, with the command line's names (`-` as `_`).

    Attributes:
        manifest: Parquet file, folder or glob; path or URI.
        content: what to build the manifest of, in its place: folder, list or COCO annotations; path or URI.
        style: the same, of style images.
        build: how they are paired.
        output: root the results are put under; path or URI.
        model: a shipped model's name, or the path or URI of a safetensors file.
        styles: bank file that styles are taken from where it has them as they are; none by default.
        size: length of the content's shorter side, pixels; None keeps the content's size.
        crop: side of the centre crop after resizing, pixels.
        style_size: length of the style's shorter side, pixels.
        format: of the pictures.
        quality: of JPEG and WebP, 1..100.
        layout: how pictures lie under the root: one file each, or a shard's together in a WebDataset tar or in a
            Parquet file.
        metrics: whether the losses are measured.
        batch_size: pairs per batch; None chooses.
        actors: workers, a number or one by device (`cuda=8,cpu=4`, or a mapping); None chooses.
        gpus_per_actor: part of a GPU each worker on one takes; None gives it a whole one.
        device: where the network runs.
        precision: of the network; auto is fp32 on a CPU and fp16 on a GPU, each on its own where there are both.
        address: of a Ray cluster; None starts Ray on this machine.
        in_process: run in this process, without Ray.
        shard_pairs: pairs per shard; None chooses about a minute of work.
        retry_failed: redo the failed rows of earlier runs.
        overwrite: delete what an earlier run left under the root, and start anew.
        max_failed: failed rows allowed, a number or a percentage (`"2%"`).
        limit: only the first rows of the manifest.
        as_json: print one JSON object; `json` in a job file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True)

    manifest: str = ""
    content: str = ""
    style: str = ""
    build: Pairing = Pairing()
    output: str = ""
    model: str = container.DEFAULT
    styles: str = ""
    size: Whole | None = Field(None, ge=9, le=16384)
    crop: Whole | None = Field(None, ge=9, le=16384)
    style_size: Whole = Field(512, ge=9, le=16384)
    format: Format = "jpeg"
    quality: Whole = Field(95, ge=1, le=100)
    layout: Layout = "files"
    metrics: bool = True
    batch_size: Whole | None = Field(None, ge=1)
    actors: int | dict[Device, int] | None = None
    gpus_per_actor: Real | None = Field(None, ge=0.0001, le=1)  # Ray knows no smaller part
    device: Literal["auto", Device] = "auto"
    precision: Literal["auto", Precision] = "auto"
    address: str | None = None
    in_process: bool = False
    shard_pairs: Whole | None = Field(None, ge=1)
    retry_failed: bool = False
    overwrite: bool = False
    max_failed: str = "100%"
    limit: Whole | None = Field(None, ge=1)
    as_json: bool = Field(False, alias="json")

    @field_validator("batch_size", "actors", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @field_validator("actors", mode="before")
    @classmethod
    def _checked_actors(cls, value: Any) -> Any:
        pools = value
        if isinstance(value, str) and "=" in value:
            parts = [part.strip().partition("=") for part in value.split(",")]
            pools = {device: count for device, _, count in parts}
            if len(pools) < len(parts):
                raise ValueError(f"{value} names a device twice")
        counts = pools if isinstance(pools, dict) else {"cpu": pools}
        if value is not None and not (
            counts
            and set(counts) <= set(get_args(Device))
            and all(re.fullmatch(r"0*[1-9]\d{0,3}", str(count)) for count in counts.values())
        ):
            raise ValueError(
                f"{value}: give a number (8), numbers by device (cuda=8,cpu=4), each from 1 to 9999, or auto"
            )
        return pools

    @field_validator("max_failed", mode="before")
    @classmethod
    def _checked_max_failed(cls, value: Any) -> str:
        text = str(value)
        if not re.fullmatch(r"\d+(\.\d+)?%|\d+", text) or (text.endswith("%") and float(text[:-1]) > 100):
            raise ValueError("give a number of rows (20) or a percentage (2%), up to 100%")
        return text

    @model_validator(mode="after")
    def _consistent(self) -> JobSpec:
        self._check_sources()
        if self.size is not None and self.crop is not None and self.crop > self.size:
            raise ValueError(f"--crop {self.crop} is larger than --size {self.size}")
        if self.in_process and self.address:
            raise ValueError("--in-process and --address exclude each other")
        self._check_workers()
        if self.layout == "webdataset" and "::" in self.resolved_output():
            raise ValueError(
                "--layout webdataset: what is in a tar cannot be named where its path holds '::'"
            )
        try:
            refuse_credentials(
                **{name: getattr(self.build, name) for name in BUILD_LOCATIONS},
                **{name: getattr(self, name) for name in LOCATIONS},
            )
        except UsageError as error:
            raise ValueError(str(error)) from None
        for place in (self.resolved_output(), *(getattr(self, name) for name in LOCATIONS)):
            if not _is_unicode(place) or "\0" in place:
                raise ValueError(
                    f"the path {place!a} is not UTF-8 or has a NUL in it, so that results cannot name it; rename it"
                )
        self._check_overlap()
        in_memory = any(getattr(self, name).startswith("memory://") for name in LOCATIONS)
        if in_memory and not self.in_process:
            raise ValueError("memory:// lives in one process; add --in-process or use another storage")
        return self

    def _check_workers(self) -> None:
        if self.in_process and self.actors not in (None, 1):
            raise ValueError("--in-process runs one worker; leave --actors out")
        if self.in_process and self.gpus_per_actor is not None:
            raise ValueError("--in-process runs one worker; leave --gpus-per-actor out")
        if isinstance(self.actors, dict) and self.device != "auto" and [*self.actors] != [self.device]:
            raise ValueError(
                f"--device {self.device} and --actors name different devices; leave --device out"
            )
        if self.gpus_per_actor is not None and self.devices and "cuda" not in self.devices:
            raise ValueError("--gpus-per-actor is for workers on GPUs, and these are on CPUs; leave it out")

    @property
    def devices(self) -> list[Device]:
        """Where the network is to run; empty leaves it to what there is."""
        if isinstance(self.actors, dict):
            return list(self.actors)
        return [] if self.device == "auto" else [self.device]

    def _check_sources(self) -> None:
        if not (self.manifest or self.content or self.style):
            raise ValueError("no manifest: name one, or --content and --style to build it of")
        if self.manifest and (self.content or self.style):
            raise ValueError("a manifest and --content with --style exclude each other")
        if self.manifest and self.build != Pairing():
            raise ValueError(
                "build: these settings make a manifest of --content and --style; with one that is there, leave them out"
            )
        if not self.manifest and not (self.content and self.style):
            raise ValueError("--content and --style go together")

    def _check_overlap(self) -> None:
        """Refuse to list the run's own pictures, and to replace or delete what the run is of."""
        root = self.resolved_output()
        for name in ("content", "style"):
            if getattr(self, name) and lies_in(root, getattr(self, name)):
                raise ValueError(
                    f"the output root {root} lies in --{name}, where it would be listed too; choose another --output"
                )
        sources = {"--content": self.content, "--style": self.style}
        for name in BUILD_LOCATIONS:
            sources[f"build.{name.replace('_', '-')}"] = getattr(self.build, name)
        for name, place in sources.items():
            if place and lies_in(place, root):
                raise ValueError(f"{name} {place} {IN_OUTPUT}")

    def resolved_manifest(self) -> str:
        """Return the manifest; one that is built is put beside the output root, with its name."""
        return self.manifest or f"{self.resolved_output().rstrip('/')}.parquet"

    def resolved_output(self) -> str:
        """Return the output root; by default `<name>-stylized` in the working directory, for the name of the manifest
        or else of the content."""
        if self.output:
            return absolute(self.output)
        name = (self.manifest or absolute(self.content)).rstrip("/").rsplit("/", 1)[-1]
        stem = re.sub(r"[*?\[\]]+", "", name.removesuffix(".parquet")).strip("-_.") or "manifest"
        return absolute(f"{stem}-stylized")

    def resolved_model(self) -> str:
        """Return the model with a relative path made absolute, so that it names the same file everywhere."""
        is_path = not is_uri(self.model) and (self.model.endswith(".safetensors") or "/" in self.model)
        return absolute(self.model) if is_path else self.model


def allowed_failures(max_failed: str, pairs: int) -> int:
    """Return how many of so many rows may fail, by `JobSpec.max_failed`."""
    if max_failed.endswith("%"):
        return int(float(max_failed[:-1]) / 100 * pairs + 1e-9)
    return int(max_failed)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def make_spec(settings: dict[str, Any], job_file: str | os.PathLike[str] | None = None) -> JobSpec:
    """Build a JobSpec from a job file's settings and those given directly, which win.

    Args:
        settings: given directly.
        job_file: path of a YAML file, or its content as one `{…}`, for where there is no file.

    Raises:
        UsageError: a setting is unknown or out of range, or the file cannot be read.
    """
    of_file = _read_job_file(os.fspath(job_file)) if job_file else {}
    # Where the pairs come from is said in one of two ways; the one given directly takes the place of the file's.
    if "manifest" in settings or "content" in settings:
        for name in ("content", "style", "build") if "manifest" in settings else ("manifest",):
            of_file.pop(name, None)
    try:
        return JobSpec.model_validate(_plain({**of_file, **settings}))
    except ValidationError as error:
        first = error.errors()[0]
        setting, *inner = (str(part) for part in first["loc"]) if first["loc"] else ("",)
        # Elsewhere, what follows are branches of the setting's type.
        name = (
            ".".join((setting, *inner)) if setting == "build" else {"as_json": "json"}.get(setting, setting)
        )
        if first["type"] == "extra_forbidden":
            fields = (Pairing if name.startswith("build.") else JobSpec).model_fields
            known = (field.alias or own for own, field in fields.items())
            raise UsageError(f"unknown setting '{name}'; known: {', '.join(known)}") from None
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        flag = f"{'' if name.startswith('build') else '--'}{name.replace('_', '-')}: " if name else ""
        raise UsageError(f"{flag}{message}") from None


class _OnceEach(yaml.SafeLoader):
    """Refuses settings that are given twice, of which YAML itself keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value).replace("-", "_") for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"the job file gives {name} twice; leave one of the lines out")
        return super().construct_mapping(node, deep)


def _read_job_file(path: str) -> dict[str, Any]:
    try:
        text = path if path.startswith("{") else Path(path).read_text(encoding="utf-8")
        settings = yaml.load(text, _OnceEach)  # noqa: S506 (a safe loader)
    except OSError as error:
        raise UsageError(f"cannot read the job file {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a day 45, !!int "abc", deep nesting
        raise UsageError(f"the job file {path} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise UsageError(f"the job file {path} must be a list of `setting: value` lines")
    found = _at_home(settings)
    if isinstance(found.get("build"), dict):
        found["build"] = _at_home(found["build"])
    if "no_metrics" in found:
        if not isinstance(found["no_metrics"], bool):
            raise UsageError(
                f"the job file {path}: no-metrics is {found['no_metrics']!r}, it must be true or false"
            )
        found["metrics"] = not found.pop("no_metrics")
    if "json" in found:
        found["as_json"] = found.pop("json")
    return found


def _at_home(settings: dict[Any, Any]) -> dict[str, Any]:
    """Return settings of a job file with `~/` written out in paths, as a shell does on the command line."""
    return {
        name: os.path.expanduser(value)  # noqa: PTH111 (`Path` raises where there is no home)
        if name in (*LOCATIONS, *BUILD_LOCATIONS) and isinstance(value, str) and value.startswith("~/")
        else value
        for name, value in _with_underscores(settings).items()
    }


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a file and of Python code as they are checked: paths are text, and names have underscores."""
    found = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in _with_underscores(settings).items()
    }
    if isinstance(found.get("build"), dict):
        found["build"] = _plain(found["build"])
    return found


def _with_underscores(settings: dict[Any, Any]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for key, value in settings.items()}
