"""An HTTP proxy between stages and the teachers of this machine, that knows what was asked and what was committed by then.

A request to ``/<port>/<path>`` goes on to ``http://127.0.0.1:<port>/<path>``: `proxied/sitecustomize.py` has stages ask so.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kd_runtime.artifacts.units import RETRY, UnitCommit, request_seed
from kd_runtime.teachers import wire

PROXIED = Path(__file__).parent / "proxied"
Question = int | str
"""Of chats the seed, which a row and a sample's number make; of scores the row's key, which its token ids make."""


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

    store: Path
    """The folder of the store whose commits count."""
    seed: int
    """The generate stage's."""
    url: str = ""
    seen: list[Asked] = field(default_factory=list)
    answered: int = 0
    """Requests that a teacher answered with questions' answers."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    _read: dict[Path, set[Question]] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """What a `kd run` has to be started with, so that its stages ask by this proxy."""
        return {"PYTHONPATH": str(PROXIED), "KD_TEST_PROXY": self.url}

    def committed(self) -> set[Question]:
        """Every question that a commit holds the answer to now."""
        for path in self.store.glob("answers/*/*.json"):
            if path not in self._read and not path.name.startswith(RETRY):
                self._read[path] = self._questions(UnitCommit.decoded(path.read_bytes(), path.name))
        return set().union(*self._read.values())

    def asked_again(self) -> list[Asked]:
        """What was asked although its answer was in the store."""
        return [asked for asked in self.seen if asked.committed]

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
def recording_proxy(store: Path, seed: int) -> Iterator[RecordingProxy]:
    """A proxy that listens for as long as the block runs."""
    proxy = RecordingProxy(store, seed)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_port}"
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
            _, port, path = self.path.split("/", 2)
            upstream = http.client.HTTPConnection("127.0.0.1", int(port), timeout=600)
            try:
                upstream.request(self.command, f"/{path}", body, dict(self.headers.items()))
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
