"""An HTTP proxy between stages and their teachers, that knows what was asked and what was committed by then."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path

from kd_runtime.artifacts.store import Store
from kd_runtime.artifacts.units import ANSWERS, RETRY, UnitCommit, request_seed
from kd_runtime.teachers import wire

PROXIED = Path(__file__).parent / "proxied"
Question = int | str
"""Of chats the seed, which a row and a sample's number make; of scores the row's key, which its token ids make."""
Upstream = Callable[[BaseHTTPRequestHandler], tuple[str, int, str]]
"""Where a request goes on to: host, port and path."""
_SO_ORIGINAL_DST = 80


def named(request: BaseHTTPRequestHandler) -> tuple[str, int, str]:
    """A teacher of this machine, by ``/<port>/<path>``: `proxied/sitecustomize.py` has stages ask so."""
    _, port, path = request.path.split("/", 2)
    return "127.0.0.1", int(port), f"/{path}"


def meant(request: BaseHTTPRequestHandler) -> tuple[str, int, str]:
    """Whom the connection was to, before iptables turned it here (REDIRECT)."""
    port, address = struct.unpack("!2xH4s8x", request.connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16))
    return socket.inet_ntoa(address), port, request.path


@dataclass(frozen=True)
class Asked:
    """One question in one request, when it came."""

    question: Question
    time: float
    committed: bool
    """A commit in the store held it already."""


@dataclass
class RecordingProxy:
    """``seen`` is every question that came by."""

    store: Store
    """Its commits count."""
    seed: int
    """The generate stage's."""
    upstream: Upstream
    url: str = ""
    before: Callable[[], None] = lambda: None
    """Called with each request that asks something: it is noted, and goes on to the teacher afterwards."""
    seen: list[Asked] = field(default_factory=list)
    answered: int = 0
    """Requests that a teacher answered with questions' answers."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    _read: dict[str, set[Question]] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """What a `kd run` has to be started with, so that its stages ask by this proxy."""
        return {"PYTHONPATH": str(PROXIED), "KD_TEST_PROXY": self.url}

    def committed(self) -> set[Question]:
        """Every question that a commit holds the answer to now."""
        for name in [info.name for info in self.store.list(ANSWERS)]:
            if name not in self._read and name.endswith(".json") and f"/{RETRY}" not in name:
                self._read[name] = self._questions(UnitCommit.decoded(self.store.get(name), name))
        return set().union(*self._read.values())

    def asked_again(self) -> list[Asked]:
        """What was asked although its answer was in the store."""
        return [asked for asked in self.seen if asked.committed]

    def check(self) -> None:
        """Every answer in the store was asked for here, never once it was there, and was paid for once."""
        assert self.asked_again() == []
        committed = self.committed()
        assert committed
        assert {asked.question for asked in self.seen} >= committed, "asked past the proxy"
        held = Counter(chain.from_iterable(self._read.values()))
        assert [question for question, commits in held.items() if commits > 1] == [], "committed twice"

    def take(self, path: str, body: bytes) -> bool:
        """Note what a request asks; False where it asks nothing."""
        questions: list[Question] = []
        if path.endswith("/chat/completions"):
            questions = [int(json.loads(body)["seed"])]
        elif path.endswith(wire.PATH):
            questions = [row.key.hex() for row in wire.decode_request(body).rows]
        if questions:
            with self.lock:
                known, now = self.committed(), time.monotonic()
                self.seen += [Asked(question, now, question in known) for question in questions]
        return bool(questions)

    def _questions(self, commit: UnitCommit) -> set[Question]:
        if any(ref.path.endswith(".safetensors") for ref in commit.objects):
            return {pair.row for pair in commit.done}
        return {request_seed(self.seed, pair.row, pair.sample) for pair in commit.done}


@contextmanager
def recording_proxy(
    store: Store, seed: int, *, upstream: Upstream = named, host: str = "127.0.0.1"
) -> Iterator[RecordingProxy]:
    """A proxy that listens for as long as the block runs."""
    proxy = RecordingProxy(store, seed, upstream)
    server = ThreadingHTTPServer((host, 0), _handler(proxy))
    server.daemon_threads = True
    proxy.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(proxy: RecordingProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asks = proxy.take(self.path, body)
            if asks:
                proxy.before()
            host, port, path = proxy.upstream(self)
            upstream = http.client.HTTPConnection(host, port, timeout=600)
            try:
                upstream.request(self.command, path, body, dict(self.headers.items()))
                answer = upstream.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):  # the teacher is gone: so is this connection
                self.close_connection = True
                return
            finally:
                upstream.close()
            proxy.answered += asks and answer.status == 200
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:  # who asked was killed
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
