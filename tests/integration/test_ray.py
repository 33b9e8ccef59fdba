"""The main job on real Ray: the same pictures, clear refusals, and images that kill their process."""

from __future__ import annotations

import gc
import io
import os
import platform
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import ray
import torch
from PIL import Image

import stylize_batch
from stylize_batch import worker
from stylize_batch.engine import ray_actor
from stylize_batch.engine.base import StyleRequest
from stylize_batch.engine.crew import Pool
from stylize_batch.engine.on_ray import RayEngine
from stylize_batch.engine.placement import Placement
from stylize_batch.engine.ray_tasks import StyleTask
from stylize_batch.errors import GaveUpError
from stylize_batch.heap import keep_freed_memory
from stylize_batch.layout.reading import PictureReader, address
from stylize_batch.styles import StyleBatch
from tests.conftest import MakeManifest, Row, read_results, worker_settings
from tests.faults.processes import processes

TARS = ("--layout", "webdataset")
"""A shard's pictures in one file, which asks more of processes that do a shard together."""

Start = Callable[..., "subprocess.Popen[str]"]


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    _, errors = process.communicate(timeout=420)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    return errors


def check_complete(output: Path, rows: int) -> list[Row]:
    """Every pair once, every picture whole, nothing unfinished left."""
    results = read_results(output)
    assert len(results) == rows
    assert len({row["pair_id"] for row in results}) == rows
    reader = PictureReader()
    for row in results:
        if row["status"] == "ok":
            with Image.open(io.BytesIO(reader.read(address(row["output"], row["pair_id"])))) as image:
                image.load()
                assert (image.height, image.width) == (row["height"], row["width"])
    assert not (output / ".tmp").exists()
    return results


@pytest.fixture
def manifest(make_manifest: MakeManifest, contents: list[str], styles: list[str]) -> Path:
    return make_manifest([{"content": content, "style": [style]} for content in contents for style in styles])


def test_ray_and_in_process_make_the_same_pictures(manifest: Path, tmp_path: Path, start: Start) -> None:
    options = ("--format", "png", "--style-size", 48, "--limit", 12, "--actors", 2, "--device", "cpu")
    process = start(manifest.as_uri(), "-o", (tmp_path / "ray").as_uri(), *options)
    errors = finish(process)
    assert "[" not in errors, f"Ray is not quiet: {errors}"
    stylize_batch.run(
        str(manifest),
        output=str(tmp_path / "plain"),
        in_process=True,
        device="cpu",
        format="png",
        style_size=48,
        limit=12,
    )
    ours = {row["pair_id"]: row for row in read_results(tmp_path / "plain")}
    for row in check_complete(tmp_path / "ray", 12):
        other = ours[row["pair_id"]]
        assert Path(row["output"]).read_bytes() == Path(other["output"]).read_bytes()
        assert row["style_loss"] == pytest.approx(other["style_loss"], rel=1e-5)


def test_images_that_kill_their_process_fail_their_own_rows_and_no_others(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path, start: Start
) -> None:
    rows = [{"content": content, "style": [style]} for content in contents for style in styles[:2]]
    rows += [{"content": "poison://photo.jpg", "style": [style]} for style in styles[:2]]
    rows += [{"content": contents[0], "style": ["poison://painting.jpg"]}]
    process = start(make_manifest(rows), "-o", "out", "--style-size", 48, "--shard-pairs", 7, *TARS)
    errors = finish(process, status=3)
    assert "failed: 3 × WorkerDied" in errors
    members: list[str] = []
    for path in (tmp_path / "out" / "images").iterdir():
        with tarfile.open(path) as archive:
            members += archive.getnames()
    assert sum(name.endswith(".jpg") for name in members) == len(rows) - 3
    for row in check_complete(tmp_path / "out", len(rows)):
        poisoned = "poison" in row["content"] or "poison" in row["style"][0]
        assert row["status"] == ("failed" if poisoned else "ok"), row


def test_a_style_that_hangs_every_process_fails_and_its_neighbours_are_encoded(tmp_path: Path) -> None:
    def encode(*arguments: Any) -> StyleBatch:
        class Hanging:
            def __init__(self, *_: object) -> None: ...

            def encode_styles(self, uris: list[str], *_: object, **__: object) -> StyleBatch:
                time.sleep(60 if uris == ["b"] else 0)
                return StyleBatch([], {}, len(uris), {})

        here = pytest.MonkeyPatch()  # in the process that Ray starts
        here.setattr(worker, "Worker", Hanging)
        here.setattr(ray_actor, "HANGING_ALONE_SECONDS", 2.0)
        return ray_actor.encode_styles_alone(*arguments)

    engine: Any = RayEngine(None, 1, None, 0, 1)
    try:
        engine._model.append(ray.put(b""))
        settings = worker_settings(tmp_path)
        pool = Pool(settings, Placement(1, 0, 1, 1))
        batch = StyleTask(StyleRequest(["a", "b", "c"], {})).alone(
            settings, lambda _, pieces: engine._run_alone(pool, False, encode, pieces)
        )
    finally:
        engine.close()
    assert {uri: error.kind for uri, error in batch.failures.items()} == {"b": "WorkerDied"}


