"""What each actor asks the cluster for, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

from stylize_batch.errors import UsageError
from stylize_batch.settings import Device

CORES_PER_ACTOR = 4
"""Cores for each actor of an automatic number, where there are no GPUs; and for each where no node is up yet."""

CORES_BESIDE_GPU = 4
"""Cores of a GPU's node that actors on CPUs leave to its decoding, or half of them where there are fewer than eight."""

Resources = dict[str, float]
"""What a node has, by Ray's names."""


class Placement(NamedTuple):
    """How many actors, what each asks for, and the cores it computes on (None: beside a GPU, torch chooses)."""

    actors: int
    num_gpus: float
    num_cpus: float
    cores: int | None

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is asked for each actor."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus}


def place(
    nodes: Sequence[Resources],
    actors: Mapping[Device, int | None],
    *,
    own: bool,
    shards: int,
    gpus_per_actor: float | None = None,
) -> dict[Device, Placement]:
    """Choose so that all actors find room at once, or, on a cluster, as many as there is room for.

    On a Ray of our own more actors than GPUs or cores share them. On a cluster each has its own: those that find no
    room yet are what makes it grow, so there are no more than the work left can use. What each asks for does not depend
    on the work left: the last shard has what the first had.

    Args:
        nodes: resources of each living node.
        actors: how many on each device; None takes one for each GPU (or share of one), or for four cores of a node.
        own: whether the Ray was started for this run alone.
        shards: that are left to do.
        gpus_per_actor: the share of a GPU that one actor takes; None chooses.

    Raises:
        UsageError: a GPU is demanded, there is none, and nothing says that one will come.
    """
    cores = [node.get("CPU", 0.0) for node in nodes]
    placements: dict[Device, Placement] = {}
    if "cuda" in actors:
        beside = _cores_beside_gpu(nodes) if "cpu" in actors else 0
        cores = [node.get("CPU", 0.0) - beside * node.get("GPU", 0.0) for node in nodes]
        placements["cuda"] = _on_gpus(nodes, actors["cuda"], own, gpus_per_actor, beside)
    if "cpu" in actors:
        placements["cpu"] = _on_cpus(cores, actors["cpu"], own)
    most = max(shards, 2)  # a second one for the last shard, should the first be slow or hang
    return {
        device: placement._replace(actors=min(placement.actors, most))
        for device, placement in placements.items()
    }


def _on_gpus(
    nodes: Sequence[Resources], actors: int | None, own: bool, share: float | None, beside: int
) -> Placement:
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if not gpus and (own or actors is None):
        raise UsageError(
            "--device cuda: Ray finds no GPU on this machine; use --device cpu"
            if own
            else "--device cuda: the cluster has no GPU; use --device cpu, or --actors N if it adds GPU nodes"
        )
    count = actors or max(1, int(gpus) * int(1 / (share or 1) + 1e-9))
    share = share or (_share(count, gpus) if own else 1.0)
    return Placement(count, share, int(beside * share), None)


def _on_cpus(free: Sequence[float], actors: int | None, own: bool) -> Placement:
    # Where a cluster has no core yet, nodes come that fit what is asked for.
    cores = [int(each) for each in free if each >= 1] or [CORES_PER_ACTOR] * (actors or 1)
    count = actors or sum(max(1, each // CORES_PER_ACTOR) for each in cores)
    fitting = (size for size in range(max(cores), 0, -1) if sum(each // size for each in cores) >= count)
    size = next(fitting, 1)
    return Placement(count, 0, _share(count, sum(cores)) if own and count > sum(cores) else size, size)


def _cores_beside_gpu(nodes: Sequence[Resources]) -> int:
    """Return the whole cores that are left to each GPU where actors on CPUs take the others."""
    per_gpu = [node.get("CPU", 0.0) / node["GPU"] for node in nodes if node.get("GPU")]
    return int(min([CORES_BESIDE_GPU, *(each / 2 for each in per_gpu)]))


def _share(actors: int, units: float) -> float:
    """Return the part of a unit for each actor; Ray gives no actor parts of several."""
    return 1 / ceil(actors / units) if actors > units else 1.0
