"""What is found out before work starts: that every node that may work has the package, can use the output root and
reads what others read."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stylize_batch import __version__
from stylize_batch.engine.access import Asked, ask_for_content, cannot_read, cannot_use, not_shared
from stylize_batch.engine.cluster import Node, living_nodes
from stylize_batch.engine.crew import reason_of
from stylize_batch.engine.ray_actor import Place
from stylize_batch.errors import DeviceError, JobFailedError, SystemicError, UsageError
from stylize_batch.manifest.shards import shard_key
from stylize_batch.root import TEMPORARY, Root
from stylize_batch.settings import Device, WorkerSettings

PROBE_SECONDS = 120.0

RESOURCES: dict[Device, str] = {"cuda": "GPU", "cpu": "CPU"}
"""What a node must have for actors on a device, by Ray's names; the device that asks more of a node comes first."""


class Found(NamedTuple):
    """What a node says: the package's version, and what came of asking for the first content."""

    version: str
    asked: Asked


class Probed(NamedTuple):
    """What is known of nodes before work starts.

    Attributes:
        silent: those that do not answer, and why.
        sound: the identities of those that read the first content; None if nobody can, so that nothing speaks against
            nodes that cannot.
    """

    silent: Mapping[Place, str]
    sound: frozenset[str] | None


def check_nodes(settings: Sequence[WorkerSettings]) -> Probed:
    """Have every node that actors may run on read an object under the output root and write it, ask for the first
    content, and use its GPU. This process asks for it, too: where a cluster has yet to grow, it is the only one.

    A local root must be the same folder everywhere, so what each node writes is looked for here. On object storage each
    writes the plan's first shard as it is: nothing is changed or left over, and no right is needed that work does not need.

    Args:
        settings: of each device that actors may run on.

    Raises:
        UsageError: a node lacks the package or has another version, does not share a local root, cannot use the root,
            cannot read the content where others can, or has a GPU that torch cannot use; or no node answers.
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
        devices = [
            by_resource[name]
            for name in RESOURCES.values()
            if name in by_resource and node["Resources"].get(name)
        ]
        if not devices:
            continue
        write = f"{TEMPORARY}/{run}/nonce-{node['NodeID']}" if root.local else read
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append((node, write, probe.options(scheduling_strategy=there).remote(devices[0], read, write)))
    readable = ask_for_content(root, settings[0]).reads
    ray.wait([answer for _, _, answer in asked], num_returns=len(asked), timeout=PROBE_SECONDS)
    silent: dict[Place, str] = {}
    found: list[tuple[Node, Found]] = []
    for node, write, answer in asked:
        here = node["NodeManagerAddress"]
        try:
            said = _answer(root, answer)
            if root.local and not _holds(root, write, nonce):
                raise UsageError(not_shared(root))
            found.append((node, said))
        except RayError as error:
            silent[Place(here, node["NodeID"])] = f"it does not answer: {reason_of(error)}"
        except UsageError as error:
            # A node that was lost meanwhile has nothing to say; one that takes its place is found at the end.
            if node["NodeID"] in living_nodes():
                raise UsageError(f"node {here} {error}") from None
    if silent and not found:
        raise UsageError("; ".join(f"{place}: {reason}" for place, reason in silent.items()))
    sound = frozenset(node["NodeID"] for node, said in found if said.asked.reads)
    if not (readable or sound):  # there may be no such content
        return Probed(silent, None)
    for node, said in found:
        if said.asked.refusal is not None:
            raise UsageError(f"node {node['NodeManagerAddress']} {cannot_read(said.asked.refusal)}")
    return Probed(silent, sound)


def _probe(settings: WorkerSettings, read: str, write: str) -> Found:
    """Copy an object under the root, look for the device and ask for the first content."""
    root = Root(settings.root, settings.run)
    root.put(write, root.read(read))
    if settings.device == "cuda":
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # by which Ray hides GPUs from who asked for none
        from stylize_batch.model.device import check_device  # brings torch

        check_device(settings.device)
    return Found(__version__, ask_for_content(root, settings))


def _answer(root: Root, answer: Any) -> Found:
    """Return what a node says.

    Raises:
        UsageError: it cannot take part.
        JobFailedError: the plan cannot be used, by no fault of the node.
        RayError: it says nothing.
    """
    try:
        found = cast("Found", ray.get(answer, timeout=0))
    except RayTaskError as error:
        if isinstance(error.cause, FileNotFoundError) and root.local:
            raise UsageError(not_shared(root)) from None
        if isinstance(error.cause, SystemicError):
            raise JobFailedError(str(error.cause)) from None
        if isinstance(error.cause, DeviceError):
            raise UsageError(f"has a GPU that cannot be used: {error.cause}") from None
        if isinstance(error.cause, OSError):
            raise UsageError(cannot_use(root, error.cause)) from None
        raise UsageError(
            f"cannot run this package, install it there as it is here: {reason_of(error)}"
        ) from None
    if found.version != __version__:
        raise UsageError(
            f"has stylize-batch {found.version}, here is {__version__}; install the same on both"
        )
    return found


def _holds(root: Root, key: str, data: bytes) -> bool:
    try:
        return root.read(key) == data
    except OSError:
        return False
