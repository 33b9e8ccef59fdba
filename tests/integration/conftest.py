"""Fixtures of the tests that start real Ray and a real S3 server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.processes import left_over, marked_environment, start_run

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

    from tests.integration.s3 import S3Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with an empty bucket; each test uses a prefix of its own."""
    from tests.integration.s3 import s3_server  # here, since tests on a GPU need neither S3 nor Ray

    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def marked_env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment by which every process of a run, workers included, can be found; none may be left."""
    env = marked_environment(tmp_path)
    yield env
    left = left_over(env, seconds=30, patient=False)
    assert not left, f"processes left over: {left}"


@pytest.fixture
def start(marked_env: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `stylize-batch run` as a user does."""
    return lambda *arguments: start_run(arguments, marked_env, tmp_path)


@pytest.fixture
def nodes(marked_env: dict[str, str]) -> Iterator[Cluster]:
    """A Ray cluster of one small node; tests add others."""
    from tests.faults.faults import cluster

    with cluster(marked_env) as running:
        yield running
