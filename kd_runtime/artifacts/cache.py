"""The local cache: verified copies of objects by their digest, bounded in size, shared by the processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.manifest import Manifest, ObjectRef
from kd_runtime.artifacts.store import Store, body_sha256

DEFAULT_LIMIT_BYTES = 100 << 30
_RESCAN_SHARE = 20
"""The folder is measured again after 1/20 of the limit has been added: other processes add to it too."""
_FETCH_TRIES = 2


@dataclass(frozen=True)
class _Entry:
    """Something that can be evicted: an object, or a whole external folder."""

    name: str
    size: int
    used: float
    path: Path


class Cache:
    """Objects by sha256, folders of links to them, and folders of external files.

    Every byte that enters is verified. Eviction is by least recent use, and never takes what this process, or another
    that is alive, was handed. An object larger than the limit is kept as long as it is in use.
    """

    def __init__(self, root: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES):
        self.root, self.limit_bytes = Path(root).absolute(), limit_bytes
        self._objects, self._trees = self.root / "objects", self.root / "trees"
        self._folders, self._locks = self.root / "folders", self.root / "locks"
        self._pins = _pins_in(self.root / "pins")
        self._size: int | None = None
        self._added = 0
        self._guard = threading.Lock()

    def file(self, store: Store, ref: ObjectRef, progress: Callable[[int], None] | None = None) -> Path:
        """A local copy of ``ref`` whose bytes have its sha256. Read only.

        Raises:
            StorageError: the store holds other bytes (named).
            TransientError: the object vanished.
        """
        path = self._objects / ref.sha256[:2] / ref.sha256
        self._pin(ref.sha256)
        if self._touched(path, ref.size):
            return path
        with self._lock(ref.sha256[:3]):
            if not self._touched(path, ref.size):
                self._fetch(store, ref, path, progress)
                self._grown(ref.size)
        return path

    def directory(self, store: Store, manifest: Manifest, prefix: str = "") -> Path:
        """A folder with the artifact's objects below ``prefix``, under their relative paths. Read only.

        Raises:
            StorageError, TransientError: as ``file`` does.
        """
        refs = manifest.select(prefix)
        files = {ref.path[len(prefix) :]: self.file(store, ref) for ref in refs}
        identity = json.dumps([[path, target.name] for path, target in sorted(files.items())])
        folder = self._trees / hashlib.sha256(identity.encode()).hexdigest()[:32]
        if not folder.is_dir():
            self._link(folder, files)
        return folder

    def folder(self, digest: str) -> Path:
        """The folder for external files whose content is ``digest``; it exists, and ``is_complete`` says whether it is whole."""
        self._pin(digest)
        folder = self._folders / digest
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._marker(digest))
        return folder

    def is_complete(self, digest: str) -> bool:
        """True once every file of the folder is there."""
        return self._marker(digest).exists()

    def complete(self, digest: str) -> None:
        """Say that every file of the folder is there and verified."""
        size = sum(path.stat().st_size for path in (self._folders / digest).rglob("*") if path.is_file())
        temporary = self._marker(f"{digest}.{secrets.token_hex(4)}")
        temporary.write_text(str(size))
        temporary.replace(self._marker(digest))
        self._grown(size)

    def _marker(self, digest: str) -> Path:
        return self._folders / f"{digest}.complete"

    def _pin(self, name: str) -> None:
        """Keep ``name`` from eviction; an eviction that is under way is waited for, as it may not have seen the pin."""
        if not self._pins.holds(name):
            with self._lock("evict", fcntl.LOCK_SH):
                self._pins.add(name)

    def _touched(self, path: Path, size: int) -> bool:
        """True where the copy is there; it counts as used now."""
        try:
            if path.stat().st_size != size:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _fetch(self, store: Store, ref: ObjectRef, path: Path, progress: Callable[[int], None] | None) -> None:
        incoming = path.with_name(path.name + ".new")
        for _ in range(_FETCH_TRIES):  # the second try is for bytes that were spoiled on their way
            store.download(ref.name, incoming, size=ref.size, progress=progress)
            size, digest = incoming.stat().st_size, body_sha256(incoming)
            if (size, digest) == (ref.size, ref.sha256):
                incoming.chmod(0o444)
                incoming.replace(path)
                return
            incoming.unlink()
        raise StorageError(
            f"{store.uri}{ref.name}: has {size} bytes of sha256 {digest[:12]}, its manifest says {ref.size} of {ref.sha256[:12]}; "
            "the object is damaged: delete it and run again, then the artifact is made anew"
        )

    def _link(self, folder: Path, files: dict[str, Path]) -> None:
        making = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
        making.mkdir(parents=True)
        for relative, target in files.items():
            link = making / relative
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        try:
            making.rename(folder)
        except OSError:  # another process was quicker: its folder has the same links
            if not folder.is_dir():
                raise
            shutil.rmtree(making)

    @contextlib.contextmanager
    def _lock(self, name: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
        """One process (and thread) at a time fetches one object, or evicts."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / name).open("w") as file:
            fcntl.flock(file, kind)
            yield

    def _grown(self, size: int) -> None:
        with self._guard:
            self._added += size
            stale = self._size is None or self._added * _RESCAN_SHARE > self.limit_bytes
            if stale or (self._size or 0) + self._added > self.limit_bytes:
                with self._lock("evict"):
                    self._size, self._added = self._evict(), 0

    def _evict(self) -> int:
        """Remove what was least recently used until the limit holds; the bytes that are left."""
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        total = sum(entry.size for entry in entries)
        pinned = self._pins.all() if total > self.limit_bytes else frozenset()
        for entry in entries:
            if total <= self.limit_bytes:
                break
            if entry.name not in pinned:
                self._remove(entry)
                total -= entry.size
        return total

    def _entries(self) -> Iterator[_Entry]:
        for path in self._objects.glob("??/*"):
            if len(path.name) == 64:
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    yield _Entry(path.name, status.st_size, status.st_mtime, path)
        for marker in self._folders.glob("*.complete"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                yield _Entry(marker.stem, int(marker.read_text()), marker.stat().st_mtime, self._folders / marker.stem)

    def _remove(self, entry: _Entry) -> None:
        if entry.path.is_dir():
            self._marker(entry.name).unlink(missing_ok=True)
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)


