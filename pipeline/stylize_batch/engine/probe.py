"""What is found out before work starts: that every node that may work has the package and can use the output root."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stylize_batch import __version__
from stylize_batch.engine.cluster import Node, living_nodes
from stylize_batch.engine.crew import reason_of
from stylize_batch.errors import DeviceError, UsageError
from stylize_batch.manifest.shards import shard_key
from stylize_batch.settings import Device, WorkerSettings
from stylize_batch.storage import TEMPORARY, Root

PROBE_SECONDS = 120.0

RESOURCES: dict[Device, str] = {"cuda": "GPU", "cpu": "CPU"}
"""What a node must have for actors on a device, by Ray's names; the device that asks more of a node comes first."""


def check_nodes(settings: Sequence[WorkerSettings]) -> None:
    """Have every node that actors may run on read an object under the output root and write it, and use its GPU.

    A local root must be the same folder everywhere, so what each node writes is looked for here. On object storage each
    writes the plan's first shard as it is: nothing is changed or left over, and no right is needed that work does not need.

    Args:
        settings: of each device that actors may run on.

    Raises:
        UsageError: a node lacks the package or has another version, does not share a local root, cannot use the root,
            or has a GPU that torch cannot use.
    """
    by_resource = {RESOURCES[each.device]: each for each in settings}
    run = settings[0].run
    root = Root(settings[0].root, run)
    nonce = uuid.uuid4().hex.encode()
    read = f"{TEMPORARY}/{run}/nonce" if root.local else shard_key(0)
    if root.local:
        root.put(read, nonce)
    # A process of its own for each, since it looks at GPUs that Ray has not given it.
    probe: Any = cast("Any", ray.remote)(num_cpus=0, max_retries=0, max_calls=1)(_probe)
    asked: list[tuple[Node, str, Any]] = []
    for node in living_nodes().values():
        found = [
            by_resource[name]
            for name in RESOURCES.values()
            if name in by_resource and node["Resources"].get(name)
        ]
        if not found:
            continue
        write = f"{TEMPORARY}/{run}/nonce-{node['NodeID']}" if root.local else read
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append((node, write, probe.options(scheduling_strategy=there).remote(found[0], read, write)))
    for node, write, answer in asked:
        problem = _problem(root, answer)
        if problem is None and root.local and not _holds(root, write, nonce):
            problem = _not_shared(root)
        # A node that was lost meanwhile has nothing to say; one that takes its place is found at the end.
        if problem is not None and node["NodeID"] in living_nodes():
            raise UsageError(f"node {node['NodeManagerAddress']} {problem}")


def _probe(settings: WorkerSettings, read: str, write: str) -> str:
    """Copy an object under the root, and look for the device; return the package's version."""
    root = Root(settings.root, settings.run)
    root.put(write, root.read(read))
    if settings.device == "cuda":
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # by which Ray hides GPUs from who asked for none
        from stylize_batch.model.device import check_device  # brings torch

        check_device(settings.device)
    return __version__


def _problem(root: Root, answer: Any) -> str | None:
    try:
        there = cast("str", ray.get(answer, timeout=PROBE_SECONDS))
    except RayTaskError as error:
        if isinstance(error.cause, FileNotFoundError) and root.local:
            return _not_shared(root)
        if isinstance(error.cause, DeviceError):
            return f"has a GPU that cannot be used: {error.cause}"
        if isinstance(error.cause, OSError):
            return f"cannot use {root.uri}: {error.cause}; nodes need credentials or permissions of their own"
        return f"cannot run this package, install it there as it is here: {reason_of(error)}"
    except RayError as error:
        return f"does not answer: {reason_of(error)}"
    if there == __version__:
        return None
    return f"has stylize-batch {there}, here is {__version__}; install the same on both"


def _holds(root: Root, key: str, data: bytes) -> bool:
    try:
        return root.read(key) == data
    except OSError:
        return False


def _not_shared(root: Root) -> str:
    return f"does not share {root.uri}; with several nodes use object storage or a shared file system for --output"
