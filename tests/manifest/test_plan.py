"""Planning: every row lands in one shard, and contents stay together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylize_batch.manifest import partition, plan
from stylize_batch.manifest.plan import usual_shard_pairs
from stylize_batch.manifest.shards import largest_first, read_styles
from stylize_batch.root import Root
from tests.conftest import MakeManifest, Row
from tests.manifest.planned import planned


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    per_content=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    shard_pairs=st.integers(1, 12),
    bucket_rows=st.sampled_from([5, 40, 10_000]),
)
def test_every_row_is_planned_once_and_contents_stay_together(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    per_content: list[int],
    shard_pairs: int,
    bucket_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    monkeypatch.setattr(partition, "BUCKET_ROWS", bucket_rows)
    rows = [(f"c{c}", f"s{s}") for c, count in enumerate(per_content) for s in range(count)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    manifest = folder / "m.parquet"
    pq.write_table(pa.table({"content": [c for c, _ in rows], "style": [s for _, s in rows]}), manifest)
    made, shards = planned(manifest, folder, shard_pairs)
    found = [(row["content"], row["style"][0]) for table in shards for row in table.to_pylist()]
    assert made.pairs == len(rows)
    assert sorted(found) == sorted(rows)
    for content, count in enumerate(per_content):
        holders = sum(f"c{content}" in table["content"].to_pylist() for table in shards)
        assert holders == 1 or count > plan.OVERSIZE * shard_pairs
    for table in shards:
        distinct = len(set(table["content"].to_pylist()))
        assert len(table) <= shard_pairs or (distinct == 1 and len(table) <= plan.OVERSIZE * shard_pairs)


def test_a_shard_is_filled_up_to_the_pairs_asked_for(make_manifest: MakeManifest, tmp_path: Path) -> None:
    rows = [{"content": content, "style": [style]} for content in "abcdef" for style in "st"]
    _, shards = planned(make_manifest(rows), tmp_path, shard_pairs=4)
    assert [len(table) for table in shards] == [4, 4, 4]


def test_work_begins_with_the_largest_shards(make_manifest: MakeManifest, tmp_path: Path) -> None:
    styles = {"a": 1, "b": 12, "c": 1, "d": 5}
    rows = [{"content": c, "style": [f"s{s}"]} for c, count in styles.items() for s in range(count)]
    _, shards = planned(make_manifest(rows), tmp_path)
    root = Root(str(tmp_path / "out"))
    order = largest_first(root, range(len(shards)))
    assert sorted(order) == list(range(len(shards)))
    sizes = [len(shards[shard]) for shard in order]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 12
    assert largest_first(root, [order[-1], order[0]]) == [order[0], order[-1]]


def test_planning_is_the_same_every_time(
    make_manifest: MakeManifest, pairs: list[Row], tmp_path: Path
) -> None:
    manifest = make_manifest(pairs)
    first, second = planned(manifest, tmp_path / "a"), planned(manifest, tmp_path / "b")
    assert first[0].pairs == second[0].pairs
    assert all(one.equals(two) for one, two in zip(first[1], second[1], strict=True))


def test_distinct_styles_are_listed_once(make_manifest: MakeManifest, tmp_path: Path) -> None:
    rows = [{"content": "a", "style": ["s", "t"]}, {"content": "b", "style": ["t"]}]
    planned(make_manifest(rows), tmp_path / "x")
    assert read_styles(Root(str(tmp_path / "x" / "out")), "run") == ["s", "t"]


def test_shards_for_gpus_are_longer_and_small_runs_have_as_many() -> None:
    assert usual_shard_pairs(2_000_000) == 128
    assert usual_shard_pairs(2_000_000, gpus=True) == 2048
    assert usual_shard_pairs(51_200) == usual_shard_pairs(51_200, gpus=True) == 128  # 400 for as many GPUs
    assert usual_shard_pairs(160) == usual_shard_pairs(160, gpus=True) == 10


def test_no_plan_has_more_shards_than_storage_should_list() -> None:
    pairs = 100_000_000
    assert -(-pairs // usual_shard_pairs(pairs)) <= plan.MAX_SHARDS
