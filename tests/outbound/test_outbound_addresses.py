"""Public addresses are reached, others where the runtime lists them, however they are written."""

from __future__ import annotations

import socket

import pytest

from kd_runtime.api.failures import ExitClass, SettingsError
from kd_runtime.outbound.addresses import VARIABLE, Guard, guard_of

PRIVATE = {
    "127.0.0.1": "a loopback",
    "127.9.9.9": "a loopback",
    "10.1.2.3": "a private",
    "172.16.0.1": "a private",
    "192.168.1.1": "a private",
    "100.64.0.1": "a reserved",
    "169.254.169.254": "a link-local",
    "0.0.0.0": "an unspecified",
    "224.0.0.1": "a multicast",
    "239.1.1.1": "a multicast",
    "255.255.255.255": "a private",
    "240.0.0.1": "a private",
    "192.0.2.1": "a private",
    "::": "an unspecified",
    "::1": "a loopback",
    "fe80::1": "a link-local",
    "fe80::1%lo": "a link-local",
    "fc00::1": "a private",
    "fd00:ec2::254": "a private",
    "fec0::1": "a private",
    "ff02::1": "a multicast",
    "2001:db8::1": "a private",
    "::7f00:1": "a reserved",
    "::ffff:127.0.0.1": "a loopback",
    "::ffff:169.254.169.254": "a link-local",
    "::ffff:10.0.0.1": "a private",
    "64:ff9b::a9fe:a9fe": "a link-local",
    "2002:a9fe:a9fe::1": "a link-local",
    "2002:a00:1::1": "a private",
}
PUBLIC = ["8.8.8.8", "52.216.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


def guard(*cidrs: str, monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setenv(VARIABLE, ",".join(cidrs))
    made = guard_of("spec.url")
    assert made is not None
    return made


@pytest.mark.parametrize(("address", "kind"), PRIVATE.items())
def test_what_is_not_public_is_refused(address: str, kind: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Guard("spec.url").admitted("host.example.com", [address])
    assert str(refused.value) == (
        f"spec.url: host.example.com is at {address}, {kind} address that the ClusterDistillationRuntime's "
        "spec.network.privateCIDRs does not hold; add a CIDR with it there (runtime), or name a public host (job)"
    )
    assert refused.value.exit_class is ExitClass.BadSettings


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached(address: str) -> None:
    assert Guard("spec.url").admitted("host.example.com", [address]) == [address]


@pytest.mark.parametrize(
    ("address", "cidr"),
    [
        ("10.1.2.3", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.3", "10.1.2.9/24"),  # bits of a host are no error
        ("::ffff:10.1.2.3", "10.0.0.0/8"),
        ("64:ff9b::a01:203", "10.0.0.0/8"),
        ("fd12::9", "fd12::/16"),
        ("169.254.169.254", "169.254.169.254/32"),
    ],
)
def test_what_the_runtime_lists_is_reached(address: str, cidr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard("192.0.2.0/24", cidr, monkeypatch=monkeypatch).admitted("host", [address]) == [address]
    with pytest.raises(SettingsError):
        guard("192.0.2.0/24", monkeypatch=monkeypatch).admitted("host", [address])


def test_of_several_addresses_those_are_left_that_are_allowed_in_their_order() -> None:
    found = ["127.0.0.1", "8.8.8.8", "8.8.8.8", "fd00::1", "1.1.1.1"]
    assert Guard("spec.url").admitted("host", found) == ["8.8.8.8", "1.1.1.1"]


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.0.0.1", "localhost", "0"])
def test_other_spellings_of_loopback_are_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=r"is at (127\.0\.0\.1|::1|0\.0\.0\.0), "):
        Guard("spec.url").resolve(host, 80)


@pytest.mark.parametrize("host", ["127.1", "169.254.169.254", "[::1]", "::ffff:10.0.0.1"])
def test_an_address_in_a_url_is_refused_without_a_look_up(host: str) -> None:
    with pytest.raises(SettingsError):
        Guard("spec.url").check_literal(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "localhost", "no such host", "a..b", ""])
def test_names_and_public_addresses_pass_where_a_proxy_looks_up(host: str) -> None:
    Guard("spec.url").check_literal(host)


@pytest.mark.parametrize("host", ["host.invalid", "a..b", "x" * 70])
def test_a_name_that_is_none_is_no_refusal(host: str) -> None:
    with pytest.raises(socket.gaierror):
        Guard("spec.url").resolve(host, 80)


def test_without_a_list_all_is_allowed_and_with_an_empty_one_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert guard_of("spec.url") is None
    monkeypatch.setenv(VARIABLE, "")
    assert guard_of("spec.url") == Guard("spec.url")


def test_a_list_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "10.0.0.0/8,999.0.0.0/8")
    with pytest.raises(SettingsError, match=r"network\.privateCIDRs: '999\.0\.0\.0/8' is no CIDR"):
        guard_of("spec.url")
