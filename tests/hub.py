"""A recorded hub: serves folders of this machine as repositories of a Hugging Face hub, on a loopback port."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".parquet")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class RecordedHub:
    """``repositories`` maps OWNER/NAME, or OWNER/NAME@REVISION, to a folder. Use as a context manager; ``url`` is for HF_ENDPOINT."""

    def __init__(self, repositories: dict[str, Path], token: str | None = None):
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append(f"GET {self.path}")
                self._answer(body=True)

            def do_HEAD(self) -> None:
                hub.requests.append(f"HEAD {self.path}")
                self._answer(body=False)

            def _answer(self, *, body: bool) -> None:
                path = self.path.partition("?")[0]
                if token and self.headers.get("Authorization") != f"Bearer {token}":
                    return self._send(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, body)
                for key, folder in repositories.items():
                    name, _, revision = key.partition("@")
                    if path.startswith(f"/api/models/{name}") and path.endswith(
                        f"/revision/{revision}" if revision else ""
                    ):
                        return self._send(200, json.dumps(model_info(name, folder)).encode(), {}, body)
                    if path.startswith(f"/{name}/resolve/{revision}"):
                        return self._file(folder / path.split("/", 5)[-1], body)
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

            def _file(self, file: Path, body: bool) -> None:
                if not file.is_file():
                    return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
                content = file.read_bytes()
                headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                wanted = self.headers.get("Range")
                if wanted:
                    start, _, end = wanted.removeprefix("bytes=").partition("-")
                    part = content[int(start) : int(end) + 1 if end else None]
                    headers["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
                    return self._send(206, part, headers, body)
                return self._send(200, content, headers, body)

            def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
                self.send_response(code)
                for name, value in {
                    "Content-Type": "application/json",
                    **headers,
                    "Content-Length": str(len(content)),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> RecordedHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def model_info(name: str, folder: Path) -> dict[str, Any]:
    """What the hub's API says of a repository."""
    siblings = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = file.read_bytes()
        sibling: dict[str, Any] = {
            "rfilename": str(file.relative_to(folder)),
            "size": len(content),
            "blobId": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
        }
        if file.suffix in LFS_SUFFIXES:
            sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        siblings.append(sibling)
    return {
        "_id": "1",
        "id": name,
        "modelId": name,
        "sha": COMMIT,
        "private": False,
        "siblings": siblings,
        "tags": [],
        "downloads": 0,
    }
