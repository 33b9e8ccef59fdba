"""What the driver has actors do: encode some styles, stylize a shard; whole, or piece by piece after crashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pyarrow as pa

from stylize_batch.engine.base import StyleRequest
from stylize_batch.engine.metrics import WorkMetrics
from stylize_batch.engine.ray_actor import Ref, encode_styles_alone, stylize_alone
from stylize_batch.errors import RowError, counted
from stylize_batch.manifest.shards import Shard, read_shard
from stylize_batch.results import Outcome, complete, put_part, read_finished, results_table
from stylize_batch.root import Root
from stylize_batch.settings import ShardReport, WorkerSettings
from stylize_batch.styles import StyleBatch, StyleVector

RunAlone = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
"""Runs a function once per tuple of arguments, each in a process of its own; None for each that died, or hung."""


class Task(Protocol):
    """Something an actor does for the driver."""

    def __str__(self) -> str:
        """Return what people call it."""
        ...

    def submit(self, actor: Any) -> Ref:
        """Start it on an actor."""
        ...

    def alone(self, settings: WorkerSettings, run_alone: RunAlone) -> Any:
        """Do it piece by piece, each in a process that may die; return what `submit`'s result would be."""
        ...


class StyleTask:
    """Encode the styles of one request."""

    def __init__(self, request: StyleRequest) -> None:
        self._request = request

    def __str__(self) -> str:
        return f"{counted(len(self._request.uris), 'style')} from {self._request.uris[0]} on"

    def submit(self, actor: Any) -> Ref:
        """Start it on an actor."""
        return actor.encode_styles.remote(self._request)

    def alone(self, settings: WorkerSettings, run_alone: RunAlone) -> StyleBatch:
        """Encode each style alone; one that kills its process is a failed style."""
        uris = self._request.uris
        pieces = [(StyleRequest([uri], self._request.versions),) for uri in uris]
        vectors: list[StyleVector] = []
        failures: dict[str, RowError] = {}
        seconds: Counter[str] = Counter()
        for uri, found in zip(uris, run_alone(encode_styles_alone, pieces), strict=True):
            if found is None:
                failures[uri] = RowError("WorkerDied", f"{uri} ended the process that encoded it")
            else:
                vectors.extend(found.vectors)
                failures.update(found.failures)
                seconds.update(found.seconds)
        return StyleBatch(vectors, failures, len(uris), seconds)


class ShardTask:
    """Stylize and commit one shard."""

    def __init__(self, shard: int, bank: list[Ref]) -> None:
        self._shard = shard
        self._bank = bank

    def __str__(self) -> str:
        return f"shard {self._shard}"

    def submit(self, actor: Any) -> Ref:
        """Start it on an actor."""
        return actor.run_shard.remote(self._shard, self._bank)

    def alone(self, settings: WorkerSettings, run_alone: RunAlone) -> ShardReport:
        """Stylize each content alone; one that kills its process fails its own rows."""
        root = Root(settings.root, settings.run)
        plan = read_shard(root, self._shard, settings.run)
        whole = Shard(self._shard, len(plan))
        died = Outcome(
            error=str(RowError("WorkerDied", "the process that stylized this content ended without a word"))
        )

        metrics = WorkMetrics(settings)

        def dead(piece: pa.Table) -> pa.Table:
            for _ in range(len(piece)):
                metrics.pair(died)
            return results_table(piece, [died] * len(piece), settings.model)

        def make(rows: pa.Table) -> pa.Table:
            pieces = by_content(rows)
            found = run_alone(stylize_alone, [(whole, piece, self._bank) for piece in pieces])
            return pa.concat_tables(
                dead(piece) if table is None else table for piece, table in zip(pieces, found, strict=True)
            )

        table = complete(plan, read_finished(root, self._shard, settings.run), make)
        return ShardReport(self._shard, put_part(root, self._shard, table, settings.run))


def by_content(plan: pa.Table) -> list[pa.Table]:
    """Split rows sorted by content into one table per content."""
    contents = plan["content"].to_pylist()
    starts = [0, *(row for row in range(1, len(contents)) if contents[row] != contents[row - 1])]
    ends = [*starts[1:], len(contents)]
    return [plan.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]
