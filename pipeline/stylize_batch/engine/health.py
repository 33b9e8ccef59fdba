"""Which nodes lose work that is done elsewhere."""

from __future__ import annotations

from collections import defaultdict

MAX_LOST = 3
"""Tasks in a row that only one node has lost: then it gets no more, if others can go on."""


class Health:
    """Remembers which nodes have lost which tasks. A task that several have lost is itself to blame."""

    def __init__(self) -> None:
        self._lost: defaultdict[object, set[str]] = defaultdict(set)

    def lost(self, node: str, task: object) -> None:
        """Take note that a task was lost on a node: its process died, or it met trouble that is not its own."""
        self._lost[task].add(node)

    def finished(self, node: str) -> None:
        """Take note that a node has finished a task: what it alone has lost before speaks no longer against it."""
        for task in [task for task, nodes in self._lost.items() if nodes == {node}]:
            del self._lost[task]

    def sick(self, node: str) -> bool:
        """Whether a node has lost too much that no other has lost."""
        return sum(nodes == {node} for nodes in self._lost.values()) >= MAX_LOST

    def well(self, node: str) -> bool:
        """Whether a node has lost nothing that no other has lost."""
        return {node} not in self._lost.values()
