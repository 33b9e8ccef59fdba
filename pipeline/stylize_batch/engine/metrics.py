"""Ray metrics of a run: every node's endpoint serves what its actors have counted, under names with `ray_` in front.

Images per second are `rate(ray_stylize_batch_pairs_total{status="ok"}[5m])`.
"""

from __future__ import annotations

from typing import TypeVar

from ray.util.metrics import Counter, Gauge, Histogram, Metric

from stylize_batch.results import Outcome
from stylize_batch.settings import ShardReport, WorkerSettings

LOSSES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
"""Upper bounds of a histogram's buckets."""


_Kind = TypeVar("_Kind", bound=Metric)


class WorkMetrics:
    """What a process that stylizes counts. Pairs of a shard that is done again are counted again."""

    def __init__(self, settings: WorkerSettings) -> None:
        def make(kind: type[_Kind], name: str, description: str, *keys: str, **options: list[float]) -> _Kind:
            return _make(settings, kind, name, description, *keys, **options)

        self._pairs = make(Counter, "pairs", "Pairs, by status.", "status")
        self._failures = make(Counter, "failures", "Failed pairs, by kind.", "kind")
        self._seconds = make(Counter, "stage_seconds", "Seconds, by stage, added up over threads.", "stage")
        self._read = make(Counter, "read_bytes", "Bytes of images read.")
        self._written = make(Counter, "written_bytes", "Bytes of pictures written.")
        self._content_loss = make(Histogram, "content_loss", "Of a picture (Eq. 12).", boundaries=LOSSES)
        self._style_loss = make(Histogram, "style_loss", "Of a picture (Eq. 13).", boundaries=LOSSES)

    def pair(self, outcome: Outcome) -> None:
        """Count a pair as it is finished."""
        self._pairs.inc(1, {"status": "ok" if outcome.error is None else "failed"})
        if outcome.error is not None:
            self._failures.inc(1, {"kind": outcome.error.partition(":")[0]})
        if outcome.content_loss is not None and outcome.style_loss is not None:
            self._content_loss.observe(outcome.content_loss)
            self._style_loss.observe(outcome.style_loss)

    def shard(self, report: ShardReport) -> None:
        """Count what a finished shard has taken."""
        counts = [(self._seconds, seconds, {"stage": stage}) for stage, seconds in report.seconds.items()]
        counts += [(self._read, report.bytes_read, {}), (self._written, report.bytes_written, {})]
        for counter, count, tags in counts:
            if count:  # Ray refuses to add nothing
                counter.inc(count, tags)


class DriverMetrics:
    """What the driver knows."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._queue = _make(settings, Gauge, "queue_depth", "Tasks that no worker has been given yet.")

    def queue(self, tasks: int) -> None:
        """Tell how many tasks wait."""
        self._queue.set(tasks)


def _make(
    settings: WorkerSettings,
    kind: type[_Kind],
    name: str,
    description: str,
    *keys: str,
    **options: list[float],
) -> _Kind:
    tags = {"model": settings.model, "device": settings.device}
    metric = kind(f"stylize_batch_{name}", description, tag_keys=(*tags, *keys), **options)
    metric.set_default_tags(tags)
    return metric
