"""Object storage behind one small interface: what every other room knows of ``file://`` and ``s3://``."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from kd_runtime.api.failures import SettingsError, StorageError, TransientError

Progress = Callable[[int], None]
"""Told the bytes that arrived since it was last called."""
BLOCK_BYTES = 1 << 22
FULL = (errno.ENOSPC, errno.EDQUOT)


class Missing(TransientError):
    """No object of that name is there (any more)."""


class AlreadyExists(StorageError):
    """A conditional write found another object of that name."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its name below the store's root, bytes, version tag, sha256 hex where known, and time (s, epoch)."""

    name: str
    size: int
    etag: str
    sha256: str | None
    modified: float


@runtime_checkable
class Store(Protocol):
    """A flat space of named objects below one URI.

    Names use ``/`` and are relative to ``uri``. Every method may raise StorageError (74) and DeniedError (77), each with
    a sentence that names the object. Safe to use from several threads.
    """

    uri: str
    """With a trailing slash."""

    def put(self, name: str, body: bytes | Path, *, if_absent: bool = False, sha256: str | None = None) -> ObjectInfo:
        """Write one object whole, or not at all. A given ``sha256`` is what the store must have received.

        Raises:
            AlreadyExists: ``if_absent`` was asked for and another object is there. Of racing writers just one wins.
        """
        ...

    def get(self, name: str) -> bytes:
        """The whole object. Raises Missing."""
        ...

    def read_range(self, name: str, start: int, length: int | None = None) -> bytes:
        """Bytes ``start`` to ``start + length`` (or to the end). Raises Missing."""
        ...

    def download(self, name: str, to: Path, *, size: int | None = None, progress: Progress | None = None) -> None:
        """Copy the object to ``to``, which appears only when it is whole; what an earlier try left is gone on with.

        One process at a time may download to one ``to``. Raises Missing.
        """
        ...

    def stat(self, name: str) -> ObjectInfo | None:
        """What is there, or None."""
        ...

    def exists(self, name: str) -> bool:
        """True where an object of that name is there."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose name starts with ``prefix``, sorted by name's bytes."""
        ...

    def delete(self, name: str) -> None:
        """Remove the object; no error where it is absent."""
        ...

    def refuses_overwriting(self) -> bool:
        """False where of two racing ``if_absent`` writers both may win: the server does not know conditional writes.

        Writes and deletes a small object below probes/.
        """
        ...

    def unfinished(self, before: float) -> Iterator[ObjectInfo]:
        """Writes that were begun before ``before`` (s, epoch) and never ended; ``etag`` tells those of one name apart."""
        ...

    def discard(self, write: ObjectInfo) -> None:
        """Free what an unfinished write holds; no error where it is gone."""
        ...


def open_store(uri: str, *, endpoint: str | None = None, region: str | None = None) -> Store:
    """The store at ``uri``: ``file:///absolute/folder`` or ``s3://bucket/prefix/``. Nothing is touched yet.

    ``endpoint`` and ``region`` count for s3 alone; else AWS_ENDPOINT_URL and the usual AWS chain.

    Raises:
        SettingsError: another scheme, a relative path, or no bucket.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        from kd_runtime.artifacts.file_store import FileStore

        if not rest.startswith("/"):
            raise SettingsError(f"{uri}: the path of a file:// URI must be absolute; write file:///folder")
        return FileStore(Path(rest))
    if scheme == "s3":
        from kd_runtime.artifacts.s3_store import S3Store

        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise SettingsError(f"{uri}: names no bucket; write s3://bucket/prefix/")
        return S3Store(bucket, prefix, endpoint=endpoint, region=region)
    raise SettingsError(f"{uri}: scheme {scheme!r} cannot hold objects; use file:// or s3://")


def source_store(uri: str, *, endpoint: str | None = None, region: str | None = None) -> tuple[Store, str]:
    """The store that holds the one object at ``uri``, and its name there.

    Raises:
        SettingsError: as open_store does, or the URI names no object.
    """
    folder, _, name = uri.rpartition("/")
    if not name or "://" not in f"{folder}/":
        raise SettingsError(f"{uri}: names no file; leave out the slash at its end")
    return open_store(f"{folder}/", endpoint=endpoint, region=region), name


def open_object(uri: str, *, endpoint: str | None = None, region: str | None = None) -> bytes:
    """The bytes of the object at ``uri``. Raises Missing."""
    store, name = source_store(uri, endpoint=endpoint, region=region)
    return store.get(name)


def list_uri(uri: str, *, endpoint: str | None = None, region: str | None = None) -> list[ObjectInfo]:
    """The object at ``uri``, or all objects below it as a folder; names are relative to the folder that is listed."""
    if not uri.endswith("/"):
        store, name = source_store(uri, endpoint=endpoint, region=region)
        info = store.stat(name)
        if info is not None:
            return [info]
    return list(open_store(uri.rstrip("/") + "/", endpoint=endpoint, region=region).list(""))


def checked_name(name: str) -> str:
    """``name``, if it stays below the store's root.

    Raises:
        ValueError: it is empty or absolute, or has an empty, ``.`` or ``..`` segment, or a NUL.
    """
    if not name or "\0" in name or any(segment in ("", ".", "..") for segment in name.split("/")):
        raise ValueError(f"not an object's name: {name!r}")
    return name


@contextlib.contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """Turns errors of this machine's disk at ``path``, where an object is copied to, into StorageError."""
    try:
        yield
    except OSError as error:
        remedy = "free space there, or set KD_CACHE_DIR" if error.errno in FULL else "check the disk, then run again"
        raise StorageError(f"{path}: {error.strerror or error}; {remedy}") from error


def body_sha256(body: bytes | Path) -> str:
    """sha256 hex of bytes or of a local file, in blocks of 4 MiB."""
    digest = hashlib.sha256()
    if isinstance(body, bytes):
        digest.update(body)
    else:
        with body.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
