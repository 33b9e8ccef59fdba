"""The style bank: blending, failures, and what survives in its committed parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stylize_batch.errors import RowError
from stylize_batch.storage import Root
from stylize_batch.styles import StyleVector, bank_of, put_part, read_parts

A = StyleVector("a", "v1", np.array([1, 2, 3], np.float32))
B = StyleVector("b", "v1", np.array([3, 6, 9], np.float32))


def test_one_style_is_its_own_vector_and_several_are_their_weighted_mean() -> None:
    bank = bank_of([A, B], {})
    assert bank.blend(["b"], None).tolist() == [3, 6, 9]
    assert bank.blend(["b"], [0.3]).tolist() == [3, 6, 9]
    assert bank.blend(["a", "b"], None).tolist() == [2, 4, 6]
    assert bank.blend(["a", "b"], [3, 1]).tolist() == [1.5, 3, 4.5]


def test_a_failed_style_fails_its_pairs_with_its_name() -> None:
    bank = bank_of([A], {"b": RowError("Undecodable", "the file is empty")})
    with pytest.raises(RowError, match="Undecodable: style b: the file is empty"):
        bank.blend(["a", "b"], None)


def test_committed_styles_are_found_again_only_for_the_same_model_and_size(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    put_part(root, [A], "model-512")
    put_part(root, [B], "model-512")
    put_part(root, [StyleVector("c", "v1", A.vector)], "model-256")
    found = read_parts(root, "model-512")
    assert sorted(found) == ["a", "b"]
    assert found["b"].version == "v1"
    assert np.array_equal(found["b"].vector, B.vector)
