"""How well workers on several nodes add up, and how well fast and slow ones share work.

    python benchmarks/scaling.py [SECONDS]      (of work for each case; default: 25)

Nodes are Ray's own, simulated on this machine: each has its processes, its object store and one core. What a GPU would
do sleeps instead, so long for each picture as the node's fixed speed says; everything around it is what users run:
plan, actors, feeding, decoding, encoding, atomic puts. Efficiency is the rate reached divided by the sum of all speeds,
from when all workers are ready to the last results part.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from ray.cluster_utils import Cluster

from stylize_batch.engine import crew
from stylize_batch.engine.base import StyleRequest
from stylize_batch.engine.dispatch import Dispatch
from stylize_batch.engine.on_ray import RayEngine
from stylize_batch.engine.ray_actor import Pulse, Ref, WorkerActor
from stylize_batch.manifest.plan import check_and_partition, write_plan
from stylize_batch.manifest.source import locate
from stylize_batch.model import container
from stylize_batch.settings import WorkerSettings
from stylize_batch.storage import Root
from stylize_batch.styles import bank_of

SPEED = "SLEEPING_DEVICE_SPEED"
"""Environment variable of a node: pictures a second."""

SAMPLE = Path(__file__).parent.parent / "manifests" / "sample"
SIDE = 32
SHARD_PAIRS = 10
CASES: dict[str, Sequence[float]] = {
    "1 node": (5,),
    "2 nodes": (5, 5),
    "4 nodes": (5, 5, 5, 5),
    "2 nodes, one 10 times as fast": (10, 1),
}


class SleepingActor(WorkerActor):
    """A worker whose network sleeps."""

    def ping(self, model: list[Ref]) -> Pulse:
        """Put the sleeping network in the place of the real one before the worker is made."""
        import stylize_batch.worker
        from stylize_batch.model.adain import Statistics
        from stylize_batch.model.network import ContentFeatures, Network

        class Sleeping(Network):
            def encode_contents(self, images, *, metrics=True):
                count, _, height, width = images.shape
                nothing = torch.zeros(count, 1)
                return ContentFeatures(
                    height, width, [], images, None, (Statistics(nothing, nothing),), metrics
                )

            def stylize(self, content, styles, alpha, masks=None, *, finish=lambda images: images):
                time.sleep(len(alpha) / float(os.environ[SPEED]))
                return finish(content.images / 255), None

        stylize_batch.worker.Network = Sleeping
        return super().ping(model)


SleepingActor.ping.__ray_concurrency_group__ = "control"


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
    partition = check_and_partition(
        locate(str(folder / "pairs.parquet"), str(folder / "out")), folder / "spill", "jpeg", None
    )
    return list(range(write_plan(partition, Root(str(folder / "out")), SHARD_PAIRS).shards))


def efficiency(speeds: Sequence[float], seconds: float) -> float:
    """Run a case on a new cluster."""
    pairs = int(sum(speeds) * seconds) // SHARD_PAIRS * SHARD_PAIRS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = prepare(folder, pairs)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for speed in speeds:
            with patch.dict(os.environ, {SPEED: str(speed)}):
                cluster.add_node(num_cpus=1)
        settings = WorkerSettings(
            root=str(folder / "out"), run="scaling", base=str(folder), model="sleeping", size=None, crop=None,
            style_size=SIDE, format="jpeg", quality=95, layout="files", metrics=False, batch_size=None, device="cpu",
            precision="fp32",
        )  # fmt: skip
        engine = RayEngine(cluster.address, len(speeds), None, 1)
        try:
            engine.start([settings], container.builtin_bytes(container.DEFAULT))
            (batch,) = engine.encode_styles([StyleRequest(["style.png"], {})])
            while not all(slot.ready for slot in engine._crew.slots):
                answered = engine._crew.wait()
                for slot in engine._crew.slots:
                    slot.hear(answered)
            started = time.monotonic()
            made = sum(report.totals.ok for report in engine.run_shards(shards, bank_of(batch.vectors, {})))
            took = time.monotonic() - started
        finally:
            engine.close()
            cluster.shutdown()
    assert made == pairs
    return made / took / sum(speeds)


def main() -> None:
    """Print a Markdown table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 25.0
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}\n"
    )
    print("| | pictures/s | efficiency |\n|---|--:|--:|")
    with patch.object(crew, "WorkerActor", SleepingActor):
        for name, speeds in CASES.items():
            print_row(name, speeds, seconds)
        with patch.object(Dispatch, "_share", lambda self: None):
            print_row(f"{name}, nothing taken over at the end", speeds, seconds)


def print_row(name: str, speeds: Sequence[float], seconds: float) -> None:
    """Run a case and print its line."""
    reached = efficiency(speeds, seconds)
    print(f"| {name} | {reached * sum(speeds):.1f} of {sum(speeds):g} | {reached:.2f} |", flush=True)


if __name__ == "__main__":
    main()
