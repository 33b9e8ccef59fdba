"""What actors ask for: everything at once finds room, and on a cluster what finds none makes it grow."""

from __future__ import annotations

from typing import Any

import pytest

from stylize_batch.engine.placement import Placement, Resources, place
from stylize_batch.errors import UsageError

GPU_NODE: Resources = {"CPU": 16.0, "GPU": 2.0}
MANY = 10_000


def cpus(*cores: int) -> list[Resources]:
    return [{"CPU": float(each)} for each in cores]


def on_gpus(nodes: list[Resources], actors: int | None, shards: int = MANY, **options: Any) -> Placement:
    return place(nodes, {"cuda": actors}, shards=shards, **options)["cuda"]


def on_cpus(nodes: list[Resources], actors: int | None, shards: int = MANY, *, own: bool) -> Placement:
    return place(nodes, {"cpu": actors}, own=own, shards=shards)["cpu"]


def test_there_is_an_actor_for_each_gpu_and_it_takes_no_core_from_decoding() -> None:
    assert on_gpus([GPU_NODE, {"CPU": 4.0}], None, own=False) == Placement(2, 1.0, 0, None)


@pytest.mark.parametrize(("actors", "share"), [(2, 1.0), (3, 1 / 2), (4, 1 / 2), (5, 1 / 3)])
def test_actors_share_the_gpus_of_this_machine_so_that_all_find_room(actors: int, share: float) -> None:
    placement = on_gpus([GPU_NODE], actors, own=True)
    assert placement == Placement(actors, share, 0, None)
    assert sum(int(1 / share + 1e-9) for _ in range(2)) >= actors


def test_on_a_cluster_actors_share_no_gpu_so_that_those_without_make_it_grow() -> None:
    assert on_gpus([GPU_NODE], 8, own=False) == Placement(8, 1.0, 0, None)
    assert on_gpus([], 8, own=False) == Placement(8, 1.0, 0, None)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 4), (0.4, 4), (0.1, 20), (0.7, 2), (1.0, 2)])
@pytest.mark.parametrize("own", [True, False])
def test_a_share_that_is_given_decides_how_many_actors_the_gpus_of_a_cluster_have(
    share: float, expected: int, own: bool
) -> None:
    assert on_gpus([GPU_NODE], None, own=own, gpus_per_actor=share) == Placement(expected, share, 0, None)
    assert on_gpus([GPU_NODE], 3, own=own, gpus_per_actor=share) == Placement(3, share, 0, None)


@pytest.mark.parametrize(
    ("nodes", "gpu_cores", "cpu_cores"),
    [
        ([GPU_NODE, *cpus(8)], 4, 8),
        ([GPU_NODE], 4, 4),
        ([{"CPU": 2.0, "GPU": 1.0}], 1, 1),
        ([{"CPU": 1.0, "GPU": 1.0}, *cpus(2)], 0, 1),
    ],
)
def test_actors_on_cpus_leave_cores_to_the_gpus_beside_them(
    nodes: list[Resources], gpu_cores: int, cpu_cores: int
) -> None:
    placements = place(nodes, {"cuda": 1, "cpu": 1 if cpu_cores == 8 else 2}, own=False, shards=MANY)
    assert list(placements) == ["cuda", "cpu"]
    assert placements["cuda"] == Placement(1, 1.0, gpu_cores, None)
    assert placements["cpu"].cores == placements["cpu"].num_cpus == cpu_cores


@pytest.mark.parametrize(("actors", "own"), [(None, False), (None, True), (4, True)])
def test_a_gpu_that_is_not_there_and_will_not_come_is_refused(actors: int | None, own: bool) -> None:
    with pytest.raises(UsageError, match="no GPU on this machine" if own else "the cluster has no GPU"):
        on_gpus(cpus(4), actors, own=own)


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
        (cpus(0), None, (1, 4)),  # nodes come that fit what is asked for
        (cpus(0), 4, (4, 4)),
        ([], 3, (3, 4)),
    ],
)
def test_all_actors_of_a_cluster_find_room_on_whole_cores(
    nodes: list[Resources], actors: int | None, expected: tuple[int, int]
) -> None:
    count, cores = expected
    assert on_cpus(nodes, actors, own=False) == Placement(count, 0, cores, cores)


@pytest.mark.parametrize(("shards", "expected"), [(1, 2), (2, 2), (3, 3), (100, 100), (101, 100)])
def test_a_cluster_grows_for_no_more_actors_than_the_work_left_can_use(shards: int, expected: int) -> None:
    assert on_gpus([], 100, shards, own=False) == Placement(expected, 1.0, 0, None)
    assert on_cpus([], 100, shards, own=False) == Placement(expected, 0, 4, 4)
    assert on_gpus([GPU_NODE] * 50, None, shards, own=False).actors == expected


def test_the_last_shard_is_made_with_what_all_others_were_made_with() -> None:
    assert on_cpus(cpus(16), None, 1, own=False) == Placement(2, 0, 4, 4)
    assert on_cpus(cpus(2), 4, 1, own=True) == Placement(2, 0, 1 / 2, 1)


def test_more_actors_than_cores_share_the_cores_of_this_machine() -> None:
    assert on_cpus(cpus(2), 3, own=True) == Placement(3, 0, 1 / 2, 1)


def test_the_most_actors_there_may_be_share_one_core_in_parts_that_ray_knows() -> None:
    assert on_cpus(cpus(1), 9999, own=True).num_cpus >= 0.0001
