"""A store in memory that can be killed: for property tests that write thousands of objects."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kd_runtime.artifacts.store import AlreadyExists, Missing, ObjectInfo


class Killed(BaseException):
    """The process ends at this write."""


class MemoryStore:
    """Keeps objects in a dict. ``writes_left`` counts down to the kill: that write never arrives."""

    uri = "memory://"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.writes_left: int | None = None
        self._guard = threading.Lock()

    def put(self, name: str, body: bytes | Path, *, if_absent: bool = False, sha256: str | None = None) -> ObjectInfo:
        """Write, unless the process is killed first."""
        with self._guard:
            if self.writes_left is not None:
                self.writes_left -= 1
                if self.writes_left < 0:
                    raise Killed
            if if_absent and name in self.objects:
                raise AlreadyExists(name)
            self.objects[name] = body if isinstance(body, bytes) else body.read_bytes()
            return self._info(name)

    def get(self, name: str) -> bytes:
        """The whole object."""
        try:
            return self.objects[name]
        except KeyError:
            raise Missing(name) from None

    def read_range(self, name: str, start: int, length: int | None = None) -> bytes:
        """A slice."""
        return self.get(name)[start : None if length is None else start + length]

    def download(
        self, name: str, to: Path, *, size: int | None = None, progress: Callable[[int], None] | None = None
    ) -> None:
        """A copy."""
        to.write_bytes(self.get(name))

    def stat(self, name: str) -> ObjectInfo | None:
        """What is there."""
        return self._info(name) if name in self.objects else None

    def exists(self, name: str) -> bool:
        """Whether it is there."""
        return name in self.objects

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Sorted by name."""
        return iter([self._info(name) for name in sorted(self.objects) if name.startswith(prefix)])

    def delete(self, name: str) -> None:
        """Remove it."""
        with self._guard:
            self.objects.pop(name, None)

    def refuses_overwriting(self) -> bool:
        """It does."""
        return True

    def unfinished(self, before: float) -> Iterator[ObjectInfo]:
        """None: a write is one step."""
        return iter(())

    def discard(self, write: ObjectInfo) -> None:
        """Nothing to free."""

    def _info(self, name: str) -> ObjectInfo:
        digest = hashlib.sha256(self.objects[name]).hexdigest()
        return ObjectInfo(name, len(self.objects[name]), digest, digest, 0.0)
