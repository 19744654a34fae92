"""Who connects and asks nothing is not kept; who asks is."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web
from kd_operator.progress.silence import Silence

ASKED = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HALF = b"POST / HTTP/1.1\r\nHost: a\r\nX-Long: aaaaaaaa"


async def _hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def _left(most: int, sweeps: int) -> dict[str, bool]:
    """Which of a connection that asked, and one that sends half a header, is left after so many sweeps."""
    silence = Silence(most)
    app = web.Application(middlewares=[silence.middleware])
    app.router.add_get("/", _hello)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        asked, half = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        asked[1].write(ASKED)
        assert b"200 OK" in await asked[0].readline()
        half[1].write(HALF)
        server = runner.server
        assert server is not None
        while len(server.connections) < 2:
            await asyncio.sleep(0)
        for _ in range(sweeps):
            silence.sweep(server)
            await asyncio.sleep(0)
        closed = sweeps >= 2 or most < 2
        if closed:
            with contextlib.suppress(ConnectionResetError):
                assert await half[0].read() == b""
        return {"asked": not asked[1].transport.is_closing() and not asked[0].at_eof(), "half": not closed}
    finally:
        await runner.cleanup()


def test_half_a_header_is_waited_for_from_one_sweep_to_the_next() -> None:
    assert asyncio.run(_left(most=10, sweeps=1)) == {"asked": True, "half": True}
    assert asyncio.run(_left(most=10, sweeps=2)) == {"asked": True, "half": False}


def test_where_there_are_too_many_connections_the_silent_ones_go_at_once() -> None:
    assert asyncio.run(_left(most=1, sweeps=1)) == {"asked": True, "half": False}
