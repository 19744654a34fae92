"""Stores to test with: a folder, and a bucket on a real S3 server (the cluster kit's, else moto's)."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import boto3
import pytest

from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.s3_store import S3Store
from kd_runtime.artifacts.store import Store

PART_BYTES = 5 << 20
"""The smallest part that S3 allows."""


@dataclass(frozen=True)
class S3Server:
    """A running server: its URL and a key that may do all."""

    url: str
    access_key: str
    secret_key: str
    kind: str

    def environment(self) -> dict[str, str]:
        """What the usual AWS chain reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        """A bucket of its own for a test."""
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )
        name = f"kd-{uuid4().hex[:12]}"
        client.create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server for the whole session."""
    kit = os.environ.get("KD_TEST_KIT")
    yield from _versitygw(kit) if kit else _moto()


def _versitygw(kit: str) -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="kd-s3-", ignore_cleanup_errors=True) as folder:
        for name in ("run", "log"):
            (Path(folder) / name).mkdir()
        environment = {**os.environ, "KIT_DIR": folder}
        said = subprocess.run([kit, "s3"], env=environment, check=True, capture_output=True, text=True).stdout
        values = dict(re.findall(r"(\w+)=(\S+)", said))
        try:
            yield S3Server(
                values["AWS_ENDPOINT_URL"], values["AWS_ACCESS_KEY_ID"], values["AWS_SECRET_ACCESS_KEY"], "versitygw"
            )
        finally:
            subprocess.run([kit, "crash", "versitygw"], env=environment, check=True)
            subprocess.run([kit, "down"], env=environment, check=False, capture_output=True)


def _moto() -> Iterator[S3Server]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Server(f"http://{host}:{port}", "key", "secret", "moto")
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its key in the environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of either kind."""
    if request.param == "file":
        return FileStore(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3")
    return S3Store(
        server.new_bucket(),
        "team/kd",
        endpoint=server.url,
        attempts=3,
        part_bytes=PART_BYTES,
        multipart_bytes=PART_BYTES,
    )


@pytest.fixture
def checking_server(store: Store) -> None:
    """Skips where the bucket is moto's, which checks neither checksums nor races of multipart uploads."""
    if isinstance(store, S3Store) and not os.environ.get("KD_TEST_KIT"):
        pytest.skip("needs the real S3 server of the cluster kit (KD_TEST_KIT)")


@pytest.fixture
def folder_store(tmp_path: Path) -> FileStore:
    """An empty store in a folder, for what does not depend on the kind."""
    return FileStore(tmp_path / "folder-store")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "cache")
