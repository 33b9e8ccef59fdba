"""What each actor asks the cluster for, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

from stylize_batch.errors import UsageError
from stylize_batch.settings import Device

CORES_PER_ACTOR = 4
"""Cores for each actor of an automatic number, where there are no GPUs."""

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


def place(nodes: Sequence[Resources], device: Device, actors: int | None, *, own: bool) -> Placement:
    """Choose so that all actors find room at once, or, on a cluster, as many as there is room for.

    On a Ray of our own more actors than GPUs or cores share them. On a cluster each has its own: those that find no
    room yet are what makes it grow.

    Args:
        nodes: resources of each living node.
        device: where the network runs.
        actors: how many; None takes one for each GPU, or for four cores of a node.
        own: whether the Ray was started for this run alone.

    Raises:
        UsageError: a GPU is demanded, there is none, and nothing says that one will come.
    """
    if device == "cuda":
        gpus = sum(node.get("GPU", 0.0) for node in nodes)
        if not gpus and (own or actors is None):
            raise UsageError(
                "--device cuda: the cluster has no GPU; use --device cpu, or --actors N if it adds GPU nodes"
            )
        count = actors or max(1, int(gpus))
        return Placement(count, _share(count, gpus) if own else 1.0, 0, None)
    cores = [int(node.get("CPU", 0.0)) for node in nodes if node.get("CPU", 0.0) >= 1] or [1]
    count = actors or sum(max(1, each // CORES_PER_ACTOR) for each in cores)
    fitting = (size for size in range(max(cores), 0, -1) if sum(each // size for each in cores) >= count)
    size = next(fitting, 1)
    return Placement(count, 0, _share(count, sum(cores)) if own and count > sum(cores) else size, size)


def _share(actors: int, units: float) -> float:
    """Return the part of a unit for each actor; Ray gives no actor parts of several."""
    return 1 / ceil(actors / units) if actors > units else 1.0
