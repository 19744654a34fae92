"""A real S3 server to test with: the cluster kit's (KD_TEST_KIT), else moto's. Import the fixtures where they are used."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from kit import crash


@dataclass
class S3Server:
    """A running server: its URL and a key that may do all."""

    url: str
    access_key: str
    secret_key: str
    kind: str

    @cached_property
    def client(self) -> Any:
        """A client with that key."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )

    @cached_property
    def bucket(self) -> str:
        """A bucket that tests share, each below a prefix of its own."""
        return self.new_bucket()

    def environment(self) -> dict[str, str]:
        """What the usual AWS chain reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        """A bucket of its own for a test."""
        name = f"kd-{uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
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
            crash(environment, "versitygw")
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
