"""Guarded httpx clients connect to what was checked and to nothing else; the name stays in TLS and in the Host header."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from outbound.servers import Names, certificate, web
from outbound.servers import names as names  # a fixture

from kd_runtime.api.failures import SettingsError
from kd_runtime.outbound.addresses import Guard
from kd_runtime.outbound.http import guard_async_client, guard_client

NOTHING_PRIVATE = Guard("spec.url")
LOOPBACK = Guard("spec.url", (ipaddress.ip_network("127.0.0.0/8"),))
FIRST_ALONE = Guard("spec.url", (ipaddress.ip_network("127.0.0.1/32"),))

Get = Callable[..., httpx.Response]


def get(url: str, guard: Guard | None, **settings: Any) -> httpx.Response:
    with guard_client(httpx.Client(**settings), guard) as client:
        return client.get(url)


def get_async(url: str, guard: Guard | None, **settings: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        async with guard_async_client(httpx.AsyncClient(**settings), guard) as client:
            return await client.get(url)

    return asyncio.run(main())


@pytest.fixture(params=[get, get_async])
def ask(request: pytest.FixtureRequest) -> Get:
    """A client of each kind."""
    made: Get = request.param
    return made


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_loopback_is_refused_unless_it_is_listed(ask: Get, host: str) -> None:
    with web() as server:
        url = f"http://{host}:{server.port}/"
        with pytest.raises(SettingsError, match=rf"spec\.url: {host} is at (127\.0\.0\.1|::1), a loopback address"):
            ask(url, NOTHING_PRIVATE)
        assert server.hosts == []
        both = Guard("spec.url", (*LOOPBACK.allowed, ipaddress.ip_network("::1/128")))
        assert ask(url, both).text == "ok"
        assert ask(url, None).text == "ok"


def test_a_name_that_leads_to_two_addresses_is_reached_at_the_allowed_one(ask: Get, names: Names) -> None:
    with web() as server:
        names.lead("mixed.example.com", ["10.0.0.1", "127.0.0.1"])
        assert ask(f"http://mixed.example.com:{server.port}/", LOOPBACK).text == "ok"
        assert server.hosts == [f"mixed.example.com:{server.port}"]


def test_an_address_where_nobody_listens_is_passed_over(ask: Get, names: Names) -> None:
    with web() as server:
        names.lead("two.example.com", ["127.0.0.2", "127.0.0.1"])
        assert ask(f"http://two.example.com:{server.port}/", LOOPBACK).text == "ok"


def test_where_nobody_listens_at_all_that_is_said_as_without_a_guard(ask: Get, names: Names) -> None:
    with web() as server:
        names.lead("none.example.com", ["127.0.0.2", "127.0.0.3"])
        with pytest.raises(httpx.ConnectError):
            ask(f"http://none.example.com:{server.port}/", LOOPBACK)


def test_a_name_that_is_unknown_is_a_failed_connection(ask: Get) -> None:
    with pytest.raises(httpx.ConnectError):
        ask("http://host.invalid/", LOOPBACK)


def test_a_name_that_leads_elsewhere_at_a_second_look_up_is_looked_up_once(ask: Get, names: Names) -> None:
    with web() as server:
        names.lead("rebound.example.com", ["127.0.0.1"], ["10.0.0.1"])
        assert ask(f"http://rebound.example.com:{server.port}/", FIRST_ALONE).text == "ok"
        assert names.asked == ["rebound.example.com"]
        with pytest.raises(SettingsError, match=r"rebound\.example\.com is at 10\.0\.0\.1, a private address"):
            ask(f"http://rebound.example.com:{server.port}/", FIRST_ALONE)


def test_each_hop_of_a_redirect_is_checked(ask: Get, names: Names) -> None:
    with web() as inner, web(redirect=f"http://inner.example.com:{inner.port}/") as outer:
        url = f"http://outer.example.com:{outer.port}/"
        names.lead("outer.example.com", ["127.0.0.1"], ["127.0.0.1"])
        names.lead("inner.example.com", ["127.0.0.2"])
        with pytest.raises(SettingsError, match=r"inner\.example\.com is at 127\.0\.0\.2"):
            ask(url, FIRST_ALONE, follow_redirects=True)
        outer.redirect = f"http://127.0.0.2:{inner.port}/"
        with pytest.raises(SettingsError, match=r"127\.0\.0\.2 is at 127\.0\.0\.2"):
            ask(url, FIRST_ALONE, follow_redirects=True)
        assert inner.hosts == []


def test_tls_and_the_host_header_are_of_the_name(ask: Get, names: Names, tmp_path: Path) -> None:
    file = certificate(tmp_path, "tls.example.com")
    trusted = ssl.create_default_context(cafile=str(file))
    with web(tls=file) as server:
        names.lead("tls.example.com", ["127.0.0.1"])
        assert ask(f"https://tls.example.com:{server.port}/", LOOPBACK, verify=trusted).text == "ok"
        assert (server.names, server.hosts) == (["tls.example.com"], [f"tls.example.com:{server.port}"])
        names.lead("other.example.com", ["127.0.0.1"])
        with pytest.raises(httpx.ConnectError, match="certificate"):
            ask(f"https://other.example.com:{server.port}/", LOOPBACK, verify=trusted)


def test_a_proxy_of_the_environment_looks_names_up_itself(
    ask: Get, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "inside.example.com")
        assert ask("http://outside.example.com/", NOTHING_PRIVATE).text == "ok"
        assert proxy.hosts == ["outside.example.com"]
        for host in ("169.254.169.254", "127.1"):
            with pytest.raises(SettingsError, match="is at "):
                ask(f"http://{host}/", NOTHING_PRIVATE)
        names.lead("inside.example.com", ["10.0.0.1"])
        with pytest.raises(SettingsError, match=r"inside\.example\.com is at 10\.0\.0\.1"):
            ask("http://inside.example.com/", NOTHING_PRIVATE)
        assert len(proxy.hosts) == 1
