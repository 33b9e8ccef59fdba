"""How well workers on several nodes add up, and how well fast and slow ones share work.

    python benchmarks/scaling.py [SECONDS]      (of work for each case; default: 50)

Nodes are Ray's own, simulated on this machine: each has its processes, its object store and one core, or a GPU by name.
What a device would do sleeps instead, so long for each picture as the node's fixed speed says; everything around it is
what users run: plan, actors, feeding, decoding, encoding, atomic puts. Efficiency is the rate reached, from when all
workers are ready to the last results part, divided by the sum of all speeds. These are measured too, since on a busy
machine a sleep takes longer than it should.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image
from ray.cluster_utils import Cluster
from torch import Tensor

from stylize_batch.engine import crew, on_ray
from stylize_batch.engine.base import StyleRequest
from stylize_batch.engine.dispatch import Dispatch
from stylize_batch.engine.on_ray import RayEngine
from stylize_batch.engine.probe import Probed
from stylize_batch.engine.ray_actor import Pulse, Ref, WorkerActor
from stylize_batch.manifest.partition import check_and_partition
from stylize_batch.manifest.plan import write_plan
from stylize_batch.manifest.source import locate
from stylize_batch.model import container
from stylize_batch.root import Root
from stylize_batch.settings import Device, WorkerSettings
from stylize_batch.styles import bank_of

SPEED = "SLEEPING_DEVICE_SPEED"
"""Environment variable of a node: pictures a second."""

LOG = "SLEEPING_DEVICE_LOG"
"""Environment variable of a node: file with the pictures and seconds of every sleep."""

SAMPLE = Path(__file__).parent.parent / "manifests" / "sample"
SIDE = 32
SHARD_PAIRS = 25
"""Five seconds of work for the usual node here; a run's own shards are of about a minute."""


class Nodes(NamedTuple):
    """The speeds of nodes, in pictures a second: those with a GPU, and those without."""

    gpus: Sequence[float]
    cpus: Sequence[float]

    @property
    def pace(self) -> float:
        """The speed of all."""
        return sum(self.gpus) + sum(self.cpus)


CASES = {
    "1 node": Nodes((), (5,)),
    "2 nodes": Nodes((), (5, 5)),
    "4 nodes": Nodes((), (5, 5, 5, 5)),
    "2 nodes, one 10 times as fast": Nodes((), (10, 1)),
    "a GPU, and a CPU a 20th as fast": Nodes((20,), (1,)),
}


