"""What a run's driver and its object stores hold, and how fast a driver talks to actors: the parts that grow with a cluster.

    python benchmarks/driver.py [--styles 80000] [--quick]

Two of Ray's own nodes on this machine, each with its own object store: the bank travels between them as between
machines, but for the wire.
"""

from __future__ import annotations

import logging
import resource
import time
from typing import Any

import numpy as np
import ray
from harness import Page, options
from ray.cluster_utils import Cluster

from stylize_batch.engine.on_ray import object_store_bytes
from stylize_batch.styles import StyleBank, StyleVector, bank_of

WIDTH = 1920
"""Floats of a style: μ and σ at four layers."""

CALLS = 5_000


@ray.remote(num_cpus=1)
class Reader:
    """An actor on the second node."""

    def fetch(self, bank: list[Any]) -> tuple[float, int]:
        """Return the seconds until the bank is here, and its styles."""
        started = time.perf_counter()
        found: StyleBank = ray.get(bank[0])
        return time.perf_counter() - started, len(found.matrix)

    def ping(self) -> int:
        """Answer."""
        return 0


def peak() -> float:
    """Return this process's peak memory, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Write the page."""
    parser = options(__doc__)
    parser.add_argument("--styles", type=int, default=80_000, help="of the bank")
    given = parser.parse_args()
    count = 2_000 if given.quick else given.styles
    store = object_store_bytes(count * WIDTH * 4)
    node = {"object_store_memory": store, "include_dashboard": False}
    with Page("The driver", given) as page:
        cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
        cluster.add_node(num_cpus=1, object_store_memory=store)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            reader: Any = Reader.remote()
            ray.get(reader.ping.remote())
            before = peak()
            random = np.random.default_rng(0)
            vectors = [
                StyleVector(f"s3://paintings/train/{style}.jpg", "version", random.random(WIDTH, np.float32))
                for style in range(count)
            ]
            held = peak()
            bank = bank_of(vectors, {})
            banked = peak()
            started = time.perf_counter()
            reference = ray.put(bank)
            put = time.perf_counter() - started
            first, found = ray.get(reader.fetch.remote([reference]))
            again, _ = ray.get(reader.fetch.remote([reference]))
            assert found == count
            started = time.perf_counter()
            ray.get([reader.ping.remote() for _ in range(CALLS)])
            calls = CALLS / (time.perf_counter() - started)
        finally:
            ray.shutdown()
            cluster.shutdown()
        megabytes = bank.matrix.nbytes / 1e6
        page.table("", "")
        page.row("styles in the bank", f"{count:,}")
        page.row("its matrix, MB", f"{megabytes:,.0f}")
        page.row(
            "the driver's peak memory before, with the vectors, with the bank, MB",
            f"{before:,.0f}, {held:,.0f}, {banked:,.0f}",
        )
        page.row("object store of each node, as a run sizes it, MB", f"{store / 1e6:,.0f}")
        page.row("`ray.put`, s", f"{put:.2f}")
        page.row("to an actor on another node, s", f"{first:.2f}")
        page.row("that is, MB/s", f"{megabytes / first:,.0f}")
        page.row("to another task there, ms", f"{again * 1e3:.1f}")
        page.row("calls of an actor, answered per second", f"{calls:,.0f}")
        page.end_table()


if __name__ == "__main__":
    main()
