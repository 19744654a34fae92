"""boto3 clients that connect to the very address that was checked; TLS and signatures are still of the endpoint's name."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kd_runtime.api.failures import SettingsError
from kd_runtime.outbound.addresses import Guard

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def guard_s3_client(client: S3Client, guard: Guard) -> None:
    """Guard ``client`` from now on. A proxy of the environment decides by itself, but for addresses that are spelled out."""
    endpoint: Any = client._endpoint  # type: ignore[attr-defined]  # boto3 has no public place for it
    endpoint.http_session = _Session(endpoint.http_session, guard)


class _Session:
    """botocore's session, whose direct connections are guarded, and which lets refusals through: botocore would try again."""

    def __init__(self, inner: Any, guard: Guard):
        self._inner, self._guard = inner, guard
        manager = inner._manager
        # Another dictionary: the one that is there is also that of proxies.
        manager.pool_classes_by_scheme = {
            scheme: _pool(pool, guard) for scheme, pool in manager.pool_classes_by_scheme.items()
        }

    def send(self, request: Any) -> Any:
        """The answer to one request."""
        from botocore.exceptions import HTTPClientError

        self._guard.check_literal(urlsplit(request.url).hostname or "")
        try:
            return self._inner.send(request)
        except HTTPClientError as error:
            cause = error.kwargs.get("error")
            if isinstance(cause, SettingsError):
                raise cause from error
            raise

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


def _pool(pool: Any, guard: Guard) -> Any:
    """``pool``, a class of urllib3's pools, with guarded connections."""
    from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        _dns_host: str

        def _new_conn(self) -> socket.socket:
            name = self._dns_host
            try:
                addresses = guard.resolve(name.strip("[]"), self.port)
            except socket.gaierror as error:
                raise NameResolutionError(self.host, self, error) from error
            try:
                for address in addresses[:-1]:
                    self._dns_host = address
                    try:
                        return self._connected()
                    except (ConnectTimeoutError, NewConnectionError):
                        continue
                self._dns_host = addresses[-1]
                return self._connected()
            finally:
                self._dns_host = name  # TLS takes the server's name from here

        def _connected(self) -> socket.socket:
            opened: socket.socket = super()._new_conn()
            return opened

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})
