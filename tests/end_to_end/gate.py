"""A way to the server on which a test can stop a request: before it arrives, or after it was answered."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "content-length"})


class Gate:
    """Forwards everything to a server on this machine.

    Attributes:
        before: called with (method, path) before a request is forwarded; may wait.
        answered: results the sender was told are stored, by path.
        forwarded: how often each result was forwarded, by path.
    """

    def __init__(self, port: int) -> None:
        self.before: Callable[[str, str], None] = lambda *_: None
        self.answered = Counter[str]()
        self.forwarded = Counter[str]()
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @contextmanager
    def open(self) -> Iterator["Gate"]:
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                gate.before(self.command, self.path)
                try:
                    status, headers, content = gate.send(self.command, self.path, dict(self.headers), body)
                except (OSError, http.client.HTTPException):
                    status, headers, content = 502, {}, b"the server is away"
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True  # whoever asked was killed meanwhile
                    return
                if status < 300 and self.command == "PUT":
                    gate.answered[self.path] += 1

            do_GET = do_POST = do_PUT = forward  # noqa: N815 - names the library looks for

            def log_message(self, *_: object) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if method == "PUT":
            self.forwarded[path] += 1
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
            connection.request(method, path, body=body or None, headers=kept)
            reply = connection.getresponse()
            content = reply.read()
            given = {name: value for name, value in reply.getheaders() if name.lower() not in HOP_BY_HOP}
            return reply.status, given, content
        finally:
            connection.close()
