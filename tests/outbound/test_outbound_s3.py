"""An S3 endpoint that the job names is guarded; that of the environment is the platform's."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.exceptions import SSLError
from outbound.servers import Names, certificate, web
from outbound.servers import names as names  # a fixture
from s3_server import S3Server
from s3_server import s3 as s3
from s3_server import s3_server as s3_server  # fixtures

from kd_runtime.api.failures import SettingsError, StorageError
from kd_runtime.artifacts.s3_store import S3Store
from kd_runtime.outbound.addresses import VARIABLE


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def test_a_private_endpoint_is_refused_at_once(key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "10.0.0.0/8")
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it was tried again"))
    with web() as server:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(
                SettingsError, match=rf"spec\.artifacts\.endpoint: {host} is at \S+, a loopback address"
            ):
                S3Store("bucket", endpoint=f"http://{host}:{server.port}").get("object")
        assert server.hosts == []


def test_a_listed_endpoint_is_used(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "127.0.0.0/8")
    store = S3Store(s3.bucket, "outbound", endpoint=s3.url, part_bytes=5 << 20, multipart_bytes=5 << 20)
    (tmp_path / "large").write_bytes(bytes(11 << 20))
    store.put("large", tmp_path / "large")
    store.download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == bytes(11 << 20)


def test_the_endpoint_of_the_environment_is_the_platforms(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    store = S3Store(s3.bucket, "outbound")
    store.put("small", b"body")
    assert store.get("small") == b"body"


def test_the_address_that_was_checked_is_the_one_that_is_used(
    key: None, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "127.0.0.0/8")
    names.lead("store.example.com", ["10.0.0.1", "127.0.0.2", "127.0.0.1"], ["10.0.0.1"])
    with web() as server:
        store = S3Store("bucket", endpoint=f"http://store.example.com:{server.port}", attempts=1)
        assert store.get("object") == b"ok"
        assert (names.asked, server.hosts) == (["store.example.com"], [f"store.example.com:{server.port}"])


def test_tls_is_of_the_name(key: None, names: Names, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "127.0.0.0/8")
    file = certificate(tmp_path, "store.example.com")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    names.lead("store.example.com", ["127.0.0.1"])
    names.lead("other.example.com", ["127.0.0.1"])
    with web(tls=file) as server:
        assert S3Store("bucket", endpoint=f"https://store.example.com:{server.port}").get("object") == b"ok"
        assert server.names == ["store.example.com"]
        with pytest.raises(StorageError) as failed:
            S3Store("bucket", endpoint=f"https://other.example.com:{server.port}", attempts=1).get("object")
        assert isinstance(failed.value.__cause__, SSLError)


def test_a_name_that_is_unknown_is_the_stores_failure(key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(StorageError, match=r"http://host\.invalid does not answer"):
        S3Store("bucket", endpoint="http://host.invalid", attempts=1).get("object")


def test_a_proxy_of_the_environment_looks_names_up_itself(key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with web() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        assert S3Store("bucket", endpoint="http://store.example.com", attempts=1).get("object") == b"ok"
        with pytest.raises(SettingsError, match=r"169\.254\.169\.254 is at"):
            S3Store("bucket", endpoint="http://169.254.169.254").get("object")
        assert proxy.hosts == ["store.example.com"]
