"""The main job with everything on a real S3 server: manifest, pictures, styles, model and output."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from stylize_batch import root as roots
from stylize_batch.model import container
from stylize_batch.root import Root
from stylize_batch.s3 import PatientS3
from tests.conftest import Cli, MakeManifest
from tests.integration.s3 import BUCKET, READER, UNKNOWN, WRONG_SECRET, Identity, S3Server
from tests.job.test_lease import ends_of_runs_that_begin_together


@pytest.fixture
def manifest(
    server: S3Server, make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> str:
    """A manifest on S3, relative to which its pictures lie; one picture is missing."""
    fs, base = server.client(), f"{BUCKET}/{tmp_path.name}"
    for path in (*contents[:3], *styles[:2]):
        fs.put_file(path, f"{base}/in/{Path(path).parent.name}/{Path(path).name}")
    rows = [
        {"content": f"content/{Path(content).name}", "style": [f"style/{Path(style).name}"]}
        for content in contents[:4]
        for style in styles[:2]
    ]
    fs.pipe_file(f"{base}/in/pairs.parquet", make_manifest(rows).read_bytes())
    return f"s3://{base}/in/pairs.parquet"


@pytest.fixture(params=["in-process", "local Ray", pytest.param("three nodes", marks=pytest.mark.cluster)])
def engine(request: pytest.FixtureRequest, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that choose who does the work; nodes know the server from their own environment."""
    if request.param != "three nodes":
        return ["--in-process"] if request.param == "in-process" else []
    for key, value in server.env().items():
        monkeypatch.setenv(key, value)
    nodes: Cluster = request.getfixturevalue("nodes")
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    return ["--address", str(nodes.address), "--actors", "3"]


def test_the_whole_job_runs_on_object_storage_and_resumes(
    server: S3Server, manifest: str, cli: Cli, engine: list[str]
) -> None:
    fs = server.client()
    base = manifest.removesuffix("/in/pairs.parquet")
    model, output = f"{base}/model.safetensors", f"{base}/out"
    fs.pipe_file(model, container.builtin_bytes(container.DEFAULT))
    options = ("--model", model, "--style-size", 48, "--shard-pairs", 2, "--json", *engine)
    first = cli("run", manifest, "-o", output, *options, env=server.env())
    assert first.returncode == 3, first.stderr
    summary = json.loads(first.stdout)
    assert (summary["pairs"], summary["ok"], summary["failed"]) == (8, 6, 2)
    fs.rm(fs.find(f"{output}/results")[0])
    again = cli("run", manifest, "-o", output, *options, env=server.env())
    assert again.returncode == 3, again.stderr
    assert json.loads(again.stdout)["skipped"] == 6

    results = pq.read_table(f"{output.removeprefix('s3://')}/results", filesystem=fs).to_pylist()
    assert len({row["pair_id"] for row in results}) == len(results) == 8
    pictures = {row["output"]: row for row in results if row["status"] == "ok"}
    for uri, row in pictures.items():
        with Image.open(io.BytesIO(cast("bytes", fs.cat_file(uri)))) as image:
            image.load()
            assert (image.format, image.height, image.width) == ("JPEG", row["height"], row["width"])
    assert sorted(f"s3://{key}" for key in fs.find(f"{output}/images")) == sorted(pictures)
    assert [row["error"] for row in results if row["status"] == "failed"] == [
        f"NotFound: {base}/in/{row['content']} does not exist" for row in results if row["status"] == "failed"
    ]
    kept = {key.removeprefix(f"{output.removeprefix('s3://')}/").split("/")[0] for key in fs.find(output)}
    assert kept - {"lease.json"} == {"images", "plan", "report.html", "results", "run.json", "styles"}


