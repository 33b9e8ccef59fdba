"""A short spell of tests/fuzz.py: damaged files give a picture, a plan, or one error of ours."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import damaged, manifests, try_manifest, try_picture
from tests.images.samples import samples

PICTURES = list(samples().values())
TABLES = list(manifests().values())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=400)
@given(st.integers(0, 2**32))
def test_a_damaged_picture_gives_a_picture_or_a_row_error(seed: int) -> None:
    outcome = try_picture(damaged(random.Random(seed), PICTURES))
    assert outcome in ("picture", "Undecodable", "TooLarge", "TooSmall")


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_a_damaged_manifest_gives_a_plan_or_one_line_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder: Path = tmp_path_factory.mktemp("manifest")
    assert try_manifest(damaged(random.Random(seed), TABLES), folder) in ("plan", "refused")
