"""Where a URL of a job may lead: to public addresses, and to what the runtime's `network.privateCIDRs` lists."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from kd_runtime.api.failures import SettingsError

VARIABLE = "KD_PRIVATE_CIDRS"
"""The list, with commas. The operator sets it in every pod, an empty one too; where it is not set, as on a laptop,
every address is allowed."""
CIDRS = "the ClusterDistillationRuntime's spec.network.privateCIDRs"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Guard:
    """Decides over the addresses of one user's URL; ``field`` is what messages call it by."""

    field: str
    allowed: tuple[Network, ...] = ()

    def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of ``host`` that may be connected to, of one look-up.

        Raises:
            OSError: there is no such name. SettingsError: none of its addresses is allowed.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise socket.gaierror(f"{host} is not a host's name") from error
        return self.admitted(host, (str(entry[4][0]) for entry in found))

    def admitted(self, host: str, found: Iterable[str]) -> list[str]:
        """Those of the addresses that were ``found`` for ``host`` that may be connected to.

        Raises:
            SettingsError: none of them.
        """
        addresses = list(dict.fromkeys(found))
        kept = [address for address in addresses if self._refusal(address) is None]
        if not kept:
            address = addresses[0]
            raise SettingsError(
                f"{self.field}: {host} is at {address}, {self._refusal(address)} address that {CIDRS} does not hold; "
                f"add a CIDR with it there (runtime), or name a public host (job)"
            )
        return kept

    def check_literal(self, host: str) -> None:
        """Refuse ``host`` where it is an address itself; names are not looked up. For requests that a proxy may pass on.

        Raises:
            SettingsError: it is one that is not allowed.
        """
        try:
            found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            return
        self.admitted(host, (str(entry[4][0]) for entry in found))

    def _refusal(self, text: str) -> str | None:
        """What kind of address this is, with its article, where it is refused."""
        address = ipaddress.ip_address(text)
        meant = _meant(address)
        if any(each in network for each in (address, meant) for network in self.allowed):
            return None
        return _kind(meant)


def guard_of(field: str) -> Guard | None:
    """The guard of this process for the URL in ``field``; None where every address is allowed.

    Raises:
        SettingsError: the list holds something that is no CIDR.
    """
    said = os.environ.get(VARIABLE)
    return None if said is None else Guard(field, _networks(said))


def _networks(said: str) -> tuple[Network, ...]:
    found: list[Network] = []
    for text in filter(None, (part.strip() for part in said.split(","))):
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError as error:
            raise SettingsError(f"{CIDRS}: {text!r} is no CIDR ({error}); correct it") from error
    return tuple(found)


def _meant(address: Address) -> Address:
    """The IPv4 address to which an IPv6 one leads: mapped, 6to4 or NAT64; else the address."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _kind(address: Address) -> str | None:
    """None for a public address."""
    kinds = {
        "an unspecified": address.is_unspecified,
        "a loopback": address.is_loopback,
        "a link-local": address.is_link_local,
        "a multicast": address.is_multicast,
        "a private": address.is_private or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local),
        "a reserved": address.is_reserved or not address.is_global,
    }
    return next((kind for kind, holds in kinds.items() if holds), None)
