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

import s3fs

Identity = tuple[str, str]
"""Access key and secret key."""

ADMIN: Identity = ("admin-key", "admin-secret")
READER: Identity = ("reader-key", "reader-secret")
GUEST: Identity = ("guest-key", "guest-secret")
WRONG_SECRET: Identity = ("admin-key", "wrong-secret")
UNKNOWN: Identity = ("nobodys-key", "admin-secret")

BUCKET, PRIVATE = "pictures", "private"
"""Buckets; the guest may read only the first."""

ACTIONS = {
    ADMIN: ["Admin", "Read", "List", "Tagging", "Write"],
    READER: ["Read", "List"],
    GUEST: [f"Read:{BUCKET}", f"List:{BUCKET}"],
}
PORTS = ("master", "volume", "filer", "s3", "admin")
START_SECONDS = 30


class S3Server:
    """A server that keeps its data in a folder and its address for good, also when it is killed and started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        names = [*PORTS, *(f"{name}.grpc" for name in PORTS)]
        self._folder = folder
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for (key, secret), actions in ACTIONS.items()
        ]
        (folder / "identities.json").write_text(json.dumps({"identities": identities}))

    @property
    def port(self) -> int:
        """The port of the S3 protocol on 127.0.0.1."""
        return self._ports["s3"]

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def env(self, identity: Identity = ADMIN, port: int | None = None) -> dict[str, str]:
        """Return the environment of a user of this server: the variables every S3 client knows."""
        key, secret = identity
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}" if port else self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> s3fs.S3FileSystem:
        """Return a client of its own with all rights."""
        key, secret = ADMIN
        return s3fs.S3FileSystem(
            endpoint_url=self.endpoint,
            key=key,
            secret=secret,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def start(self) -> bool:
        """Start, or start again; return whether the server answers and has a place to store data."""
        flags = [
            f"-{name.replace('.grpc', '.port.grpc') if '.' in name else name + '.port'}={port}"
            for name, port in self._ports.items()
        ]
        self._process = subprocess.Popen(
            [
                Path(sys.executable).parent / "weed", "mini", f"-dir={self._folder}", *flags,
                "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={self._folder / 'identities.json'}",
                "-s3.autoCreateBucket=false", "-webdav=false", "-admin.ui=false", "-master.telemetry=false",
                "-s3.port.iceberg=0", "-s3.port.lance=0",
            ],
            env={**os.environ, "GOMEMLIMIT": "256MiB"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._ready():
                return True
            time.sleep(0.1)
        return False

    def kill(self) -> None:
        """End the server as a power cut of its process would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=1):
                pass
            status = f"http://127.0.0.1:{self._ports['master']}/dir/status"
            with urllib.request.urlopen(status, timeout=1) as answer:
                return b'"DataNodes"' in answer.read()
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def s3_server(folder: Path) -> Generator[S3Server]:
    """Run a server with two empty buckets, and identities that may write and may only read."""
    for attempt in range(3):  # somebody else may take a port before the server does
        server = S3Server(folder / str(attempt))
        try:
            if server.start():
                for bucket in (BUCKET, PRIVATE):
                    server.client().mkdir(bucket)
                yield server
                return
        finally:
            server.kill()
    raise RuntimeError("the S3 server does not start")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
