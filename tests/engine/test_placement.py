"""What actors ask for: everything at once finds room, and on a cluster what finds none makes it grow."""

from __future__ import annotations

import pytest

from stylize_batch.engine.placement import Placement, Resources, place
from stylize_batch.errors import UsageError

GPU_NODE: Resources = {"CPU": 16.0, "GPU": 2.0}


def cpus(*cores: int) -> list[Resources]:
    return [{"CPU": float(each)} for each in cores]


def test_there_is_an_actor_for_each_gpu_and_it_takes_no_core_from_decoding() -> None:
    assert place([GPU_NODE, {"CPU": 4.0}], "cuda", None, own=False) == Placement(2, 1.0, 0, None)


@pytest.mark.parametrize(("actors", "share"), [(2, 1.0), (3, 1 / 2), (4, 1 / 2), (5, 1 / 3)])
def test_actors_share_the_gpus_of_this_machine_so_that_all_find_room(actors: int, share: float) -> None:
    placement = place([GPU_NODE], "cuda", actors, own=True)
    assert placement == Placement(actors, share, 0, None)
    assert sum(int(1 / share + 1e-9) for _ in range(2)) >= actors


def test_on_a_cluster_actors_share_no_gpu_so_that_those_without_make_it_grow() -> None:
    assert place([GPU_NODE], "cuda", 8, own=False) == Placement(8, 1.0, 0, None)
    assert place([], "cuda", 8, own=False) == Placement(8, 1.0, 0, None)


@pytest.mark.parametrize(("actors", "own"), [(None, False), (None, True), (4, True)])
def test_a_gpu_that_is_not_there_and_will_not_come_is_refused(actors: int | None, own: bool) -> None:
    with pytest.raises(UsageError, match="the cluster has no GPU"):
        place(cpus(4), "cuda", actors, own=own)


@pytest.mark.parametrize(
    ("nodes", "actors", "expected"),
    [
        (cpus(2), None, (1, 2)),
        (cpus(16), None, (4, 4)),
        (cpus(2, 2, 2), None, (3, 2)),  # nodes of less than four cores have an actor each
        (cpus(0, 8), None, (2, 4)),  # a head without cores does nothing
        (cpus(5, 5), 3, (3, 2)),  # three cores each would leave the third without a place
        (cpus(4, 4), 2, (2, 4)),
        (cpus(4), 8, (8, 1)),
        ([], 3, (3, 1)),
    ],
)
def test_all_actors_of_a_cluster_find_room_on_whole_cores(
    nodes: list[Resources], actors: int | None, expected: tuple[int, int]
) -> None:
    count, cores = expected
    assert place(nodes, "cpu", actors, own=False) == Placement(count, 0, cores, cores)


def test_more_actors_than_cores_share_the_cores_of_this_machine() -> None:
    assert place(cpus(2), "cpu", 3, own=True) == Placement(3, 0, 1 / 2, 1)
