"""A bucket that answers wrongly costs retries, never data; and what cannot be mended says so in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from artifacts.faulty_proxy import Fault, FaultyProxy, faulty_proxy

from kd_runtime.api.failures import DeniedError, SettingsError, StorageError
from kd_runtime.artifacts.s3_store import S3Store
from kd_runtime.artifacts.store import AlreadyExists, Missing, open_store

MIB = 1 << 20
PART = 5 * MIB
LARGE = bytes(range(256)) * (16 * MIB // 256) + b"end"
"""Four parts."""


@pytest.fixture
def proxy(s3) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3.url) as proxy:
        yield proxy


@pytest.fixture
def store(s3, proxy: FaultyProxy) -> S3Store:
    return S3Store(s3.new_bucket(), "kd", endpoint=proxy.url, attempts=3, part_bytes=PART, multipart_bytes=PART)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


@pytest.mark.parametrize("fault", [Fault.Refused, Fault.Unsaid, Fault.Dropped])
def test_a_conditional_write_that_arrived_unseen_is_ours(store: S3Store, proxy: FaultyProxy, fault: Fault) -> None:
    proxy.fail("PUT", "manifest.json", fault)
    info = store.put("manifest.json", b"mine", if_absent=True)
    found = store.stat("manifest.json")
    assert found is not None and found.etag == info.etag
    assert store.get("manifest.json") == b"mine"


def test_another_writers_object_is_not_taken_for_ours_after_an_error(store: S3Store, proxy: FaultyProxy) -> None:
    store.put("manifest.json", b"theirs")
    proxy.fail("PUT", "manifest.json", Fault.Refused)
    with pytest.raises(AlreadyExists):
        store.put("manifest.json", b"mine", if_absent=True)
    assert store.get("manifest.json") == b"theirs"


def test_parts_that_arrived_are_not_sent_again(store: S3Store, proxy: FaultyProxy, large: Path) -> None:
    proxy.fail("PUT", "partNumber=3", Fault.Refused)
    proxy.fail("POST", "uploadId", Fault.Unsaid)
    store.put("large", large, if_absent=True)
    assert store.get("large") == LARGE
    assert [proxy.count("PUT", f"partNumber={number}") for number in (1, 2, 3, 4)] == [1, 1, 2, 1]


@pytest.mark.parametrize("fault", [Fault.Refused, Fault.Dropped, Fault.Truncated, Fault.Reset])
def test_a_read_that_breaks_off_is_done_again(store: S3Store, proxy: FaultyProxy, fault: Fault) -> None:
    store.put("a", b"0123456789")
    proxy.fail("GET", "/a", fault, times=2)
    assert store.get("a") == b"0123456789"
    assert proxy.count("GET", "/a") == 3


@pytest.mark.parametrize("fault", [Fault.Dropped, Fault.Reset])
def test_that_something_is_missing_is_asked_again_where_the_answer_breaks_off(
    store: S3Store, proxy: FaultyProxy, fault: Fault
) -> None:
    proxy.fail("GET", "/missing", fault, times=2)
    with pytest.raises(Missing):
        store.get("missing")
    assert proxy.count("GET", "/missing") == 3


def test_a_download_fetches_only_the_range_that_broke_off_again(
    store: S3Store, proxy: FaultyProxy, large: Path, tmp_path: Path
) -> None:
    store.put("large", large)
    proxy.fail("GET", "large", Fault.Truncated)
    store.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert proxy.count("GET", "large") == 5


def test_a_download_goes_on_where_another_process_stopped(
    store: S3Store, proxy: FaultyProxy, large: Path, tmp_path: Path
) -> None:
    store.put("large", large)
    proxy.fail("GET", "large", Fault.Refused, times=100)
    proxy.plan.insert(0, ("GET", "large", Fault.Flipped))  # any fault that lets one range through
    with pytest.raises(StorageError):
        store.download("large", tmp_path / "copy")
    assert (tmp_path / "copy.part").exists() and not (tmp_path / "copy").exists()
    before, arrived = proxy.count("GET", "large"), []
    proxy.plan.clear()
    store.download("large", tmp_path / "copy", progress=arrived.append)
    assert proxy.count("GET", "large") - before == 3
    assert sum(arrived) == len(LARGE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "large"]


def test_what_was_begun_of_another_version_is_dropped(
    store: S3Store, proxy: FaultyProxy, large: Path, tmp_path: Path
) -> None:
    store.put("large", large)
    proxy.fail("GET", "large", Fault.Refused, times=100)
    with pytest.raises(StorageError):
        store.download("large", tmp_path / "copy")
    proxy.plan.clear()
    store.put("large", b"another")
    store.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"another"


def test_a_slow_body_arrives_whole_and_is_asked_for_once(store: S3Store, proxy: FaultyProxy) -> None:
    store.put("a", b"0123456789")
    proxy.fail("GET", "/a", Fault.Slow)
    assert store.get("a") == b"0123456789" and proxy.count("GET", "/a") == 1


def test_a_body_that_stalls_is_asked_for_again(s3, proxy: FaultyProxy, large: Path, tmp_path: Path) -> None:
    store = S3Store(
        s3.bucket,
        uuid4().hex,
        endpoint=proxy.url,
        attempts=3,
        part_bytes=PART,
        multipart_bytes=PART,
        silence_seconds=0.5,
    )
    store.put("large", large)
    proxy.fail("GET", "large", Fault.Stalled, times=2)
    store.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE and proxy.count("GET", "large") == 6


def test_a_bucket_that_may_only_be_read_is_denied(store: S3Store, proxy: FaultyProxy) -> None:
    store.put("a", b"x")
    proxy.judge = lambda method, path, body: Fault.Denied if method in ("PUT", "POST", "DELETE") else None
    for use in (lambda: store.put("b", b"x"), lambda: store.put("b", b"x", if_absent=True), lambda: store.delete("a")):
        with pytest.raises(DeniedError, match=f"access to bucket {store.bucket} is denied .*check the credentials"):
            use()
    assert store.get("a") == b"x"


def test_a_server_that_keeps_failing_is_a_storage_error_that_names_object_and_bucket(
    store: S3Store, proxy: FaultyProxy
) -> None:
    proxy.fail("PUT", "a", Fault.Refused, times=100)
    with pytest.raises(StorageError, match=rf"{store.uri}a: bucket {store.bucket} answered 500"):
        store.put("a", b"x")


def test_a_server_that_is_not_there_is_a_storage_error_that_names_the_endpoint(s3) -> None:
    store = S3Store("bucket", "kd", endpoint="http://127.0.0.1:1", attempts=1)
    with pytest.raises(StorageError, match=r"s3://bucket/kd/a: http://127.0.0.1:1 does not answer"):
        store.get("a")


def test_a_missing_bucket_is_named(s3) -> None:
    store = open_store("s3://no-such-bucket-here/kd/", endpoint=s3.url)
    for use in (
        lambda: store.stat("a"),
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: list(store.list("")),
    ):
        with pytest.raises(SettingsError, match="s3://no-such-bucket-here: there is no such bucket; create it"):
            use()


def test_a_wrong_secret_is_denied(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    if s3.kind == "moto":
        pytest.skip("moto checks no keys")
    bucket = s3.new_bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(f"s3://{bucket}/", endpoint=s3.url)
    for use in (
        lambda: store.stat("a"),
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: list(store.list("")),
    ):
        with pytest.raises(DeniedError, match=f"access to bucket {bucket} is denied .*check the credentials"):
            use()


def test_no_credentials_at_all_is_denied_with_the_variables_to_set(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(DeniedError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_store("s3://bucket/", endpoint=s3.url).get("a")


def test_the_endpoint_may_come_from_the_environment(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.new_bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    store = open_store(f"s3://{bucket}/deep/er")
    store.put("a", b"x")
    assert [info.name for info in open_store(f"s3://{bucket}").list("")] == ["deep/er/a"]