def test_tars_on_object_storage_open_as_they_stand_and_the_rest_is_done_when_one_lacks_results(
    server: S3Server, manifest: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, output = server.client(), manifest.removesuffix("/in/pairs.parquet") + "/tars"
    command = ("run", manifest, "-o", output, "--style-size", 48, "--shard-pairs", 4, "--in-process")
    tars = ("--layout", "webdataset")
    assert cli(*command, *tars, env=server.env()).returncode == 3
    before = {key: fs.cat_file(key) for key in fs.find(f"{output}/images")}
    fs.rm(fs.find(f"{output}/results")[0])
    fs.pipe_file(f"{output}/images/part-000000-0123456789abcdef.tar", b"of a killed run")
    assert cli(*command, *tars, env=server.env()).returncode == 3
    assert {key: fs.cat_file(key) for key in fs.find(f"{output}/images")} == before
    for key, value in server.env().items():
        monkeypatch.setenv(key, value)
    results = pq.read_table(f"{output.removeprefix('s3://')}/results", filesystem=fs).to_pylist()
    made = [row for row in results if row["status"] == "ok"]
    assert len(made) == 6
    for row in made:
        assert row["output"].endswith(".tar")
        with fsspec.open(row["output"], s3={"use_listings_cache": False}) as file, Image.open(file) as image:  # pyright: ignore[reportArgumentType]
            image.load()
            assert (image.height, image.width) == (row["height"], row["width"])


def test_a_folder_that_outlasts_what_was_in_it_does_not_end_a_run_that_starts_anew(
    server: S3Server, manifest: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = manifest.removesuffix("/in/pairs.parquet") + "/anew"
    command = ("run", manifest, "-o", output, "--style-size", 48, "--in-process")
    for options in ((), ("--overwrite",), ("--overwrite",)):
        done = cli(*command, *options, env=server.env())
        assert done.returncode == 3, done.stderr
    for key, value in server.env().items():
        monkeypatch.setenv(key, value)
    root = Root(output)
    root.delete(root.list("styles"))
    assert server.client().find(f"{output}/styles") == [f"{output.removeprefix('s3://')}/styles"]
    assert root.list("styles") == []
    assert root.sizes("styles") == {}


def test_a_root_of_many_pages_is_listed_whole_and_cleared_with_one_in_memory(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in server.env().items():
        monkeypatch.setenv(key, value)
    root = Root(f"s3://{BUCKET}/{tmp_path.name}")
    keys = sorted(f"images/{number % 5}/{number}.jpg" for number in range(40))
    for key in (*keys, "images2/x.jpg"):
        root.put(key, b"1")
    asked, true = list[str](), PatientS3.call_s3

    def paged(fs: PatientS3, method: str, **request: Any) -> Any:
        asked.append(method)
        return true(fs, method, **{"MaxKeys": 7, **request})  # pyright: ignore[reportCallIssue]

    monkeypatch.setattr(PatientS3, "call_s3", paged)
    assert root.list("images") == keys
    assert len(asked) > 5
    asked.clear()
    assert next(root.walk("images")) in keys
    assert len(asked) == 1
    monkeypatch.setattr(roots, "DELETED_AT_ONCE", 9)
    root.clear("images")
    assert root.list("") == ["images2/x.jpg"]


def test_what_others_put_meanwhile_is_found(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in server.env().items():
        monkeypatch.setenv(key, value)
    root = Root(f"s3://{BUCKET}/{tmp_path.name}")
    root.put("results/ours", b"1")
    assert root.list("results") == ["results/ours"]
    assert not root.exists("results/theirs")
    server.client().pipe_file(f"{BUCKET}/{tmp_path.name}/results/theirs", b"22")
    assert root.list("results") == ["results/ours", "results/theirs"]
    assert root.exists("results/theirs")


def test_of_runs_that_begin_at_the_same_moment_one_goes_on(server: S3Server, tmp_path: Path) -> None:
    output = f"s3://{BUCKET}/{tmp_path.name}/out"
    *refused, held = ends_of_runs_that_begin_together(output, server.env())
    assert held == "held\n"
    assert all(end.startswith("another run is working on") for end in refused)


def test_an_identity_that_may_not_write_is_refused_before_work_starts(
    server: S3Server, manifest: str, cli: Cli
) -> None:
    output = manifest.removesuffix("/in/pairs.parquet") + "/forbidden"
    done = cli("run", manifest, "-o", output, "--in-process", env=server.env(READER))
    assert done.returncode == 2, done.stderr
    assert "cannot write to the output root" in done.stderr
    assert not server.client().find(output)


@pytest.mark.parametrize("identity", [WRONG_SECRET, UNKNOWN], ids=["wrong secret", "unknown key"])
def test_credentials_the_server_does_not_take_are_refused_in_one_line(
    server: S3Server, manifest: str, cli: Cli, identity: Identity
) -> None:
    done = cli("run", manifest, "--in-process", env=server.env(identity))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "the credentials for s3://" in done.stderr


def test_a_manifest_is_built_and_checked_on_object_storage(
    server: S3Server, manifest: str, contents: list[str], cli: Cli, tmp_path: Path
) -> None:
    fs = server.client()
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
