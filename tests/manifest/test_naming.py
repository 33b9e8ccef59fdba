"""Names of pictures: they stay as they are where they can, and never leave the root or meet each other."""

from __future__ import annotations

import os
import unicodedata
from pathlib import PurePosixPath

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.errors import UsageError
from stylize_batch.images.encode import EXTENSIONS, Format
from stylize_batch.manifest.identity import output_keys
from stylize_batch.manifest.naming import (
    MARK,
    MAX_KEY,
    MAX_NAME,
    checked_key,
    claims,
    folded,
    picture_stem,
    safe_key,
    style_names,
)

letters = st.sampled_from([*"aA.-_~/\\ü\u0308\x00jpgt", "?versionId="])
parts = st.lists(letters, min_size=1, max_size=40).map("".join) | st.text(min_size=1, max_size=300)


@given(key=parts, room=st.integers(0, 100))
def test_any_name_becomes_a_valid_key_with_room(key: str, room: int) -> None:
    safe = safe_key(key, room)
    checked_key(safe)
    assert len(safe.rpartition("/")[2].encode()) + room <= 240
    assert safe_key(safe, room) == safe


@pytest.mark.parametrize(
    "key", ["0001.jpg", "train/dog/0001.JPEG", "val/größe/a b (1).tif", "n01440764/x-1.png"]
)
def test_ordinary_names_stay_as_they_are(key: str) -> None:
    assert safe_key(key, MARK) == key


@pytest.mark.parametrize(
    ("key", "start"),
    [
        ("../../etc/passwd.jpg", "_/_/etc/passwd-"),
        ("~/x.jpg", "_/x-"),
        ("a\\b.jpg", "a_b-"),
        ("dir.jpg/x.jpg", "dir_jpg/x-"),
        ("a/metadata.parquet/x.jpg", "a/metadata_parquet/x-"),
        ("x?versionId=1.jpg", "x_versionId=1-"),
        ("\udcff.jpg", "_-"),
        ("k" * 300 + ".jpg", "kkk"),
    ],
)
def test_altered_names_are_marked(key: str, start: str) -> None:
    safe = safe_key(key)
    assert safe.startswith(start)
    assert safe.endswith(".jpg")
    assert safe_key(key + "x") != safe


@given(
    st.lists(parts, min_size=2, max_size=2, unique_by=lambda key: safe_key(key)),
    st.sampled_from(list(EXTENSIONS)),
)
def test_names_that_a_run_would_make_equal_share_a_claim(keys: list[str], format: Format) -> None:
    pictures = [picture_stem(safe_key(key, MARK)) for key in keys]
    given = pa.array([stem + suffix for stem, suffix in pictures])
    one, other = map(folded, output_keys(given, given, given, given, format).to_pylist())
    if one == other:
        assert set(claims(*pictures[0])) & set(claims(*pictures[1]))


@pytest.mark.parametrize("name", ["größe", "e\u0301", "\u0390", "\u01f0"])
def test_names_that_differ_in_case_or_in_how_accents_are_written_count_as_one(name: str) -> None:
    for form in ("NFC", "NFD"):
        for other in (name, name.upper(), name.lower()):
            assert folded(unicodedata.normalize(form, other)) == folded(name)


@given(st.lists(parts, unique=True, max_size=20))
def test_style_names_are_distinct_whatever_the_case(keys: list[str]) -> None:
    names = style_names(keys)
    assert len({folded(name) for name in names}) == len(keys)
    assert not any(set("-./\\") & set(name) for name in names)


def test_styles_of_one_stem_are_told_apart() -> None:
    names = style_names(["monet/1.jpg", "van-gogh/1.jpg", "wave (2).png"])
    assert names[2] == "wave_2"
    assert all(name.startswith("1_") for name in names[:2])


@given(st.text(max_size=30))
def test_keys_never_leave_the_root(key: str) -> None:
    try:
        checked = checked_key(key)
    except UsageError:
        return
    root = PurePosixPath("/root/images")
    resolved = PurePosixPath(os.path.normpath(root / checked))
    assert resolved != root
    assert root in resolved.parents


@pytest.mark.parametrize(
    "key",
    [
        "", "/x", "//x", "../x", "a/../../x", "a/..", "~/x", "~", "s3://b/x", "file:///x", "a\\b", "..\\x", "C:/x",
        "c:x", "C:\\x", "\\\\host\\share", "a/", ".", "./", "./x", "a/./b", "a//b", "a\x00b", "a\nb", "a\x1b[31mb",
        "a\x7fb", "a\x85b", "a\u2028b", "\ud800", "a?versionId=1.jpg",
    ],
)  # fmt: skip
def test_hostile_keys_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match="would leave the output root"):
        checked_key(key)


@pytest.mark.parametrize("fits", ["ä" * (MAX_NAME // 2), "/".join(["ä" * 99 + "xy"] * 4)[:-3] + "x"])
def test_keys_are_measured_in_bytes_as_file_systems_do(fits: str) -> None:
    assert len(fits.encode()) in (MAX_NAME, MAX_KEY)
    assert checked_key(fits) == fits
    with pytest.raises(UsageError, match="is too long"):
        checked_key(f"{fits}x")
