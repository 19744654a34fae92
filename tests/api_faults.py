"""An HTTP proxy before a Kubernetes API server: it records every request, and answers some of them wrongly, as asked."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

WRITES = ("POST", "PUT", "PATCH", "DELETE")


class Fault(Enum):
    """What happens to one request."""

    Conflict = "the server sees nothing, 409 is answered"
    Malformed = "the server sees nothing, 400 is answered"
    Gone = "the server sees nothing, 410 is answered; to a watch as an event"
    Throttled = "the server sees nothing, 429 is answered, with Retry-After: 1"
    Failed = "the server sees nothing, 500 is answered; to a watch as an event"
    Unavailable = "the server sees nothing, 503 is answered"
    Denied = "the server sees nothing, 403 is answered"
    Unauthorized = "the server sees nothing, 401 is answered"
    Reset = "the server sees nothing, the connection closes"
    Unsaid = "the server does it, 500 is answered"
    Dropped = "the server does it, the connection closes without an answer"
    Cut = "the server does it, half of the answer arrives"
    Silent = "the server does it, nothing arrives, the connection stays open"


STATUSES = {
    Fault.Conflict: (409, "Conflict"),
    Fault.Malformed: (400, "BadRequest"),
    Fault.Gone: (410, "Expired"),
    Fault.Throttled: (429, "TooManyRequests"),
    Fault.Failed: (500, "InternalError"),
    Fault.Unavailable: (503, "ServiceUnavailable"),
    Fault.Denied: (403, "Forbidden"),
    Fault.Unauthorized: (401, "Unauthorized"),
    Fault.Unsaid: (500, "InternalError"),
}
UNDONE = frozenset(STATUSES) - {Fault.Unsaid} | {Fault.Reset}
"""Faults of which the server sees nothing."""


@dataclass
class Request:
    """A request that came by."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    status: int = 0
    """What the server answered; 0: it was not asked, or has not answered."""
    fault: Fault | None = None

    @property
    def watches(self) -> bool:
        """Whether it is a watch."""
        return self.query.get("watch") in ("true", "1")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class ApiFaults:
    """The proxy. ``seen`` is every request, in the order in which they came."""

    url: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    """With a KUBECONFIG that leads to the proxy."""
    seen: list[Request] = field(default_factory=list)
    judge: Callable[[Request], Fault | None] = lambda request: None
    """Sees every request before the server does, in the proxy's thread; it may do something first, or let it go wrong."""
    _plan: list[tuple[str, str, Fault]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, method: str, part: str, fault: Fault, times: int = 1) -> None:
        """Let the next requests go wrong whose method is ``method`` (WATCH for watches) and whose path has ``part``."""
        with self._lock:
            self._plan += [(method, part, fault)] * times

    def take(self, request: Request) -> Fault | None:
        """Note a request; the fault that it is to have."""
        with self._lock:
            self.seen.append(request)
            for entry in self._plan:
                if entry[0] == ("WATCH" if request.watches else request.method) and entry[1] in request.path:
                    self._plan.remove(entry)
                    request.fault = entry[2]
                    return entry[2]
        request.fault = self.judge(request)
        return request.fault

    def writes(self, part: str = "") -> list[Request]:
        """The requests so far that write, to paths that have ``part``."""
        with self._lock:
            return [request for request in self.seen if request.method in WRITES and part in request.path]

    def count(self, method: str, part: str = "") -> int:
        """How many requests of a method came by whose path has ``part``."""
        with self._lock:
            return sum(1 for request in self.seen if request.method == method and part in request.path)


@contextmanager
def api_faults(kubeconfig: Path, folder: Path) -> Iterator[ApiFaults]:
    """A proxy before the API server of ``kubeconfig`` for as long as the block runs; its own kubeconfig is in ``folder``."""
    proxy = ApiFaults()
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    upstream, trust = cluster["server"], ssl.create_default_context(cafile=cluster["certificate-authority"])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="api faults", daemon=True)
    thread.start()
    server = _Server(proxy, upstream, trust)
    try:
        port = asyncio.run_coroutine_threadsafe(server.start(), loop).result(30)
        proxy.url = f"http://127.0.0.1:{port}"
        config["clusters"][0]["cluster"] = {"server": proxy.url}
        path = folder / "proxied.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        proxy.environment = {"KUBECONFIG": str(path)}
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Server:
    """The proxy's side in its own loop."""

    def __init__(self, proxy: ApiFaults, upstream: str, trust: ssl.SSLContext):
        self.proxy, self.upstream, self.trust = proxy, upstream, trust
        self.released = asyncio.Event()

    async def start(self) -> int:
        connector = aiohttp.TCPConnector(ssl=self.trust, limit=0)
        self.session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self.handle)
        self.runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        sockets: Any = site._server
        port: int = sockets.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        self.released.set()
        await self.runner.cleanup()
        await self.session.close()

    async def handle(self, asked: web.Request) -> web.StreamResponse:
        content = await asked.read()
        body = json.loads(content) if content.startswith(b"{") else None
        request = Request(asked.method, asked.path, dict(asked.query), body)
        fault = self.proxy.take(request)
        if fault in UNDONE:
            return await self._refuse(asked, request, fault)
        kept = {k: v for k, v in asked.headers.items() if k.lower() not in ("host", "content-length", "connection")}
        url = self.upstream + asked.raw_path
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with self.session.request(
                asked.method,
                url,
                data=content or None,
                headers=kept,
                timeout=timeout,
                skip_auto_headers=("Content-Type", "User-Agent"),
            ) as answer:
                request.status = answer.status
                return await self._pass_on(asked, request, answer)
        except aiohttp.ClientError:  # the server is down: so is the proxy
            return await self._refuse(asked, request, Fault.Reset)

    async def _refuse(self, asked: web.Request, request: Request, fault: Fault | None) -> web.StreamResponse:
        if fault is Fault.Reset or fault is None:
            return self._hang_up(asked)
        code, reason = STATUSES[fault]
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": fault.value,
        }
        if request.watches and fault in (Fault.Gone, Fault.Failed):
            return web.json_response({"type": "ERROR", "object": status})
        headers = {"Retry-After": "1"} if fault is Fault.Throttled else None
        return web.json_response(status, status=code, headers=headers)

    async def _pass_on(
        self, asked: web.Request, request: Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        fault = request.fault
        if fault is Fault.Unsaid:
            await answer.read()
            return await self._refuse(asked, request, fault)
        if fault is Fault.Dropped:
            await answer.read()
            return self._hang_up(asked)
        kept = ("content-type", "retry-after", "content-encoding")
        headers = {k: v for k, v in answer.headers.items() if k.lower() in kept}
        if request.watches:
            return await self._stream(asked, request, answer, headers)
        content = await answer.read()
        if fault is Fault.Silent:
            await self.released.wait()
        if fault is not Fault.Cut:
            return web.Response(status=answer.status, body=content, headers=headers)
        response = web.StreamResponse(status=answer.status, headers={**headers, "Content-Length": str(len(content))})
        await response.prepare(asked)
        await response.write(content[: len(content) // 2])
        return self._hang_up(asked)

    async def _stream(
        self, asked: web.Request, request: Request, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(asked)
        try:
            async for chunk in answer.content.iter_any():
                if self.released.is_set():
                    break
                if request.fault is not Fault.Silent:
                    await response.write(chunk)
        except (ConnectionError, aiohttp.ClientError):  # either side went away
            return self._hang_up(asked)
        return response

    def _hang_up(self, asked: web.Request) -> web.StreamResponse:
        if asked.transport is not None:
            asked.transport.abort()
        return web.Response(status=500)  # nobody reads it