class SleepingActor(WorkerActor):
    """A worker whose network sleeps, on whatever device."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(replace(settings, device="cpu", precision="fp32"))

    @ray.method(concurrency_group="control")
    def ping(self, model: list[Ref], newcomer: bool) -> Pulse:
        """Put the sleeping network in the place of the real one before the worker is made."""
        import stylize_batch.stage
        from stylize_batch.model.adain import Statistics
        from stylize_batch.model.losses import Losses
        from stylize_batch.model.network import ContentFeatures, Network

        busy = threading.Lock()

        class Sleeping(Network):
            def encode_contents(self, images: Tensor, *, metrics: bool = True) -> ContentFeatures:
                count, _, height, width = images.shape
                nothing = torch.zeros(count, 1)
                return ContentFeatures(
                    height, width, [], images, None, (Statistics(nothing, nothing),), metrics
                )

            def stylize(
                self,
                content: ContentFeatures,
                styles: Tensor,
                alpha: Tensor,
                masks: Tensor | None = None,
                *,
                finish: Callable[[Tensor], Tensor] = lambda images: images,
            ) -> tuple[Tensor, Losses | None]:
                assert content.images is not None, "`encode_contents` keeps them"
                # There is one device, whatever comes side by side.
                with busy, Path(os.environ[LOG]).open("a") as log:
                    started = time.monotonic()
                    time.sleep(len(alpha) / float(os.environ[SPEED]))
                    print(len(alpha), time.monotonic() - started, file=log)
                return finish(content.images / 255), None

        stylize_batch.stage.Network = Sleeping  # pyright: ignore[reportPrivateImportUsage]
        # Ray's types know a method from outside alone, by its `remote`.
        return super().ping(model, newcomer)  # pyright: ignore[reportCallIssue]


def prepare(folder: Path, pairs: int) -> list[int]:
    """Plan so many pairs of small pictures; return the shards."""
    for kind in ("content", "style"):
        source = next(iter(sorted((SAMPLE / kind).iterdir())))
        with Image.open(source) as image:
            image.resize((SIDE, SIDE)).save(folder / f"{kind}.png")
    for pair in range(pairs):
        (folder / f"{pair}.png").symlink_to(folder / "content.png")
    table = pa.table({"content": [f"{pair}.png" for pair in range(pairs)], "style": ["style.png"] * pairs})
    pq.write_table(table, folder / "pairs.parquet")
    (folder / "spill").mkdir()
    partition = check_and_partition(locate(str(folder / "pairs.parquet")), folder / "spill", "jpeg", None)
    return list(range(write_plan(partition, Root(str(folder / "out")), SHARD_PAIRS, "scaling")))


def run(nodes: Nodes, seconds: float) -> tuple[float, float]:
    """Run a case on a new cluster; return the pictures a second, and the sum of what devices have shown they can."""
    logs: list[Path] = []
    pairs = int(nodes.pace * seconds) // SHARD_PAIRS * SHARD_PAIRS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = prepare(folder, pairs)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        kinds: list[tuple[Sequence[float], dict[str, Any]]] = [
            (nodes.gpus, {"num_cpus": 0, "num_gpus": 1}),
            (nodes.cpus, {"num_cpus": 1}),
        ]
        for speeds, resources in kinds:
            for speed in speeds:
                logs.append(folder / f"device-{len(logs)}")
                with patch.dict(os.environ, {SPEED: str(speed), LOG: str(logs[-1])}):
                    cluster.add_node(**resources)
        settings = WorkerSettings(
            root=str(folder / "out"), run="scaling", base=str(folder), model="sleeping", size=None, crop=None,
            style_size=SIDE, format="jpeg", quality=95, layout="files", metrics=False, batch_size=None, device="cpu",
            precision="fp32",
        )  # fmt: skip
        wanted: dict[Device, int] = {"cuda": len(nodes.gpus), "cpu": len(nodes.cpus)}
        actors: dict[Device, int] = {device: count for device, count in wanted.items() if count}
        engine = RayEngine(cluster.address, actors, None, 1, len(shards))
        try:
            engine.start(
                [replace(settings, device=device) for device in actors],
                container.builtin_bytes(container.DEFAULT),
            )
            (batch,) = engine.encode_styles([StyleRequest(["style.png"], {})])
            workers = engine._crew  # pyright: ignore[reportPrivateUsage]
            assert workers is not None, "the engine has started"
            while not all(slot.ready for slot in workers.slots):
                answered = workers.wait()
                for slot in workers.slots:
                    slot.hear(answered)
            started = time.monotonic()
            made = sum(report.totals.ok for report in engine.run_shards(shards, bank_of(batch.vectors, {})))
            took = time.monotonic() - started
        finally:
            engine.close()
            cluster.shutdown()
        assert made == pairs
        shown = [np.loadtxt(log).reshape(-1, 2).sum(0) for log in logs]
        return made / took, sum(pictures / slept for pictures, slept in shown)


def main() -> None:
    """Print a Markdown table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 50.0
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}\n"
    )
    print("| | pictures/s | efficiency |\n|---|--:|--:|")
    unchecked = patch.object(on_ray, "check_nodes", return_value=Probed({}, None))
    with patch.object(crew, "WorkerActor", SleepingActor), unchecked:
        for name, nodes in CASES.items():
            print_row(name, nodes, seconds)
        # The last of them once more.
        name, nodes = list(CASES.items())[-1]
        with patch.object(Dispatch, "_share", lambda self: None):
            print_row(f"{name}, nothing taken over at the end", nodes, seconds)


def print_row(name: str, nodes: Nodes, seconds: float) -> None:
    """Run a case and print its line."""
    rate, possible = run(nodes, seconds)
    print(f"| {name} | {rate:.1f} of {possible:.1f} | {rate / possible:.3f} |", flush=True)


if __name__ == "__main__":
    main()
