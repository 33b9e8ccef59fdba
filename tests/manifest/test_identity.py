"""A pair's identity: fixed for all time, blind to how numbers were stored, sensitive to everything else."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.images.encode import Format
from stylize_batch.manifest.identity import MAX_STEM, controls, output_keys, pair_ids, shortest
from stylize_batch.manifest.naming import checked_key


def pair_id(
    content: str,
    styles: list[str],
    weights: list[float] | None = None,
    alpha: float | None = None,
    preserve_color: bool | None = None,
    masks: list[str] | None = None,
) -> str:
    listed = pa.array([styles], pa.list_(pa.string()))
    return pair_ids(pa.array([content]), listed, controls(weights, alpha, preserve_color, masks))[0].as_py()


def by_the_contract(*array: object) -> str:
    text = json.dumps(array, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_identifier_never_changes() -> None:
    """Other programs store these: a change here breaks every resume and join."""
    assert pair_id("a.jpg", ["s.jpg"]) == by_the_contract("a.jpg", ["s.jpg"], None, None, None, None)
    assert pair_id("a.jpg", ["s.jpg"]) == "3175c731344747e72f3f426f84cc4005"


def test_identifier_follows_the_contract_with_every_column() -> None:
    found = pair_id('ä"\\.jpg', ["s", "t"], [1, 3], 0.1, True, ["m"])
    assert found == by_the_contract('ä"\\.jpg', ["s", "t"], [0.25, 0.75], 0.1, True, ["m"])


def test_defaults_written_out_are_the_same_pair() -> None:
    plain = pair_id("c", ["s", "t"])
    assert pair_id("c", ["s", "t"], [2.0, 2.0], 1.0, False, None) == plain


def test_a_style_of_weight_zero_still_counts() -> None:
    assert pair_id("c", ["s", "t"], [1, 0]) != pair_id("c", ["s"])


@given(st.floats(0, 1, width=32))
def test_alpha_is_the_same_stored_as_float32_or_float64(alpha: float) -> None:
    decimal = float(str(np.float32(alpha)))  # what was written down; as float32 it is `alpha`
    assert pair_id("c", ["s"], alpha=alpha) == by_the_contract(
        "c", ["s"], None, None if alpha == 1 else decimal, None, None
    )
    assert shortest(alpha) == shortest(decimal)


def test_alpha_of_minus_zero_is_zero_whichever_comes_first() -> None:
    shortest.cache_clear()
    minus = pair_id("c", ["s"], alpha=-0.0)
    assert minus == pair_id("c", ["s"], alpha=0.0) == by_the_contract("c", ["s"], None, 0.0, None, None)


def test_numbers_of_float32_columns_are_hashed_as_they_were_written() -> None:
    tenth = float(np.float32(0.1))
    assert tenth != 0.1
    found = pair_id("c", ["s", "t", "u"], [tenth, tenth, float(np.float32(0.8))], tenth)
    assert found == by_the_contract("c", ["s", "t", "u"], [0.1, 0.1, 0.8], 0.1, None, None)


@given(st.lists(st.tuples(st.text(), st.lists(st.text()), st.floats(0, 1, width=32)), unique_by=str))
def test_different_pairs_have_different_identifiers(rows: list[tuple[str, list[str], float]]) -> None:
    distinct = {json.dumps([c, s, None if a == 1 else a]) for c, s, a in rows}
    assert len({pair_id(c, s, alpha=a) for c, s, a in rows}) == len(distinct)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (None, "cat-wave-0123456789abcdef.jpg"),
        ("x/y", "x/y.jpg"),
        ("x/y.png", "x/y.png"),
        ("x/y.JPEG", "x/y.JPEG"),
        ("v1.5", "v1.5.jpg"),
    ],
)
def test_output_key_follows_the_contract(key: str | None, expected: str) -> None:
    content, style, identity = (
        pa.array([text]) for text in ("s3://b/in/cat.jpeg", "/styles/wave.png", "0123456789abcdef0123")
    )
    assert output_keys(pa.array([key], pa.string()), content, style, identity, "jpeg").to_pylist() == [
        expected
    ]


@given(st.lists(st.tuples(st.text(), st.lists(st.text())), min_size=1), st.data())
def test_pairs_named_together_are_named_as_each_alone(
    rows: list[tuple[str, list[str]]], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(rows) - 1))
    contents = pa.array([content for content, _ in rows]).slice(start)
    styles = pa.array([style for _, style in rows], pa.list_(pa.string())).slice(start)
    expected = [by_the_contract(content, style, None, None, None, None) for content, style in rows[start:]]
    assert pair_ids(contents, styles).to_pylist() == expected


def test_a_content_kept_as_it_is_is_named_after_itself() -> None:
    content, style, identity = (
        pa.array([text], pa.string()) for text in ("in/cat.jpeg", None, "0123456789abcdef")
    )
    assert output_keys(None, content, style, identity, "png").to_pylist() == ["cat-0123456789abcdef.png"]


def test_the_version_of_an_object_is_no_part_of_its_name() -> None:
    contents = pa.array(["s3://b/cat.jpg?versionId=kF1.z", "s3://b/cat?versionId=7"])
    keys = output_keys(
        None, contents, pa.array(["s", "s"]), pa.array(["0" * 16, "1" * 16]), "jpeg"
    ).to_pylist()
    assert keys == [f"cat-s-{'0' * 16}.jpg", f"cat-s-{'1' * 16}.jpg"]


@pytest.mark.parametrize(
    ("uri", "stem"),
    [
        ("in/.hidden", ".hidden"),
        ("in/.hidden.jpg", ".hidden"),
        ("in/a.b.jpg", "a.b"),
        ("漢" * 80 + ".jpg", "漢" * (MAX_STEM // 3)),
        ("x" + "漢" * 80 + ".jpg", "x" + "漢" * (MAX_STEM // 3 - 1)),
    ],
)
def test_a_picture_is_named_after_its_files_whatever_these_are_called(uri: str, stem: str) -> None:
    names = pa.array([uri])
    (key,) = output_keys(None, names, names, pa.array(["0" * 16]), "jpeg").to_pylist()
    assert key == f"{stem}-{stem}-{'0' * 16}.jpg"


@given(st.lists(st.text(), min_size=1), st.sampled_from(["jpeg", "png"]))
def test_default_keys_stay_in_one_folder_whatever_the_names(uris: list[str], format: Format) -> None:
    names = pa.array(uris)
    identities = pa.array([f"{index:032x}"[::-1] for index in range(len(uris))])
    keys = output_keys(None, names, names, identities, format).to_pylist()
    assert len(set(keys)) == len(uris)
    for key in keys:
        assert checked_key(f"images/{key}") == f"images/{key}"
        assert "/" not in key
        assert len(key.encode()) <= 2 * MAX_STEM + 30
