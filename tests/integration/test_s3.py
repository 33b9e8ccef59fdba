"""The main job with everything on a real S3 server: manifest, pictures, styles, model and output."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs

from stylize_batch.model import container
from tests.conftest import Cli, MakeManifest
from tests.integration.s3 import BUCKET, READER, S3Server, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        client(running).mkdir(BUCKET)
        yield running


def client(server: S3Server) -> s3fs.S3FileSystem:
    env = server.env()
    return s3fs.S3FileSystem(
        endpoint_url=server.endpoint,
        key=env["AWS_ACCESS_KEY_ID"],
        secret=env["AWS_SECRET_ACCESS_KEY"],
        use_listings_cache=False,
        skip_instance_cache=True,
    )


@pytest.fixture
def manifest(
    server: S3Server, make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> str:
    """A manifest on S3, relative to which its pictures lie; one picture is missing."""
    fs, base = client(server), f"{BUCKET}/{tmp_path.name}"
    for path in (*contents[:3], *styles[:2]):
        fs.put_file(path, f"{base}/in/{Path(path).parent.name}/{Path(path).name}")
    rows = [
        {"content": f"content/{Path(content).name}", "style": [f"style/{Path(style).name}"]}
        for content in contents[:4]
        for style in styles[:2]
    ]
    fs.pipe_file(f"{base}/in/pairs.parquet", make_manifest(rows).read_bytes())
    return f"s3://{base}/in/pairs.parquet"


@pytest.mark.parametrize("engine", [["--in-process"], []], ids=["in-process", "ray"])
def test_the_whole_job_runs_on_object_storage_and_resumes(
    server: S3Server, manifest: str, cli: Cli, engine: list[str]
) -> None:
    fs = client(server)
    base = manifest.removesuffix("/in/pairs.parquet")
    model = f"{base}/model.safetensors"
    fs.pipe_file(model, container.builtin_bytes(container.DEFAULT))
    arguments = (
        "run",
        manifest,
        "-o",
        f"{base}/out",
        "--model",
        model,
        "--style-size",
        48,
        "--json",
        *engine,
    )
    first = cli(*arguments, env=server.env())
    assert first.returncode == 3, first.stderr
    summary = json.loads(first.stdout)
    assert (summary["pairs"], summary["ok"], summary["failed"]) == (8, 6, 2)
    part = fs.find(f"{base}/out/results")[0]
    fs.rm(part)
    again = cli(*arguments, env=server.env())
    assert again.returncode == 3, again.stderr
    assert 0 < json.loads(again.stdout)["skipped"] < 8

    results = pq.read_table(f"{base.removeprefix('s3://')}/out/results", filesystem=fs).to_pylist()
    assert len({row["pair_id"] for row in results}) == len(results) == 8
    for row in results:
        if row["status"] == "ok":
            assert row["output"].startswith("s3://")
            assert fs.cat_file(row["output"])[:2] == b"\xff\xd8"
        else:
            assert row["error"].startswith("NotFound: s3://")
    assert not [key for key in fs.find(f"{base}/out") if ".tmp" in key]


def test_an_identity_that_may_not_write_is_refused_before_work_starts(
    server: S3Server, manifest: str, cli: Cli
) -> None:
    output = manifest.removesuffix("/in/pairs.parquet") + "/forbidden"
    done = cli("run", manifest, "-o", output, "--in-process", env=server.env(READER))
    assert done.returncode == 2, done.stderr
    assert "cannot write to the output root" in done.stderr


def test_a_wrong_secret_is_refused_in_one_line(server: S3Server, manifest: str, cli: Cli) -> None:
    done = cli("run", manifest, "--in-process", env=server.env((READER[0], "wrong")))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "the credentials for s3://" in done.stderr


def test_a_manifest_is_built_and_checked_on_object_storage(
    server: S3Server, manifest: str, contents: list[str], cli: Cli, tmp_path: Path
) -> None:
    fs = client(server)
    base = manifest.removesuffix("/in/pairs.parquet")
    output = f"{base}/in/built.parquet"
    done = cli("manifest", "build", f"{base}/in/content", f"{base}/in/style", "-o", output, env=server.env())
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(output.removeprefix("s3://"), filesystem=fs).to_pylist()
    assert [row["content"] for row in rows] == [f"content/{Path(path).name}" for path in contents[:3]]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(contents[0], "dog/1.jpg")
    fs.put_file(tmp_path / "a.tar", f"{base.removeprefix('s3://')}/a.tar")
    unpacked = f"{base}/unpacked"
    sources = (f"{base}/a.tar", f"{base}/in/style", "--unpack", unpacked)
    done = cli("manifest", "build", *sources, "-o", output, env=server.env())
    assert done.returncode == 0, done.stderr
    done = cli("manifest", "check", output, "--json", env=server.env())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labels"] == {"dog": 1}
