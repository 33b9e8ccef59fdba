"""A loopback HTTP server that counts requests, answers some of them with faults, and passes the others on."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Answer = tuple[int, bytes]
"""Status and body."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on, Host and signature untouched, unless `fault` gives the answer.

    Attributes:
        fault: called with method, path and how often that has been asked for; None passes the request on.
        requests: method and path of every request so far.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str, int], Answer | None] = lambda method, path, count: None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, name: str) -> int:
        return sum(name in path for _, path in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = (self.command, urlsplit(self.path).path)
        self.server.requests.append(asked)
        answer = self.server.fault(*asked, self.server.requests.count(asked))
        if answer is None:
            upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
            upstream.request(self.command, self.path, body, dict(self.headers))
            response = upstream.getresponse()
            data, status = response.read(), response.status
            headers = [(name, value) for name, value in response.getheaders() if name != "Transfer-Encoding"]
            upstream.close()
        else:
            status, data = answer
            headers = [("Content-Type", "application/xml")]
        self.send_response_only(status)
        for name, value in headers:
            if name != "Content-Length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def proxy(upstream: str = "") -> Generator[Proxy]:
    """Run a proxy in front of a server."""
    running = Proxy(upstream)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()


def s3_error(status: int, code: str) -> Answer:
    """Return an error as S3 words it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} happened</Message></Error>"
    return status, body.encode()
