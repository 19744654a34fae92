"""Connections on which nobody asks anything: the bounds of a request begin only once its headers are there."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

SILENT_SECONDS = 10.0
"""For the headers of a connection's first request to arrive, give or take as much again."""
MOST_CONNECTIONS = 4096
"""Beyond so many, those that have asked nothing yet are closed at once."""


class Silence:
    """Closes connections that have not asked anything for too long, and the silent ones first where there are too many."""

    def __init__(self, most: int = MOST_CONNECTIONS):
        self._most = most
        self._heard: set[Any] = set()
        self._silent: set[Any] = set()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Takes note of who asks."""
        self._heard.add(request.protocol)
        answer: web.StreamResponse = await handler(request)
        return answer

    def sweep(self, server: web.Server) -> None:
        """Close those that were silent at the last sweep and still are; where there are too many, all that are."""
        connections = set(server.connections)
        self._heard &= connections
        silent = connections - self._heard
        for connection in silent if len(connections) > self._most else silent & self._silent:
            connection.force_close()
        self._silent = silent

    async def run(self, runner: web.AppRunner) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SILENT_SECONDS)
            if runner.server is not None:
                self.sweep(runner.server)
