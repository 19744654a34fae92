"""An HTTP proxy before an S3 server that answers some requests wrongly, as asked."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Fault(Enum):
    """What happens to one request."""

    Refused = "the server sees nothing, 500 is answered"
    Unsaid = "the server does it, 500 is answered"
    Dropped = "the server does it, the connection closes without an answer"
    Truncated = "half of the answer's body arrives"
    Flipped = "one bit of the answer's body is another"
    Unwanted = "the server sees nothing, 400 is answered"
    Denied = "the server sees nothing, 403 is answered"
    Slow = "the answer's body comes in small pieces, with pauses"
    Reset = "half of the answer's body arrives, then the connection is reset"
    Stalled = "half of the answer's body arrives, then nothing more, and the connection stays open"


@dataclass
class FaultyProxy:
    """``plan`` holds (method, part of the path, fault), each for one request; ``seen`` is every request."""

    upstream: str
    url: str = ""
    plan: list[tuple[str, str, Fault]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    judge: Callable[[str, str, bytes], Fault | None] = lambda method, path, body: None
    """Sees every request whole, and may let it go wrong."""
    overwrite: Callable[[str], None] | None = None
    """Set: conditional writes are not known. It deletes the object at a path; a refused write is sent again then."""
    released: threading.Event = field(default_factory=threading.Event)
    """Set at the end: nothing stalls any more."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, method: str, path: str, fault: Fault, times: int = 1) -> None:
        """Let the next requests that fit go wrong."""
        self.plan += [(method, path, fault)] * times

    def take(self, method: str, path: str) -> Fault | None:
        """Note a request; the fault that is planned for it."""
        with self.lock:
            self.seen.append((method, path))
            for entry in self.plan:
                if entry[0] == method and entry[1] in path:
                    self.plan.remove(entry)
                    return entry[2]
        return None

    def count(self, method: str, part: str = "") -> int:
        """Requests seen of that method whose path has ``part``."""
        return sum(1 for m, path in self.seen if m == method and part in path)


@contextmanager
def faulty_proxy(upstream: str, host: str = "127.0.0.1") -> Iterator[FaultyProxy]:
    """A proxy on ``host`` before ``upstream`` (http://host:port) for as long as the block runs."""
    proxy = FaultyProxy(upstream)
    server = ThreadingHTTPServer((host, 0), _handler(proxy))
    server.daemon_threads = True
    proxy.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


UNSEEN: dict[Fault | None, tuple[int, list[tuple[str, str]], bytes]] = {
    Fault.Refused: (500, [], b"<Error><Code>InternalError</Code></Error>"),
    Fault.Unwanted: (400, [], b'{"error": {"message": "not today"}}'),
    Fault.Denied: (403, [], b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"),
}
PAUSE_SECONDS = 0.05


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    host = urlsplit(proxy.upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.take(self.command, self.path) or proxy.judge(self.command, self.path, body)
            if fault in UNSEEN:
                self._answer(*UNSEEN[fault])
                return
            answer, content = self._ask(body)
            if answer.status == 412 and proxy.overwrite:
                proxy.overwrite(urlsplit(self.path).path)
                answer, content = self._ask(body)
            self._pass_on(fault, answer, content)

        def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
            upstream = http.client.HTTPConnection(str(host.hostname), host.port, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            return answer, content

        def _pass_on(self, fault: Fault | None, answer: http.client.HTTPResponse, content: bytes) -> None:
            if fault is Fault.Unsaid:
                self._answer(500, [], b"<Error><Code>InternalError</Code></Error>")
            elif fault is Fault.Dropped:
                self.close_connection = True
                self.connection.close()
            elif fault in (Fault.Truncated, Fault.Reset):
                self._answer(answer.status, answer.getheaders(), content[: len(content) // 2], len(content))
                self.close_connection = True
                if fault is Fault.Reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
            elif fault is Fault.Slow:
                pieces = [
                    content[start : start + 1 + len(content) // 8]
                    for start in range(0, len(content), 1 + len(content) // 8)
                ]
                self._answer(answer.status, answer.getheaders(), b"", len(content))
                for piece in pieces:
                    self.wfile.write(piece)
                    proxy.released.wait(PAUSE_SECONDS)
            elif fault is Fault.Stalled:
                self._answer(answer.status, answer.getheaders(), content[: len(content) // 2], len(content))
                proxy.released.wait(60)
                self.close_connection = True
            else:
                if fault is Fault.Flipped:
                    content = bytes([content[0] ^ 1]) + content[1:]
                self._answer(answer.status, answer.getheaders(), content)

        def _answer(
            self, status: int, headers: list[tuple[str, str]], body: bytes, declared: int | None = None
        ) -> None:
            self.send_response_only(status)
            length = [value for name, value in headers if name.lower() == "content-length"]
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            self.send_header(
                "Content-Length", length[0] if self.command == "HEAD" and length else str(declared or len(body))
            )
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
