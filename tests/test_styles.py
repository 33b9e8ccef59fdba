"""The style bank: blending, failures, and what survives in its committed parts and in bank files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stylize_batch.errors import RowError, UsageError
from stylize_batch.root import Root
from stylize_batch.styles import (
    ROW_GROUP,
    StyleVector,
    bank_key,
    bank_of,
    blend,
    put_part,
    read_bank,
    read_parts,
    write_bank,
)

A = StyleVector("a", "v1", np.array([1, 2, 3], np.float32))
B = StyleVector("b", "v1", np.array([3, 6, 9], np.float32))


def test_one_style_is_its_own_vector_and_several_are_their_weighted_mean() -> None:
    bank = bank_of([A, B], {})
    assert blend(bank.vectors(["b"]), None).tolist() == [3, 6, 9]
    assert blend(bank.vectors(["b"]), [0.3]).tolist() == [3, 6, 9]
    assert blend(bank.vectors(["a", "b"]), None).tolist() == [2, 4, 6]
    assert blend(bank.vectors(["a", "b"]), [3, 1]).tolist() == [1.5, 3, 4.5]


def test_a_failed_style_fails_its_pairs_with_its_name() -> None:
    bank = bank_of([A], {"b": RowError("Undecodable", "the file is empty")})
    with pytest.raises(RowError, match="Undecodable: style b: the file is empty"):
        bank.vectors(["a", "b"])


def test_committed_styles_are_found_again_only_for_the_same_model_and_size(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    put_part(root, [A], "model-512")
    put_part(root, [B], "model-512")
    put_part(root, [StyleVector("c", "v1", A.vector)], "model-256")
    found = read_parts(root, "model-512")
    assert sorted(found) == ["a", "b"]
    assert found["b"].version == "v1"
    assert np.array_equal(found["b"].vector, B.vector)


def test_of_a_style_that_changed_between_runs_the_last_version_is_found(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    for uri in "abcdefgh":  # parts are named by a hash, in no order
        for version in ("old", "new"):
            put_part(root, [StyleVector(uri, version, A.vector)], "model-512")
    assert {style.version for style in read_parts(root, "model-512").values()} == {"new"}


def test_a_bank_file_gives_back_what_was_written_in_its_order(tmp_path: Path) -> None:
    uri = str(tmp_path / "bank.parquet")
    vectors = [
        StyleVector(f"s3://bucket/{n}.jpg", f"v{n}", np.array([n, -n], np.float32))
        for n in range(ROW_GROUP + 3)
    ]
    write_bank(uri, vectors, bank_key("digest", 512))
    found = read_bank(uri)
    assert (found.model_digest, found.style_size) == ("digest", "512")
    assert found.styles == [style.uri for style in vectors]
    assert found.versions == [style.version for style in vectors]
    assert np.array_equal(found.matrix, np.stack([style.vector for style in vectors]))
    assert list(tmp_path.iterdir()) == [tmp_path / "bank.parquet"]


def test_a_bank_file_moves_with_the_styles_below_its_folder(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    inside = A._replace(uri=str(before / "styles" / "a.jpg"))
    outside = B._replace(uri=str(tmp_path / "b.jpg"))
    write_bank(str(before / "bank.parquet"), [inside, outside], "model-512")
    assert read_bank(str(before / "bank.parquet")).styles == [inside.uri, outside.uri]
    shutil.move(before, after)
    moved = read_bank(str(after / "bank.parquet")).by_uri()
    assert list(moved) == [str(after / "styles" / "a.jpg"), outside.uri]


@pytest.mark.parametrize(
    ("folder", "names"),
    [("memory://banks", ["a.png", "/b.png", "c::d.png"]), ("", ["a.png", "b:/c.png", "http://d/e.png"])],
)
def test_styles_beside_a_bank_file_are_read_back_whatever_their_names(
    tmp_path: Path, folder: str, names: list[str]
) -> None:
    folder = folder or str(tmp_path)
    styles = [A._replace(uri=f"{folder}/{name}") for name in names]
    write_bank(f"{folder}/bank.parquet", styles, "model-512")
    assert read_bank(f"{folder}/bank.parquet").styles == [style.uri for style in styles]


def _without_metadata(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def _with_empty_vectors(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(
        table.set_column(2, "vector", pa.nulls(len(table), table.schema.field("vector").type)), path
    )


def _of_doubles(path: Path) -> None:
    table = pq.read_table(path)
    doubles = table["vector"].cast(pa.list_(pa.float64(), 3))
    pq.write_table(table.set_column(2, "vector", doubles), path)


def _with_a_bit_flipped(path: Path) -> None:
    column = pq.read_metadata(path).row_group(0).column(2)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


def _replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "there is no style bank"),
        (_replaced_by_a_folder, "is a folder, no style bank; name the file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot read the style bank"),
        (lambda path: path.write_bytes(b""), "cannot read the style bank"),
        (lambda path: path.write_bytes(b"picture" * 100), "cannot read the style bank"),
        (_with_a_bit_flipped, "cannot read the style bank"),
        (_without_metadata, "is no style bank"),
        (_with_empty_vectors, "lacks values"),
        (_of_doubles, "other columns"),
    ],
)
def test_a_damaged_bank_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "bank.parquet"
    write_bank(str(path), [A, B], "model-512")
    harm(path)
    with pytest.raises(UsageError, match=message) as caught:
        read_bank(str(path))
    assert str(path) in str(caught.value)
    assert "styles encode" in str(caught.value)
