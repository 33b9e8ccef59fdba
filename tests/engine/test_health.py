"""Which nodes are taken for sick: those that lose what others do, and not those that meet what nobody can do."""

from __future__ import annotations

from stylize_batch.engine.health import MAX_LOST, Health


def test_a_node_is_sick_that_has_lost_several_tasks_in_a_row_that_no_other_has() -> None:
    health = Health()
    for task in range(MAX_LOST):
        assert not health.sick("a")
        health.lost("a", task)
    assert health.sick("a")
    assert not health.sick("b")


def test_a_task_that_two_nodes_have_lost_speaks_against_neither() -> None:
    health = Health()
    for task in range(2 * MAX_LOST):
        for node in ("a", "b", "a"):
            health.lost(node, task)
    assert not health.sick("a")
    assert not health.sick("b")


def test_one_task_lost_again_and_again_on_one_node_speaks_against_it_once() -> None:
    health = Health()
    for _ in range(2 * MAX_LOST):
        health.lost("a", "poison")
    assert not health.sick("a")


def test_a_node_that_finishes_a_task_is_sound() -> None:
    health = Health()
    for task in range(2 * MAX_LOST):
        health.lost("a", task)
        health.finished("a")
    assert not health.sick("a")
