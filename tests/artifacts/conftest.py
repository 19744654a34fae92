"""Stores to test with: a folder, and a bucket on a real S3 server (the cluster kit's, else moto's)."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest
from s3_server import S3Server, s3, s3_server  # noqa: F401 - fixtures

from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.s3_store import S3Store
from kd_runtime.artifacts.store import Store

PART_BYTES = 5 << 20
"""The smallest part that S3 allows."""


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of either kind."""
    if request.param == "file":
        return FileStore(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3")
    return S3Store(
        server.bucket,
        f"team/{uuid4().hex}",
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
