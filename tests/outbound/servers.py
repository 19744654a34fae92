"""Real servers on loopback, and names that lead where a test says."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Web:
    """A server that answers every GET with ``ok``, or with a redirect."""

    port: int = 0
    redirect: str | None = None
    hosts: list[str] = field(default_factory=list)
    """Host headers, in the order of requests."""
    names: list[str | None] = field(default_factory=list)
    """Server names of TLS."""


@contextmanager
def web(tls: Path | None = None, redirect: str | None = None) -> Iterator[Web]:
    """A server; ``tls`` is a file with a key and its certificate."""
    state = Web(redirect=redirect)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.hosts.append(str(self.headers["Host"]))
            self.send_response(200 if state.redirect is None else 302)
            if state.redirect is not None:
                self.send_header("Location", state.redirect)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        context.sni_callback = lambda _socket, name, _context: state.names.append(name)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    state.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class Names:
    """A resolver: each look-up of a name gives its next list of addresses; all else is looked up as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.known: dict[str, list[Sequence[str]]] = {}
        self.asked: list[str] = []
        before = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
            name = host.decode() if isinstance(host, bytes) else host
            if name not in self.known:
                return before(host, port, *rest, **more)
            if more.get("flags", 0) & socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "a name")
            self.asked.append(name)
            addresses = self.known[name].pop(0)
            return [
                (
                    socket.AF_INET6 if ipaddress.ip_address(a).version == 6 else socket.AF_INET,
                    socket.SOCK_STREAM,
                    6,
                    "",
                    (a, port),
                )
                for a in addresses
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def lead(self, name: str, *lookups: Sequence[str]) -> None:
        """What the look-ups of ``name`` give, one after the other."""
        self.known[name] = list(lookups)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The resolver of this test."""
    return Names(monkeypatch)


def certificate(folder: Path, name: str) -> Path:
    """A file with a key and its own certificate for ``name``, which also is the authority to trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(encoded + made.public_bytes(serialization.Encoding.PEM))
    return file