def listening_port(pid: int) -> int | None:
    """Return a TCP port that a process listens at."""
    inodes = {str(path.readlink()).strip("socket:[]") for path in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [
        *Path("/proc/net/tcp").read_text().splitlines()[1:],
        *Path("/proc/net/tcp6").read_text().splitlines()[1:],
    ]
    fields = [line.split() for line in lines]
    return next((int(f[1].rpartition(":")[2], 16) for f in fields if f[3] == "0A" and f[9] in inodes), None)


def test_an_error_that_is_kept_takes_nothing_from_the_next_ray(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    absent = str(tmp_path / "absent.jpg")
    bad = make_manifest([{"content": path, "style": styles[:1]} for path in (*contents, absent)])
    settings: dict[str, Any] = {
        "output": str(tmp_path / "out"),
        "style_size": 48,
        "max_failed": 0,
        "actors": 1,
    }

    # Ray numbers what a thread puts: in new ones, from 1.
    with ThreadPoolExecutor(1) as first, pytest.raises(GaveUpError) as kept:
        first.submit(stylize_batch.run, str(bad), **settings).result()
    errors = [kept.value]
    del kept

    def next_one() -> None:
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        objects = [ray.put(number) for number in range(3)]
        errors.clear()
        gc.collect()
        time.sleep(1)
        assert ray.get(objects, timeout=30) == [0, 1, 2]

    try:
        with ThreadPoolExecutor(1) as second:  # whose end is its Ray's
            second.submit(next_one).result()
    finally:
        ray.shutdown()


class Maker:
    """An actor with the threads of a `WorkerActor` that makes feature maps."""

    def __init__(self) -> None:
        keep_freed_memory()

    def clear_pages(self) -> int:
        """Make 16 maps of 64 MB; return how often the system has cleared pages for this process."""
        features = torch.zeros(64, 2**18)
        for _ in range(16):
            features = features + 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_feature_maps_in_an_actor_take_the_memory_of_the_last_ones(tmp_path: Path) -> None:
    pool = Pool(worker_settings(tmp_path), Placement(1, 0, 1, 1))
    groups: dict[str, Any] = {"concurrency_groups": {"control": 1}, "max_concurrency": 1}

    def cleared(**options: Any) -> int:
        actor: Any = cast("Any", ray.remote)(**groups, **options)(Maker).remote()
        first, *_, last = ray.get([actor.clear_pages.remote() for _ in range(4)], timeout=60)
        return last - first

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert cleared(**pool.options) < cleared() / 2
    finally:
        ray.shutdown()


def test_the_ray_that_a_run_starts_refuses_who_has_no_token(
    manifest: Path, start: Start, marked_env: dict[str, str], tmp_path: Path
) -> None:
    process = start(manifest, "-o", "out", "--size", 128, "--style-size", 48, "--actors", 1)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("results/*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGSTOP)  # or the run may end, and Ray with it, before both have asked
    (server,) = [pid for pid, line in processes(marked_env).items() if "gcs_server " in f"{line} "]
    program = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=f"127.0.0.1:{sys.argv[1]}").internal_kv_keys(b"", b"")
except Exception as error:
    sys.exit(str(error))
"""
    answers: list[subprocess.CompletedProcess[str]] = []
    for token in ("wrong", (Path.home() / ".ray" / "auth_token").read_text().strip()):
        env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_gcs_rpc_server_connect_timeout_s": "1",
        }
        command = [sys.executable, "-c", program, str(listening_port(server))]
        answers.append(
            subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        )
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    refused, allowed = answers
    assert refused.returncode != 0
    assert allowed.returncode == 0, allowed.stderr


def test_an_address_without_a_cluster_is_refused_in_one_line(manifest: Path, start: Start) -> None:
    errors = finish(start(manifest, "--address", "127.0.0.1:1"), status=2)
    assert "cannot reach a Ray cluster at 127.0.0.1:1" in errors


def test_a_gpu_demanded_where_there_is_none_is_refused(manifest: Path, start: Start) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "--device cuda: Ray finds no GPU on this machine" in finish(
        start(manifest, "--device", "cuda"), status=2
    )
