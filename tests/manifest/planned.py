"""Manifests planned, and what is said of those that are refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from stylize_batch.manifest.partition import Partition, check_and_partition
from stylize_batch.manifest.plan import write_plan
from stylize_batch.manifest.schema import ManifestError
from stylize_batch.manifest.shards import read_shard
from stylize_batch.manifest.source import locate
from stylize_batch.root import Root


def planned(
    manifest: Path, root: Path, shard_pairs: int = 4, limit: int | None = None
) -> tuple[Partition, list[pa.Table]]:
    folder = root / "spill"
    folder.mkdir(parents=True)
    partition = check_and_partition(locate(str(manifest)), folder, "jpeg", limit)
    made = write_plan(partition, Root(str(root / "out")), shard_pairs, "run")
    return partition, [read_shard(Root(str(root / "out")), shard, "run") for shard in range(made)]


def refused(manifest: Path, root: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        planned(manifest, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)
