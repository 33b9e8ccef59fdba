"""Shared fixtures: small real pictures, manifests made from rows, and the installed command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings
from PIL import Image

import stylize_batch
from stylize_batch.settings import WorkerSettings

# Machines are noisy: no test is timed. Examples are the same in every run, so that a failure can be repeated.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

SAMPLE = Path(__file__).parent.parent / "manifests" / "sample"

Row = dict[str, Any]
MakeManifest = Callable[..., Path]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first, so that two processes that share the files end at about the same time."""
    items.sort(key=lambda item: {"integration", "faults"}.isdisjoint(item.path.parts))


@pytest.fixture(autouse=True)
def no_client_outlives_its_test() -> Iterator[None]:
    """Forget object storage's clients: fsspec keeps them, with a test's address and credentials, in the process."""
    yield
    if s3 := sys.modules.get("stylize_batch.s3"):
        s3.PatientS3.clear_instance_cache()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample pictures, shrunk to a shorter side of 48: `content/*.jpg` and `style/*.jpg`."""
    folder = tmp_path_factory.mktemp("pictures")
    for source in sorted(SAMPLE.rglob("*.jpg")):
        target = folder / source.relative_to(SAMPLE)
        target.parent.mkdir(exist_ok=True)
        with Image.open(source) as image:
            scale = 48 / min(image.size)
            image.resize((round(image.width * scale), round(image.height * scale))).save(target, quality=90)
    return folder


@pytest.fixture
def contents(pictures: Path) -> list[str]:
    """Paths of six small photographs."""
    return [str(path) for path in sorted((pictures / "content").iterdir())]


@pytest.fixture
def styles(pictures: Path) -> list[str]:
    """Paths of five small style images."""
    return [str(path) for path in sorted((pictures / "style").iterdir())]


@pytest.fixture
def make_manifest(tmp_path: Path) -> MakeManifest:
    """Write rows (dictionaries) as a Parquet manifest, with types as in the contract."""
    types = {
        "content": pa.string(),
        "style": pa.list_(pa.string()),
        "style_weights": pa.list_(pa.float32()),
        "alpha": pa.float32(),
        "preserve_color": pa.bool_(),
        "mask": pa.list_(pa.string()),
        "output": pa.string(),
    }

    def make(rows: Sequence[Row], name: str = "pairs.parquet", schema: pa.Schema | None = None) -> Path:
        if schema is None:
            names = list(dict.fromkeys(name for row in rows for name in row))
            inferred = pa.Table.from_pylist(list(rows)).schema if rows else pa.schema([])
            schema = pa.schema([(name, types.get(name) or inferred.field(name).type) for name in names])
        path = tmp_path / name
        pq.write_table(pa.Table.from_pylist(list(rows), schema), path)
        return path

    return make


@pytest.fixture
def pairs(contents: list[str], styles: list[str]) -> list[Row]:
    """Every small photograph with two styles: 12 rows."""
    return [{"content": content, "style": [style]} for content in contents for style in styles[:2]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `stylize-batch` as a user does, in an empty folder."""

    def call(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command(), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


def command() -> str:
    """Return the path of the installed command."""
    return str(Path(sys.executable).parent / "stylize-batch")


def worker_settings(base: Path, *, threads: int | None = None) -> WorkerSettings:
    """Return settings of a worker without a job around it, which writes under a folder."""
    return WorkerSettings(
        root=str(base / "out"), run="run", base=str(base), model="model", size=None, crop=None, style_size=48,
        format="png", quality=90, layout="files", metrics=False, batch_size=None, device="cpu", precision="fp32",
        threads=threads,
    )  # fmt: skip


def read_results(output: Path) -> list[Row]:
    """Read all results of an output root as a user would: one dataset."""
    return pq.read_table(output / "results").to_pylist()


def run_in_process(
    manifest: Path, output: Path, **settings: Any
) -> tuple[stylize_batch.RunSummary, list[Row]]:
    """Run a manifest in this process, with small styles; return the summary and the results."""
    summary = stylize_batch.run(
        str(manifest), output=str(output), in_process=True, device="cpu", style_size=48, **settings
    )
    return summary, read_results(output)


@contextmanager
def cores(count: int) -> Generator[None]:
    """Have torch, and all that asks it, find so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Object storage without credentials, whatever this machine has."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
