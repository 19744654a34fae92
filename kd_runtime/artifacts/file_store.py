"""``file://``: a store in a folder. A name appears whole or not at all, also after a power cut."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kd_runtime.api.failures import DeniedError, StorageError
from kd_runtime.artifacts.store import (
    BLOCK_BYTES,
    FULL,
    AlreadyExists,
    Missing,
    ObjectInfo,
    Progress,
    checked_name,
    local_errors,
)

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".kd-", ".tmp"
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_LINKLESS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_FOLDER_TRIES = 5


class FileStore:
    """Objects are files below ``root``; the folder is made by the first write."""

    def __init__(self, root: Path):
        self._root = Path(root)
        self.uri = f"file://{str(self._root).rstrip('/')}/"

    def put(self, name: str, body: bytes | Path, *, if_absent: bool = False, sha256: str | None = None) -> ObjectInfo:
        """Write beside the name, fsync, then move (or link: the link fails where the name exists) into place."""
        path = self.path(name)
        if isinstance(body, Path) and not body.is_file():
            raise FileNotFoundError(body)
        with self._errors(name):
            temporary, digest = self._written(path, body)
            try:
                if sha256 not in (None, digest):
                    raise StorageError(f"{self.uri}{name}: its content changed while it was written; write it again")
                self._placed(temporary, path, name, if_absent)
            finally:
                temporary.unlink(missing_ok=True)
            return _info(name, path, digest)

    def get(self, name: str) -> bytes:
        """The whole file."""
        with self._errors(name):
            return self.path(name).read_bytes()

    def read_range(self, name: str, start: int, length: int | None = None) -> bytes:
        """A slice of the file."""
        with self._errors(name), self.path(name).open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def download(self, name: str, to: Path, *, size: int | None = None, progress: Progress | None = None) -> None:
        """Copy to ``to`` by way of ``to.part``."""
        part = to.with_name(to.name + ".part")
        with self._errors(name):
            source = self.path(name).open("rb")
        with source, local_errors(to):
            to.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as target:
                _copy(source, target, progress)
            part.replace(to)

    def stat(self, name: str) -> ObjectInfo | None:
        """The file's size and time; its digest is not remembered by a file system."""
        path = self.path(name)
        with self._errors(name):
            try:
                return _info(name, path) if path.is_file() else None
            except FileNotFoundError:
                return None

    def exists(self, name: str) -> bool:
        """True where the file is there."""
        return self.stat(name) is not None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Walk the folders that may hold names with ``prefix``; one folder's entries at a time are in memory."""
        folder = prefix.rpartition("/")[0]
        start = self._root / folder if folder else self._root
        with self._errors(prefix or "."):
            for name, path in _walk(start, f"{folder}/" if folder else "", ()):
                if name.startswith(prefix):
                    with contextlib.suppress(FileNotFoundError):
                        yield _info(name, path)

    def delete(self, name: str) -> None:
        """Remove the file, and the folders that it leaves empty."""
        path = self.path(name)
        with self._errors(name):
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root or not _removed(folder):
                    break

    def refuses_overwriting(self) -> bool:
        """A link fails where the name exists."""
        return True

    def unfinished(self, before: float) -> Iterator[ObjectInfo]:
        """Temporary files of writers that were killed."""
        with self._errors("."):
            for folder, _, names in os.walk(self._root):
                for path in (Path(folder) / name for name in sorted(names) if is_temporary(name)):
                    with contextlib.suppress(FileNotFoundError):
                        info = _info(path.relative_to(self._root).as_posix(), path)
                        if info.modified < before:
                            yield info

    def discard(self, write: ObjectInfo) -> None:
        """Remove the temporary file."""
        self.delete(write.name)

    def path(self, name: str) -> Path:
        """Where the object lies."""
        return self._root / checked_name(name)

    def _written(self, path: Path, body: bytes | Path) -> tuple[Path, str]:
        """A temporary file beside ``path`` that holds ``body`` on disk, and its sha256."""
        for left in reversed(range(_FOLDER_TRIES)):  # a delete may remove the folder between its making and its use
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
            try:
                return temporary, _write(temporary, body)
            except FileNotFoundError:
                if not left or not path.parent.parent.exists():
                    raise
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        raise AssertionError("unreachable")

    def _placed(self, temporary: Path, path: Path, name: str, if_absent: bool) -> None:
        if if_absent:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise AlreadyExists(f"{self.uri}{name}: is there already") from None
            except OSError as error:
                if error.errno not in _LINKLESS:
                    raise
                raise StorageError(
                    f"{self.uri}: this file system has no hard links, which commits need; name another folder"
                ) from error
        else:
            temporary.replace(path)
        _sync_folder(path.parent)

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turns the operating system's errors into ours."""
        what = f"{self.uri}{name}"
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise Missing(f"{what}: is not there; plan again to see what is left") from error
        except OSError as error:
            if error.errno in _DENIED:
                raise DeniedError(
                    f"{what}: {error.strerror}; give this user the right to write there, or name another folder"
                ) from error
            if error.errno in FULL:
                raise StorageError(f"{what}: the disk is full; free space there, or name another folder") from error
            raise StorageError(f"{what}: {error.strerror or error}; check the disk, then run again") from error


def is_temporary(name: str) -> bool:
    """True for the file name of a write that is under way, or that a killed process left."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def _write(path: Path, body: bytes | Path) -> str:
    with path.open("xb") as target:
        if isinstance(body, bytes):
            target.write(body)
            digest = hashlib.sha256(body).hexdigest()
        else:
            with body.open("rb") as source:
                digest = _copy(source, target)
        target.flush()
        os.fsync(target.fileno())
    return digest


def _copy(source: BinaryIO, target: BinaryIO, progress: Progress | None = None) -> str:
    digest = hashlib.sha256()
    while block := source.read(BLOCK_BYTES):
        digest.update(block)
        target.write(block)
        if progress:
            progress(len(block))
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:  # not empty, or somebody else was quicker: either way it is no longer ours to remove
        return False
    return True


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Path]]:
    """(name, path) of every file below ``folder``, in the order of the whole names' bytes; a loop of links is not followed."""
    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    # a folder's names sort with the slash that follows them: "a-b" comes before "a/b"
    for entry in sorted(entries, key=lambda e: os.fsencode(e.name + "/" if e.is_dir() else e.name)):
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
        elif not is_temporary(entry.name):
            yield f"{prefix}{entry.name}", Path(entry.path)


def _info(name: str, path: Path, sha256: str | None = None) -> ObjectInfo:
    status = path.stat()
    etag = f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"
    return ObjectInfo(name, status.st_size, etag, sha256, status.st_mtime)
