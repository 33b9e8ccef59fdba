"""A real S3 server (SeaweedFS) on free loopback ports, for as long as the tests run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ADMIN = ("admin-key", "admin-secret")
READER = ("reader-key", "reader-secret")
GUEST = ("guest-key", "guest-secret")
BUCKET, PRIVATE = "pictures", "private"
"""Buckets; the guest may read only the first."""


class S3Server(NamedTuple):
    """A running server and how to reach it."""

    endpoint: str

    def env(self, identity: tuple[str, str] = ADMIN) -> dict[str, str]:
        """Return the environment of a user of this server: the variables every S3 client knows."""
        key, secret = identity
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def s3_server(folder: Path) -> Generator[S3Server]:
    """Start a server that keeps its data in a folder, with an identity that may write and one that may read."""
    for attempt in range(3):
        names = (
            "master",
            "master.grpc",
            "volume",
            "volume.grpc",
            "filer",
            "filer.grpc",
            "s3",
            "s3.grpc",
            "admin",
            "admin.grpc",
        )
        ports: dict[str, int] = dict(zip(names, free_ports(len(names)), strict=True))
        process = start(folder / str(attempt), ports)
        try:
            if ready(process, ports):
                yield S3Server(f"http://127.0.0.1:{ports['s3']}")
                return
        finally:
            process.kill()
            process.wait()
    raise RuntimeError("the S3 server does not start")


def start(folder: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    """Start the server's process."""
    folder.mkdir(parents=True)
    actions = {"admin": ["Admin", "Read", "List", "Tagging", "Write"], "reader": ["Read", "List"]}
    actions["guest"] = [f"{action}:{BUCKET}" for action in ("Read", "List")]
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions[name]}
        for name, (key, secret) in (("admin", ADMIN), ("reader", READER), ("guest", GUEST))
    ]
    config = folder / "identities.json"
    config.write_text(json.dumps({"identities": identities}))
    flags = [
        f"-{name.replace('.grpc', '.port.grpc') if '.' in name else name + '.port'}={port}"
        for name, port in ports.items()
    ]
    return subprocess.Popen(
        [
            Path(sys.executable).parent / "weed", "mini", f"-dir={folder}", *flags,
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}", "-s3.autoCreateBucket=false",
            "-webdav=false", "-admin.ui=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        ],
        env={**os.environ, "GOMEMLIMIT": "256MiB"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def ready(process: subprocess.Popen[bytes], ports: dict[str, int]) -> bool:
    """Wait until the server answers and has a place to store data; False if it ended or takes too long."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports['s3']}/healthz", timeout=1):
                pass
            with urllib.request.urlopen(
                f"http://127.0.0.1:{ports['master']}/dir/status", timeout=1
            ) as answer:
                if b'"DataNodes"' in answer.read():
                    return True
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    return False


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
