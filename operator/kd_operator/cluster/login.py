"""Who the operator is to the API server: its ServiceAccount's token, read again while it runs, or a kubeconfig."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

log = logging.getLogger(__name__)

TOKEN_SECONDS = 60.0
"""How long a token is used before it is read again: kubelet replaces it at four fifths of its life."""


@dataclass
class Login:
    """A client for one API server, and the headers that go with every request."""

    client: ApiClient
    load: Callable[[], Configuration]
    read_at: float
    headers: dict[str, str] = field(default_factory=dict)
    stale: bool = False
    """The last token was refused."""
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def authorised(self) -> dict[str, str]:
        """The headers of a request; the token is read in a thread, since files and credential plug-ins block."""
        if self.stale or time.monotonic() - self.read_at > TOKEN_SECONDS:
            async with self.reading:
                if self.stale or time.monotonic() - self.read_at > TOKEN_SECONDS:
                    await self._read()
        return dict(self.headers)

    async def _read(self) -> None:
        self.stale, self.read_at = False, time.monotonic()
        try:
            self.headers = _headers(await asyncio.to_thread(self.load))
        except (config.ConfigException, OSError, ValueError) as error:  # while a file is being replaced
            log.warning("the credentials cannot be read: %s; the old ones are used", error)


async def login(pool: int, server: str | None = None) -> Login:
    """Log in by the pod's ServiceAccount, else by a kubeconfig ($KUBECONFIG). Call it in the event loop that will use it.

    ``server`` overrides the API server's address (a proxy of tests).
    """

    def load() -> Configuration:
        loaded = _configuration()
        loaded.connection_pool_maxsize = pool
        loaded.client_session_kwargs = {"trust_env": False}  # else aiohttp opens ~/.netrc at every request
        if server is not None:
            loaded.host = server
        return loaded

    def connect() -> tuple[ApiClient, Configuration]:
        loaded = load()
        return ApiClient(loaded), loaded  # reads the certificates

    client, loaded = await asyncio.to_thread(connect)
    return Login(client, load, time.monotonic(), _headers(loaded))


def _configuration() -> Configuration:
    loaded = Configuration()
    try:
        config.load_incluster_config(client_configuration=loaded, try_refresh_token=False)
    except config.ConfigException:
        loaded = Configuration()
        place = os.environ.get("KUBECONFIG", config.KUBE_CONFIG_DEFAULT_LOCATION)  # the library reads it only once
        asyncio.run(config.load_kube_config(place, client_configuration=loaded, persist_config=False))
    return loaded


def _headers(loaded: Configuration) -> dict[str, str]:
    token = loaded.api_key.get("BearerToken") or loaded.api_key.get("authorization")
    return {"Authorization": token} if token else {}
