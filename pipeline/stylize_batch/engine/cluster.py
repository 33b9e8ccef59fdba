"""A Ray cluster that is there already: joining it, or saying in one line why not, and its nodes."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import ray
from ray.exceptions import AuthenticationError

from stylize_batch.errors import UsageError

CONNECT_SECONDS = 10.0

CLIENT_ATTEMPTS = 4
"""Of the processes that a head forks, one for each driver of a `ray://` address, some die at once (Ray's issue 63202)."""

TOKEN_ADVICE = "put the cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token"  # noqa: S105 (no token)
"""What to do where a cluster wants a token; on its head, `ray get-auth-token` prints it."""

_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


Node = dict[str, Any]
"""What Ray says of a node."""


def living_nodes() -> dict[str, Node]:
    """Return the nodes of the cluster that live, by identity."""
    nodes = cast("list[Node]", ray.nodes())
    return {node["NodeID"]: node for node in nodes if node["Alive"]}


def join(address: str) -> None:
    """Connect this process to a cluster as its driver.

    Args:
        address: `auto`, `host:port` or `ray://host:port`.

    Raises:
        UsageError: there is no cluster, or it does not take this process: wrong versions, no token or a wrong one.
    """
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"{address} is a dashboard, which `stylize-batch submit` sends jobs to; a run here joins a cluster at its head's "
            "own port: HOST:6379"
        )
    try:
        _refuse_silent_host(address)
        with _silenced():
            _init(address)
    except AuthenticationError:
        raise UsageError(f"the cluster at {address} wants a token; {TOKEN_ADVICE}") from None
    except ConnectionRefusedError:
        raise UsageError(
            f"cannot reach a Ray cluster at {address}: nothing listens there; the head's port is 6379, "
            "or 10001 for ray://, unless it was started with others"
        ) from None
    except Exception as error:  # OSError, RuntimeError, ValueError, and Ray's and gRPC's own
        raise UsageError(f"cannot reach a Ray cluster at {address}: {_reason(error)}") from None


def _init(address: str) -> None:
    for left in reversed(range(CLIENT_ATTEMPTS)):
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            if not left or "Starting Ray client server failed" not in str(error):
                raise
        else:
            return


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    versions = _VERSIONS.findall(text)
    if "ersion mismatch" in text and len(versions) == 2:
        theirs, ours = versions
        if theirs != ours:
            return (
                f"it runs Ray {theirs[0]} on Python {theirs[1]}, this is Ray {ours[0]} on Python {ours[1]}; use the same "
                "here, or send the job there with `stylize-batch submit`"
            )
    if "ray[client]" in text:
        return "ray:// addresses take one more package; pip install 'ray[client]'"
    if "Could not find any running Ray instance" in text:
        return "no cluster runs on this machine; start one (`ray start --head`), or leave --address out for a Ray of the run's own"
    if "Failed to connect to Ray cluster" in text:
        return (
            "something listens there and does not take this process: either it is not the head's port (6379), "
            f"or the token is missing or wrong; set RAY_AUTH_MODE=token and {TOKEN_ADVICE}"
        )
    return text


@contextmanager
def _silenced() -> Generator[None]:
    """Keep stderr from Ray's core, which is not Python and writes there each time that a cluster refuses it."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _refuse_silent_host(address: str) -> None:
    """Raise OSError when nothing listens at an address, which Ray itself finds out only after minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
