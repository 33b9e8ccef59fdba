"""An S3 server's bad days: a proxy on a loopback port that spoils requests before, on, or after their way."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Spoil = Literal["error", "slow down", "reset", "drop", "truncate", "outage"]
"""What may happen to a request.

- error: answered with 500 InternalError, and not handed on
- slow down: answered with 503 SlowDown, and not handed on
- reset: the connection is reset, and nothing handed on
- drop: handed on, and the connection reset instead of an answer: a write has landed and nobody knows
- truncate: handed on, and the connection ends half way through the answer's body (not the manifest's: reading that
  is given up sooner, before anything is started)
- outage: from the first request on, for `OUTAGE_SECONDS`, every connection is reset
"""

OUTAGE_SECONDS = 9.0
CODES = {"error": (500, "InternalError"), "slow down": (503, "SlowDown")}
OWN_HEADERS = ("connection", "keep-alive", "transfer-encoding", "expect")


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server on this machine, and spoils a share of them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.spoiled = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._kinds: tuple[Spoil, ...] = ()
        self._share = 0.0
        self._outage_ends: float | None = None

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return self.server_address[1]

    @contextmanager
    def spoiling(self, kinds: Sequence[Spoil], share: float) -> Generator[None]:
        """Spoil a share of the requests that come in the block, each in one of some ways; an outage spoils all."""
        self._kinds, self._share, self._outage_ends, self.spoiled = tuple(kinds), share, None, 0
        try:
            yield
        finally:
            self._kinds = ()

    def fate(self) -> Spoil | None:
        """Draw what happens to the next request."""
        with self._lock:
            if self._kinds == ("outage",):
                if self._outage_ends is None:
                    self._outage_ends = time.monotonic() + OUTAGE_SECONDS
                spoil = time.monotonic() < self._outage_ends
            else:
                spoil = bool(self._kinds) and self._random.random() < self._share
            self.spoiled += spoil
            return self._random.choice(self._kinds) if spoil else None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


@contextmanager
def proxy(target: int, seed: int) -> Generator[Proxy]:
    """Run a proxy in front of a port of this machine."""
    with Proxy(target, seed) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    server: Proxy  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.fate()
        if fate in CODES:
            self._answer_error(*CODES[fate])
            return
        if fate in ("reset", "outage"):
            self._reset()
            return
        status, headers, data = self._hand_on(body)
        if fate == "drop":
            self._reset()
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fate == "truncate" and data and not self.path.endswith("/pairs.parquet"):
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def _hand_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        # The host stays what the client has signed.
        onward = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        try:
            onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in OWN_HEADERS:
                    onward.putheader(name, value)
            onward.endheaders(body)
            answer = onward.getresponse()
            data = answer.read()
        finally:
            onward.close()
        counted = self.command != "HEAD"  # whose answer has a length and no body
        skipped = (*OWN_HEADERS, "content-length") if counted else OWN_HEADERS
        return answer.status, [(n, v) for n, v in answer.getheaders() if n.lower() not in skipped], data

    def _answer_error(self, status: int, code: str) -> None:
        data = f"<Error><Code>{code}</Code><Message>of the test</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def finish(self) -> None:
        """Close; a lingering time of zero makes it a reset."""
        super().finish()
        self.connection.close()
