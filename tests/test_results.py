"""Results: their schema, their totals, and how failed rows are replaced."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stylize_batch.manifest.schema import RESULT_COLUMNS
from stylize_batch.results import (
    Outcome,
    complete,
    examples_of_failures,
    finished_shards,
    put_part,
    read_finished,
    results_table,
    totals_of,
    with_outputs,
)
from stylize_batch.root import Root


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


OK = Outcome(None, 1.0, 2.0, 3.0, 20, 30)
FAILED = Outcome(error="NotFound: it is gone")


def test_columns_are_the_contracts_followed_by_the_manifests_own() -> None:
    table = with_outputs(results_table(plan(), [OK, FAILED, OK], "m"), ["/out/x.jpg", None, "/out/x.jpg"])
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


def test_results_are_one_table_for_pyarrow_duckdb_and_pandas(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    for shard, outcomes in enumerate(([OK, FAILED, OK], [FAILED] * 3, [OK] * 3)):
        put_part(root, shard, results_table(plan(), outcomes, "m"), "run")
    expected = {"ok": 5, "failed": 4}
    by_pyarrow = pq.read_table(f"{tmp_path}/results")
    by_duckdb = duckdb.sql(f"SELECT * FROM '{tmp_path}/results/*.parquet'")
    assert by_duckdb is not None
    by_pandas = pd.read_parquet(f"{tmp_path}/results")
    assert Counter(by_pyarrow["status"].to_pylist()) == expected
    assert dict(by_duckdb.aggregate("status, count(*)").fetchall()) == expected
    assert by_pandas["status"].value_counts().to_dict() == expected
    assert (
        by_pyarrow.column_names == by_duckdb.columns == list(by_pandas.columns) == [*RESULT_COLUMNS, "label"]
    )
    assert by_duckdb.filter("status = 'ok'").aggregate("sum(style_loss)").fetchall() == [(10.0,)]
    assert by_pandas["style"].str[0].eq("s").all()


def test_totals_of_a_run_are_those_of_its_parts(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    tables = [results_table(plan(), outcomes, "m") for outcomes in ([OK, FAILED, OK], [FAILED] * 3)]
    written = [put_part(root, shard, table, "run") for shard, table in enumerate(tables)]
    (tmp_path / "results" / "part-000002.parquet").write_bytes(b"PAR1 a part that a power cut left")
    sound = (tmp_path / "results" / "part-000000.parquet").read_bytes()
    (tmp_path / "results" / "part-000003.parquet").write_bytes(sound[:4] + bytes(900) + sound[904:])
    assert finished_shards(root, "run") == dict(enumerate(written))


def test_examples_of_failures_are_a_few_of_each_kind_and_name_the_photograph(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    gone, cut = Outcome(error="NotFound: /data/c is gone"), Outcome(error="Undecodable: damaged: cut: short")
    for shard, outcomes in enumerate([[OK, OK, OK], [OK, gone, gone], [cut, cut, gone]]):
        table = plan().set_column(1, "content", pa.array([f"c{shard}", f"c{shard}", f"b{shard}"]))
        put_part(root, shard, results_table(table, outcomes, "m"), "run")
    found = examples_of_failures(root, "run", finished_shards(root, "run"))
    assert found == {
        "NotFound": ["c1: /data/c is gone", "b1: /data/c is gone", "b2: /data/c is gone"],
        "Undecodable": ["c2: damaged: cut: short"],
    }
    many = [Outcome(error=f"NotFound: /data/c {number}") for number in range(3)]
    for shard in range(3):
        put_part(root, shard, results_table(plan(), many, "m"), "run")
    found = examples_of_failures(root, "run", finished_shards(root, "run"))
    assert found == {"NotFound": ["/data/c 0", "/data/c 1", "/data/c 2"]}