class _Pins:
    """What each living process was handed: one file a process, locked while it lives."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._own: set[str] = set()
        self._file: IO[str] | None = None
        self._owner = 0
        self._guard = threading.Lock()

    def holds(self, name: str) -> bool:
        """True where this process keeps ``name`` already."""
        return self._owner == os.getpid() and name in self._own

    def add(self, name: str) -> None:
        """Keep ``name`` from eviction as long as this process lives."""
        with self._guard:
            if self._owner != os.getpid():  # the first use, or a fork: the child lives on its own
                self._open()
            self._own.add(name)
            assert self._file is not None
            self._file.write(name + "\n")
            self._file.flush()

    def all(self) -> frozenset[str]:
        """The names that any living process holds; files of dead ones are removed."""
        names = set(self._own)
        for path in self._folder.glob("*"):
            with contextlib.suppress(FileNotFoundError), path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    names.update(file.read().split())
                else:
                    path.unlink(missing_ok=True)
        return frozenset(names)

    def _open(self) -> None:
        """A new file of our own; called while nobody evicts, so that none is removed before it is locked."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._owner = os.getpid()
        self._file = (self._folder / f"{self._owner}-{secrets.token_hex(4)}").open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.writelines(name + "\n" for name in sorted(self._own))
        self._file.flush()


_PINS: dict[Path, _Pins] = {}


def _pins_in(folder: Path) -> _Pins:
    """This process's pins in ``folder``: they outlive any Cache object, as the paths that it handed out do."""
    return _PINS.setdefault(folder, _Pins(folder))
