"""Results: their schema, their totals, and how failed rows are replaced."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from stylize_batch.manifest.schema import RESULT_COLUMNS
from stylize_batch.results import (
    Outcome,
    complete,
    finished_shards,
    put_part,
    read_finished,
    results_table,
    totals_of,
)
from stylize_batch.storage import Root


def plan(count: int = 3) -> pa.Table:
    return pa.table(
        {
            "pair_id": [f"id{row}" for row in range(count)],
            "content": ["c"] * count,
            "style": pa.array([["s"]] * count, pa.list_(pa.string())),
            "alpha": pa.array([1.0] * count, pa.float32()),
            "output": [f"key{row}" for row in range(count)],
            "label": list(range(count)),
        }
    )


OK = Outcome("/out/x.jpg", None, 1.0, 2.0, 3.0, 20, 30)
FAILED = Outcome(error="NotFound: it is gone")


def test_columns_are_the_contracts_followed_by_the_manifests_own() -> None:
    table = results_table(plan(), [OK, FAILED, OK], "m")
    assert table.column_names == [*RESULT_COLUMNS, "label"]
    assert table["status"].to_pylist() == ["ok", "failed", "ok"]
    assert table["output"].to_pylist() == ["/out/x.jpg", None, "/out/x.jpg"]
    assert table["label"].to_pylist() == [0, 1, 2]
    assert table.schema.field("content_loss").type == pa.float32()
    assert table.schema.field("height").type == pa.int32()


def test_totals_count_failures_by_kind_and_losses_of_measured_rows() -> None:
    totals = totals_of(results_table(plan(), [OK, FAILED, OK], "m"))
    assert (totals.ok, totals.failed, totals.measured) == (2, 1, 2)
    assert totals.kinds == {"NotFound": 1}
    assert (totals.content_loss, totals.style_loss) == (2.0, 4.0)


def test_a_part_of_another_run_counts_as_absent(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    put_part(root, 0, results_table(plan(), [OK] * 3, "m"), "run-a")
    put_part(root, 1, results_table(plan(), [OK] * 3, "m"), "run-b")
    assert list(finished_shards(root, "run-a")) == [0]
    assert read_finished(root, 1, "run-a") is None


def test_retrying_makes_failed_rows_only_and_keeps_the_order() -> None:
    earlier = results_table(plan(), [FAILED, OK, FAILED], "m")
    asked: list[str] = []

    def make(rows: pa.Table) -> pa.Table:
        asked.extend(rows["pair_id"].to_pylist())
        return results_table(rows, [OK] * len(rows), "m")

    table = complete(plan(), earlier, make)
    assert asked == ["id0", "id2"]
    assert table["pair_id"].to_pylist() == ["id0", "id1", "id2"]
    assert table["status"].to_pylist() == ["ok"] * 3
