"""httpx clients (huggingface_hub's httpx2 as well) that connect to the very address that was checked.

Certificates and the Host header are still of the URL's name. Each connection is checked, and so each hop of redirects.
Where the environment names a proxy, the proxy looks names up and decides; addresses that a URL spells out are checked.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import httpx

from kd_runtime.outbound.addresses import Guard


def guard_client(client: httpx.Client, guard: Guard | None) -> httpx.Client:
    """``client``, guarded from now on, as it is where there is no guard."""
    if guard is not None:

        def check(request: httpx.Request) -> None:
            guard.check_literal(request.url.host)

        _guard(client, lambda inner, core: _Backend(inner, guard, core), check)
    return client


def guard_async_client(client: httpx.AsyncClient, guard: Guard | None) -> httpx.AsyncClient:
    """Like `guard_client`."""
    if guard is not None:

        async def check(request: httpx.Request) -> None:
            guard.check_literal(request.url.host)

        _guard(client, lambda inner, core: _AsyncBackend(inner, guard, core), check)
    return client


def _guard(client: Any, wrap: Callable[[Any, ModuleType], object], check: object) -> None:
    """Wrap what opens the connections that go through no proxy.

    httpx has no public place for it: a transport of one's own switches the environment's proxies off. Were the
    private ones renamed, this raises, so that no client is left without its guard.
    """
    pool = client._transport._pool
    core = sys.modules[type(pool).__module__.partition(".")[0]]
    pool._network_backend = wrap(pool._network_backend, core)
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], check]}


class _Backend:
    """A network backend of httpcore that looks up, checks, and hands addresses to the ``inner`` one."""

    def __init__(self, inner: Any, guard: Guard, core: Any):
        self._inner, self._resolve, self._core = inner, guard.resolve, core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def connect_tcp(self, host: str, port: int, **settings: Any) -> Any:
        """A stream to the first allowed address that answers."""
        try:
            addresses = self._resolve(host, port)
        except OSError as error:
            raise self._core.ConnectError(str(error)) from error
        for address in addresses[:-1]:
            try:
                return self._inner.connect_tcp(address, port, **settings)
            except (self._core.ConnectError, self._core.ConnectTimeout):
                continue
        return self._inner.connect_tcp(addresses[-1], port, **settings)


class _AsyncBackend:
    """Like `_Backend`; names are looked up beside the event loop."""

    def __init__(self, inner: Any, guard: Guard, core: Any):
        self._inner, self._guard, self._core = inner, guard, core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def connect_tcp(self, host: str, port: int, **settings: Any) -> Any:
        """A stream to the first allowed address that answers."""
        addresses = await self._addresses(host, port, settings.get("timeout"))
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, **settings)
            except (self._core.ConnectError, self._core.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, **settings)

    async def _addresses(self, host: str, port: int, timeout: float | None) -> Sequence[str]:
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.to_thread(self._guard.resolve, host, port)
        except TimeoutError as error:
            raise self._core.ConnectTimeout(f"{host} could not be looked up within {timeout} s") from error
        except OSError as error:
            raise self._core.ConnectError(str(error)) from error
