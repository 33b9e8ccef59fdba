"""Several nodes on real Ray: room that comes late, nodes that go, fall ill or are slow, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from unittest.mock import patch

import pytest
import ray
import torch
from PIL import Image
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2  # pyright: ignore

import stylize_batch
from stylize_batch.engine.probe import Probed
from stylize_batch.engine.ray_actor import WorkerActor
from stylize_batch.errors import JobFailedError, UsageError
from stylize_batch.job.run import RunSummary
from stylize_batch.model import container
from stylize_batch.settings import WorkerSettings
from tests.conftest import Cli, MakeManifest, command, read_results
from tests.faults.processes import MARK, processes
from tests.integration import moody
from tests.integration.s3 import BUCKET, GUEST, PRIVATE, READER, S3Server, free_ports

pytestmark = pytest.mark.cluster

PAIRS = 6
LIMIT_SECONDS = 150
UNSHARED = ["unshare", "--map-root-user", "--mount"]


class Nodes:
    """A cluster whose head does no work, and nodes of one core, each with a name and a mood of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, MARK: folder.name, "STYLIZE_BATCH_SCHEMES": "file,moody,s3"}
        (folder / "sitecustomize.py").write_text(f"import runpy\nrunpy.run_path({moody.__file__!r})\n")
        self._running: dict[str, Any] = {}
        with patch.dict(os.environ, self._environment()):
            often = {"metrics_report_interval_ms": 500}
            self._client_port = free_ports(1)[0]
            head = {"num_cpus": 0, "include_dashboard": False, "_system_config": often}
            head["ray_client_server_port"] = self._client_port
            self.cluster = Cluster(initialize_head=True, head_node_args=head)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    @property
    def client_address(self) -> str:
        """For drivers outside the cluster."""
        return f"ray://127.0.0.1:{self._client_port}"

    @property
    def logs(self) -> Path:
        assert self.cluster.head_node
        return Path(self.cluster.head_node.get_logs_dir_path())

    def _environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {
            MARK: self.env[MARK],
            moody.FOLDER: str(self.folder),
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def add(
        self,
        name: str,
        mood: str | None = None,
        *,
        cpus: int = 1,
        gpus: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Start a node, and return its identity."""
        self.feel(name, mood)
        with patch.dict(os.environ, self._environment(**{moody.NODE: name, **(env or {})})):
            self._running[name] = self.cluster.add_node(num_cpus=cpus, num_gpus=gpus)
        return str(self._running[name].node_id)

    @contextmanager
    def apart(self, folder: Path) -> Generator[None]:
        """Start a node that has a disk of its own where the others have a folder, and end it afterwards."""
        mounted = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
        start = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus", "4", "--address"]
        known = GcsClient(address=self.address).get_all_node_info
        before = len(known())
        node = subprocess.Popen(
            [*UNSHARED, "sh", "-c", mounted, str(folder), *start, self.address],
            env={**os.environ, **self._environment()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: len(known()) > before or node.poll())
            yield
        finally:
            node.terminate()
            node.wait()

    def remove(self, name: str) -> None:
        """Take a node away as a cloud does."""
        self.cluster.remove_node(self._running.pop(name), allow_graceful=False)

    def feel(self, name: str, mood: str | None) -> None:
        """Change a node's mood."""
        if mood is None:
            (self.folder / name).unlink(missing_ok=True)
        else:
            (self.folder / name).write_text(mood)

    def read(self, name: str) -> list[str]:
        """Return what contents a node has begun to read."""
        path = self.folder / f"{name}.read"
        return path.read_text().split() if path.exists() else []

    def worker(self, name: str) -> int | None:
        """Return the process of the actor on a node."""
        for pid, line in processes(self.env).items():
            if line.startswith(("ray::WorkerActor", "ray::StandIn")):
                try:
                    if f"{moody.NODE}={name}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(
                        b"\0"
                    ):
                        return pid
                except OSError:
                    continue
        return None

    def clear(self) -> None:
        """Remove all nodes but the head, and what they have left."""
        for name in list(self._running):
            self.feel(name, None)
            (self.folder / f"{name}.read").unlink(missing_ok=True)
            self.remove(name)


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A cluster of its own for each test: after some of what they do to nodes, Ray places no more actors."""
    nodes = Nodes(tmp_path_factory.mktemp("cluster"))
    monkeypatch.setenv("STYLIZE_BATCH_SCHEMES", nodes.env["STYLIZE_BATCH_SCHEMES"])
    yield nodes
    nodes.clear()
    nodes.cluster.shutdown()


@pytest.fixture
def manifest(make_manifest: MakeManifest, contents: list[str], styles: list[str]) -> Path:
    return make_manifest([{"content": f"moody://{content}", "style": styles[:1]} for content in contents])


Run = Callable[..., "Future[RunSummary]"]


@pytest.fixture
def run(nodes: Nodes, manifest: Path, tmp_path: Path) -> Iterator[Run]:
    """Start a run of one pair a shard on the cluster, with this process as its driver."""
    thread = ThreadPoolExecutor(1)

    def start(**settings: Any) -> Future[RunSummary]:
        given: dict[str, Any] = {
            "output": str(tmp_path / "out"),
            "address": nodes.address,
            "shard_pairs": 1,
            "style_size": 48,
            "actors": 2,
            **settings,
        }
        return thread.submit(lambda: stylize_batch.run(str(manifest), **given))

    yield start
    ray.shutdown()  # ends a run, too, that a failed test has left waiting
    thread.shutdown()


def until(condition: Callable[[], object], running: Future[RunSummary] | None = None) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if running is not None and running.done():
            raise AssertionError(f"the run has ended: {running.result()}")
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def parts(folder: Path) -> int:
    return len(list((folder / "out" / "results").glob("*"))) if (folder / "out" / "results").exists() else 0


def waits_for_nodes(folder: Path) -> bool:
    """Whether a run has looked at the nodes there are."""
    record = folder / "out" / "run.json"
    return record.exists() and bool(json.loads(record.read_text())["precision"])


def check_all_made(folder: Path) -> None:
    rows = read_results(folder / "out")
    assert len({row["pair_id"] for row in rows}) == len(rows) == PAIRS
    for row in rows:
        assert row["status"] == "ok", row["error"]
        with Image.open(row["output"]) as image:
            image.load()


def test_a_run_starts_with_what_fits_and_a_node_that_comes_later_takes_over_what_the_slow_one_is_late_with(
    nodes: Nodes, run: Run, tmp_path: Path
) -> None:
    model = tmp_path / "on-the-laptop.safetensors"
    model.write_bytes(container.builtin_bytes(container.DEFAULT))
    nodes.add("slow", "wait")
    running = run(model=str(model))
    until(lambda: (tmp_path / "out" / "run.json").exists(), running)
    model.unlink()  # nodes have none of the driver's files
    until(lambda: nodes.read("slow"), running)
    nodes.add("fast")
    summary = running.result(LIMIT_SECONDS)  # and "slow" still waits
    assert len(nodes.read("slow")) == 1
    assert len(nodes.read("fast")) == PAIRS
    assert summary.dropped_nodes == {}
    check_all_made(tmp_path)


def test_a_run_that_is_nearly_done_asks_for_no_more_actors_than_it_can_use(
    nodes: Nodes, run: Run, tmp_path: Path
) -> None:
    nodes.add("node")
    run().result(LIMIT_SECONDS)
    ray.shutdown()
    next((tmp_path / "out" / "results").iterdir()).unlink()
    nodes.feel("node", "wait")
    before = len(nodes.read("node"))
    running = run(actors=100)
    until(lambda: len(nodes.read("node")) > before, running)
    job = ray.get_runtime_context().get_job_id()
    asked = [actor for actor in ray._private.state.actors().values() if actor["JobID"] == job]  # pyright: ignore
    nodes.feel("node", None)
    running.result(LIMIT_SECONDS)
    assert len(asked) == 2
    check_all_made(tmp_path)


def test_a_worker_that_is_told_to_go_finishes_its_shard_or_hands_it_back_and_nothing_is_blamed(
    nodes: Nodes, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.add("ended", "wait")
    drained = nodes.add("drained", "wait")
    running = run()
    until(lambda: nodes.read("ended") and nodes.read("drained"), running)
    first = nodes.worker("ended")
    assert first
    os.kill(first, signal.SIGTERM)
    drain(nodes, drained, 5.5)
    time.sleep(3)  # until the actor has asked, and its time is over
    for name in ("ended", "drained"):
        nodes.feel(name, None)
    running.result(LIMIT_SECONDS)
    begun = Counter(nodes.read("ended") + nodes.read("drained"))
    assert begun.total() == PAIRS + 1, "what was handed back is done again, and nothing else"
    assert len(nodes.read("drained")) == 1
    assert not [record for record in caplog.records if "was lost" in record.message]
    check_all_made(tmp_path)


def drain(nodes: Nodes, node: str, seconds: float) -> None:
    """Announce that a node is taken away in so many seconds, as Ray does of spot machines."""
    GcsClient(address=nodes.address).drain_node(
        node,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),  # pyright: ignore
        "spot",
        int((time.time() + seconds) * 1000),
    )


def test_a_shard_that_hangs_while_its_node_is_taken_away_is_done_elsewhere(
    nodes: Nodes, run: Run, tmp_path: Path
) -> None:
    nodes.add("stays", "wait")
    taken = nodes.add("taken", "wait")
    running = run()
    until(lambda: nodes.read("stays") and nodes.read("taken"), running)
    drain(nodes, taken, 5.5)
    time.sleep(2)  # until its time is over; the file it reads does not come
    nodes.remove("taken")
    nodes.feel("stays", None)
    running.result(LIMIT_SECONDS)
    assert len(nodes.read("stays")) == PAIRS
    check_all_made(tmp_path)


class StandIn(WorkerActor):
    """A worker that does on a CPU what it shall do on a GPU."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(replace(settings, device="cpu", precision="fp32"))


class Broken(WorkerActor):
    """A worker that cannot be constructed."""

    def __init__(self, settings: WorkerSettings) -> None:
        raise OSError("no room for a log")


def missing_on_nodes() -> type[WorkerActor]:
    """A worker of a module that the driver alone has."""
    module = ModuleType("only_here")
    module.Base = type("Base", (WorkerActor,), {"__module__": "only_here"})  # pyright: ignore
    sys.modules["only_here"] = module
    return type("Missing", (module.Base,), {})


@pytest.mark.parametrize(
    ("worker", "reason"),
    [(lambda: Broken, "OSError: no room for a log"), (missing_on_nodes, ".*No module named 'only_here'")],
    ids=["its constructor raises", "its class cannot be loaded"],
)
def test_workers_that_cannot_be_constructed_end_the_run_with_the_reason(
    nodes: Nodes,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    worker: Callable[[], type[WorkerActor]],
    reason: str,
) -> None:
    monkeypatch.setattr("stylize_batch.engine.crew.WorkerActor", worker())
    nodes.add("node")
    with pytest.raises(JobFailedError, match=f"^workers do not start: {reason}"):
        run(actors=1).result(LIMIT_SECONDS)


def test_a_driver_outside_the_cluster_outlives_a_worker(nodes: Nodes, manifest: Path, tmp_path: Path) -> None:
    nodes.add("only", "die")
    arguments = ["run", str(manifest), "-o", "out", "--address", nodes.client_address, "--style-size", "48"]
    driver = subprocess.Popen([command(), *arguments, "--shard-pairs", "1"], cwd=tmp_path)
    try:
        until(lambda: nodes.read("only"))
        nodes.feel("only", None)
        assert driver.wait(LIMIT_SECONDS) == 0
    finally:
        driver.kill()
    check_all_made(tmp_path)


def test_a_node_that_loses_what_others_do_gets_no_more_work_and_is_named(
    nodes: Nodes, run: Run, tmp_path: Path
) -> None:
    nodes.add("sound", "wait")
    sick = nodes.add("sick", "die")
    running = run()
    until(lambda: len(nodes.read("sick")) >= 3 and nodes.worker("sick") is None, running)
    nodes.feel("sound", None)
    summary = running.result(LIMIT_SECONDS)
    ((node, reason),) = summary.dropped_nodes.items()
    assert sick[:8] in node
    assert "3 tasks in a row" in reason
    assert json.loads((tmp_path / "out" / "run.json").read_text())["totals"]["dropped_nodes"] == {
        node: reason
    }
    check_all_made(tmp_path)


def test_shards_that_storage_did_not_answer_for_are_done_again_and_once(
    nodes: Nodes, run: Run, tmp_path: Path
) -> None:
    nodes.add("node", "stumble twice")
    assert run(actors=1).result(LIMIT_SECONDS).ok == PAIRS
    assert len(nodes.read("node")) == PAIRS + 2
    check_all_made(tmp_path)


def test_a_killed_driver_leaves_no_worker_on_the_cluster(
    nodes: Nodes, manifest: Path, tmp_path: Path
) -> None:
    nodes.add("waiting", "wait")
    arguments = ["run", str(manifest), "-o", "out", "--address", nodes.address, "--style-size", "48"]
    driver = subprocess.Popen([command(), *arguments], cwd=tmp_path, stderr=subprocess.DEVNULL)
    until(lambda: nodes.read("waiting"))
    assert nodes.worker("waiting")
    driver.kill()
    driver.wait()
    killed = time.monotonic()
    until(lambda: nodes.worker("waiting") is None)
    assert time.monotonic() - killed < 30


METRIC = re.compile(r"ray_stylize_batch_(\w+)\{(.*)\} (\S+)")


def scraped(ports: list[int]) -> dict[str, float]:
    """Return what the endpoints of nodes serve, by name and the tags that are our own."""
    found: dict[str, float] = {}
    for port in ports:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        for name, tags, value in METRIC.findall(page):
            ours = dict(re.findall(r'(device|model|status|kind|stage|le)="([^"]*)"', tags))
            assert ours.pop("device") == "cpu"
            assert ours.pop("model") == container.DEFAULT
            found[" ".join([name, *ours.values()])] = float(value)
    return found


def test_metrics_and_a_log_tell_of_pairs_failures_and_shards(
    nodes: Nodes,
    run: Run,
    contents: list[str],
    styles: list[str],
    make_manifest: MakeManifest,
    tmp_path: Path,
) -> None:
    rows = [{"content": f"moody://{content}", "style": styles[:1]} for content in contents]
    make_manifest([*rows, {"content": "/absent.jpg", "style": styles[:1]}])
    nodes.add("only", "wait")
    running = run(actors=1)
    until(lambda: nodes.read("only"), running)
    ports = [node["MetricsExportPort"] for node in cast("list[dict[str, Any]]", ray.nodes()) if node["Alive"]]
    nodes.feel("only", None)
    until(lambda: scraped(ports).get("pairs_total ok") == PAIRS, running)
    running.result(LIMIT_SECONDS)
    found = scraped(ports)
    assert found["pairs_total failed"] == found["failures_total NotFound"] == 1
    assert found["content_loss_count"] == found["style_loss_count"] == PAIRS
    assert found["read_bytes_total"] == sum(Path(content).stat().st_size for content in contents)
    pictures = [path.stat().st_size for path in (tmp_path / "out" / "images").rglob("*.jpg")]
    assert found["written_bytes_total"] == sum(pictures)
    assert found["stage_seconds_total stylize"] > 0
    assert "queue_depth" in found

    lines = [
        json.loads(line)
        for path in nodes.logs.glob("worker-*.err")
        for line in path.read_text().splitlines()
        if line.startswith('{"time"')
    ]
    ((failed, row),) = [
        (line, row)
        for row in read_results(tmp_path / "out")
        for line in lines
        if line.get("pair") == row["pair_id"]
    ]
    assert failed["event"] == "row failed"
    assert failed["error"] == row["error"] == "NotFound: /absent.jpg does not exist"
    assert failed["shard"] in {line["shard"] for line in lines if line["event"] == "shard finished"}


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    def start(**settings: Any) -> str:
        with pytest.raises(UsageError) as caught:
            run(**settings).result(LIMIT_SECONDS)
        return str(caught.value)

    return start


def test_a_node_without_the_package_is_refused_before_work_starts(
    nodes: Nodes, refused: Callable[..., str], tmp_path: Path
) -> None:
    lacking = tmp_path / "lacking" / "stylize_batch"
    lacking.mkdir(parents=True)
    (lacking / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'stylize_batch'\")")
    nodes.add("bare", env={"PYTHONPATH": str(lacking.parent)})
    reason = refused()
    assert re.fullmatch(r"node \S+ cannot run this package, install it there as it is here: .*", reason), (
        reason
    )
    assert "No module named 'stylize_batch'" in reason
    assert not (tmp_path / "out" / "results").exists()


@pytest.fixture
def own_disks() -> None:
    """Skip the test where a node cannot have a disk of its own."""
    if shutil.which("unshare") is None or subprocess.run([*UNSHARED, "true"], check=False).returncode:
        pytest.skip("this machine lets no user mount a disk of their own")


@pytest.mark.usefixtures("own_disks")
def test_a_node_that_has_the_output_on_a_disk_of_its_own_is_refused(
    nodes: Nodes, refused: Callable[..., str], tmp_path: Path
) -> None:
    nodes.add("shares")
    (tmp_path / "disk").mkdir()
    with nodes.apart(tmp_path / "disk"):
        reason = refused(output=str(tmp_path / "disk" / "out"))
    assert re.fullmatch(
        r"node \S+ does not share \S+/disk/out; with several nodes use object storage .*", reason
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_cannot_use_is_refused_and_one_that_comes_later_ends_the_run(
    nodes: Nodes, run: Run, refused: Callable[..., str], tmp_path: Path
) -> None:
    no_cuda = rf"torch {re.escape(torch.__version__)} finds no CUDA here; .* or use the device cpu"
    running = run(device="cuda", actors=1)
    until(lambda: waits_for_nodes(tmp_path), running)
    nodes.add("gpu", cpus=0, gpus=1)
    with pytest.raises(JobFailedError, match=f"^workers do not start: DeviceError: {no_cuda}$"):
        running.result(LIMIT_SECONDS)
    ray.shutdown()
    assert re.fullmatch(rf"node \S+ has a GPU that cannot be used: {no_cuda}", refused())


def test_a_cluster_of_another_ray_or_python_is_refused(nodes: Nodes, refused: Callable[..., str]) -> None:
    gcs = GcsClient(address=nodes.address)
    kept = gcs.internal_kv_get(CLUSTER_METADATA_KEY, KV_NAMESPACE_CLUSTER)
    other = {**json.loads(kept), "ray_version": "2.1.0", "python_version": "3.8.1"}
    gcs.internal_kv_put(CLUSTER_METADATA_KEY, json.dumps(other).encode(), True, KV_NAMESPACE_CLUSTER)
    try:
        reason = refused()
    finally:
        gcs.internal_kv_put(CLUSTER_METADATA_KEY, kept, True, KV_NAMESPACE_CLUSTER)
    assert "it runs Ray 2.1.0 on Python 3.8.1, this is Ray" in reason


def test_a_node_that_may_not_write_to_the_output_is_refused_and_nothing_is_left_there(
    nodes: Nodes,
    server: S3Server,
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    cli: Cli,
    tmp_path: Path,
) -> None:
    nodes.add("reader", env=server.env(READER))
    output = f"s3://{BUCKET}/{tmp_path.name}"
    rows = make_manifest([{"content": contents[0], "style": styles[:1]}])
    done = cli("run", rows, "-o", output, "--address", nodes.address, env=server.env())
    assert done.returncode == 2, done.stderr
    *progress, error = done.stderr.splitlines()
    assert f"cannot use {output}" in error
    assert "credentials" in error
    assert progress == ["Checking the manifest", "Starting workers"]
    keys = {key.removeprefix(f"{output.removeprefix('s3://')}/") for key in server.client().find(output)}
    assert keys - {"lease.json"} == {"run.json", "plan/shard-000000.parquet", "plan/styles.parquet"}


def test_a_node_that_may_not_read_what_others_may_is_refused_before_it_fails_their_rows(
    nodes: Nodes,
    server: S3Server,
    make_manifest: MakeManifest,
    contents: list[str],
    styles: list[str],
    cli: Cli,
    tmp_path: Path,
) -> None:
    nodes.add("reader", env=server.env())
    nodes.add("guest", env=server.env(GUEST))
    content = f"s3://{PRIVATE}/{tmp_path.name}.jpg"
    server.client().put_file(contents[0], content)
    rows = make_manifest([{"content": content, "style": styles[:1]}])
    done = cli("run", rows, "-o", tmp_path / "out", "--address", nodes.address, env=server.env())
    assert done.returncode == 2, done.stderr
    assert re.search(rf"node \S+ cannot read what others can: AccessDenied: .* {content}", done.stderr)
    assert not (tmp_path / "out" / "results").exists()


@pytest.fixture
def private(
    manifest: Path,
    server: S3Server,
    contents: list[str],
    styles: list[str],
    make_manifest: MakeManifest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Photographs that this process may read and a guest may not, in the place of the manifest's; a style that waits."""
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    uris = [f"s3://{PRIVATE}/{tmp_path.name}-{number}.jpg" for number in range(PAIRS)]
    for content, uri in zip(contents, uris, strict=True):
        server.client().put_file(content, uri)
    make_manifest([{"content": uri, "style": [f"moody://{styles[0]}"]} for uri in uris])


UNREADABLE = (
    rf"cannot read what others can: AccessDenied: no permission to read s3://{PRIVATE}/\S+; nodes need .*"
)


@pytest.mark.usefixtures("private")
def test_where_the_first_node_to_come_may_not_read_what_this_one_may_the_run_ends_and_no_row_fails(
    nodes: Nodes, run: Run, server: S3Server, tmp_path: Path
) -> None:
    running = run(actors=1)
    until(lambda: waits_for_nodes(tmp_path), running)
    nodes.add("guest", cpus=4, env=server.env(GUEST))
    with pytest.raises(
        JobFailedError, match=rf"^workers do not start: SystemicError: node \S+ {UNREADABLE}$"
    ):
        running.result(LIMIT_SECONDS)
    assert parts(tmp_path) == 0


@pytest.mark.usefixtures("private")
def test_a_node_that_comes_later_and_may_not_read_what_others_may_gets_no_work(
    nodes: Nodes, run: Run, server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.add("sound", "wait")
    running = run()
    until(lambda: nodes.read("sound"), running)
    guest = nodes.add("guest", env=server.env(GUEST))
    until(lambda: "gets no more work" in caplog.text, running)
    nodes.feel("sound", None)
    ((node, reason),) = running.result(LIMIT_SECONDS).dropped_nodes.items()
    assert guest[:8] in node
    assert re.search(UNREADABLE, reason)
    check_all_made(tmp_path)


def test_a_node_that_comes_later_is_not_blamed_for_what_nobody_can_read(
    nodes: Nodes, run: Run, make_manifest: MakeManifest, styles: list[str], tmp_path: Path
) -> None:
    make_manifest([{"content": "/absent.jpg", "style": styles[:1]}])
    running = run(actors=1)
    until(lambda: waits_for_nodes(tmp_path), running)
    nodes.add("node", cpus=4)
    summary = running.result(LIMIT_SECONDS)
    assert summary.kinds == {"NotFound": 1}
    assert summary.dropped_nodes == {}


@pytest.mark.usefixtures("own_disks")
def test_a_node_that_comes_later_and_has_the_output_on_a_disk_of_its_own_gets_no_work(
    nodes: Nodes, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    running = run(output=str(tmp_path / "disk" / "out"), actors=1)
    until(lambda: waits_for_nodes(tmp_path / "disk"), running)
    with nodes.apart(tmp_path / "disk"), pytest.raises(JobFailedError, match=r"node \S+ does not share \S+"):
        running.result(LIMIT_SECONDS)


def test_a_node_that_does_not_answer_gets_no_work_and_the_others_do_it(
    nodes: Nodes, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylize_batch.engine.probe.PROBE_SECONDS", 30.0)
    slow = tmp_path / "slow" / "stylize_batch"
    slow.mkdir(parents=True)
    (slow / "__init__.py").write_text("import time\n\ntime.sleep(10_000)\n")
    silent = nodes.add("silent", env={"PYTHONPATH": str(slow.parent)})
    nodes.add("sound")
    summary = run().result(LIMIT_SECONDS)
    ((node, reason),) = summary.dropped_nodes.items()
    assert silent[:8] in node
    assert "does not answer" in reason
    check_all_made(tmp_path)


def test_workers_on_gpus_and_cpus_share_a_run_and_one_that_hangs_does_not_hold_up_its_end(
    nodes: Nodes, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylize_batch.engine.crew.WorkerActor", StandIn)
    monkeypatch.setattr("stylize_batch.engine.on_ray.check_nodes", lambda settings: Probed({}, None))
    nodes.add("gpu", "wait", cpus=0, gpus=1)
    nodes.add("cpu", "wait")
    running = run(actors={"cuda": 2, "cpu": 1}, gpus_per_actor=0.5)
    until(lambda: nodes.read("cpu"), running)
    hung = nodes.worker("cpu")
    assert hung
    os.kill(hung, signal.SIGSTOP)
    nodes.feel("gpu", None)
    running.result(LIMIT_SECONDS)
    # One of the GPU's two workers, idle at the end, may have begun again what the other was at.
    assert len(set(nodes.read("gpu"))) == PAIRS
    assert len(nodes.read("cpu")) == 1
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["precision"] == {"cuda": "fp16", "cpu": "fp32"}
    check_all_made(tmp_path)
    until(lambda: not Path(f"/proc/{hung}").exists())
