"""Making an artifact: objects under the writer's own prefix first, then the manifest; the first manifest wins (contract 2)."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.manifest import (
    InputRef,
    Manifest,
    ObjectRef,
    content_digest,
    decode_manifest,
    manifest_name,
    object_prefix,
)
from kd_runtime.artifacts.store import AlreadyExists, Missing, Store, body_sha256

COMMIT_TRIES = 5


def new_writer_id() -> str:
    """128 random bits as 32 hex digits, drawn once at a process's start: the prefix of all that it writes."""
    return secrets.token_hex(16)


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


class ArtifactWriter:
    """Collects one artifact's objects in the store; nobody sees them before ``commit``.

    ``inputs`` maps a role to (key, content digest) of the artifact that was read.
    """

    def __init__(
        self,
        store: Store,
        *,
        key: str,
        stage_type: str,
        writer: str,
        inputs: Mapping[str, tuple[str, str]] | None = None,
        externals: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        recorded: Mapping[str, Any] | None = None,
        clock: Callable[[], datetime] = utc_now,
    ):
        self.store, self.key, self.stage_type, self.writer = store, key, stage_type, writer
        self.inputs = {role: InputRef(key=k, content_digest=digest) for role, (k, digest) in (inputs or {}).items()}
        self.externals, self.settings, self.recorded = dict(externals or {}), dict(settings or {}), dict(recorded or {})
        self._clock = clock
        self._objects: dict[str, ObjectRef] = {}

    def add_file(self, local: Path, path: str, *, aside: bool = False) -> ObjectRef:
        """Store a local file as ``path`` of the artifact; ``aside`` keeps it out of the content digest (timings)."""
        return self._add(local, local.stat().st_size, path, aside)

    def add_bytes(self, data: bytes, path: str, *, aside: bool = False) -> ObjectRef:
        """Store bytes as ``path`` of the artifact."""
        return self._add(data, len(data), path, aside)

    def add_tree(self, folder: Path, prefix: str) -> list[ObjectRef]:
        """Store every file below ``folder`` as ``prefix`` + its relative path."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [self.add_file(path, prefix + path.relative_to(folder).as_posix()) for path in files]

    def refer(self, ref: ObjectRef) -> ObjectRef:
        """Make an object that lies elsewhere in the store (answers/…) part of the artifact."""
        if ref.path in self._objects:
            raise ValueError(f"{self.stage_type} artifact has two objects at {ref.path}")
        self._objects[ref.path] = ref
        return ref

    def _add(self, body: bytes | Path, size: int, path: str, aside: bool) -> ObjectRef:
        digest = body_sha256(body)
        name = object_prefix(self.key, self.writer) + path
        ref = self.refer(ObjectRef(name=name, size=size, sha256=digest, path=path, aside=aside))
        self.store.put(name, body, sha256=digest)
        return ref

    def commit(
        self,
        *,
        counts: Mapping[str, int] | None = None,
        metrics: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> Manifest:
        """Make the artifact exist, and return the manifest that the store holds now: ours, or that of who was first.

        Raises:
            StorageError: the store did not take it, or shows another state at each look.
        """
        ours = self._manifest(dict(counts or {}), dict(metrics or {}), dict(extra or {}), seconds)
        body, name = ours.encoded(), manifest_name(self.key)
        for _ in range(COMMIT_TRIES):
            with contextlib.suppress(AlreadyExists):
                self.store.put(name, body, if_absent=True)
            try:
                stored = self.store.get(name)
            except Missing:
                continue  # retired between our two looks
            manifest = decode_manifest(stored, self.store.uri + name)
            return manifest if stored == body else self._adopted(manifest)
        raise StorageError(f"{self.store.uri}{name}: vanishes each time it is written; see what else deletes there")

    def _manifest(
        self, counts: dict[str, int], metrics: dict[str, float], extra: dict[str, Any], seconds: float
    ) -> Manifest:
        objects = tuple(self._objects[path] for path in sorted(self._objects))
        return Manifest(
            key=self.key,
            stage_type=self.stage_type,
            objects=objects,
            counts=counts,
            content_digest=content_digest(objects, counts),
            inputs=self.inputs,
            externals=self.externals,
            settings=self.settings,
            recorded=self.recorded,
            metrics=metrics,
            extra=extra,
            writer=self.writer,
            created=self._clock().isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
        )

    def _adopted(self, winner: Manifest) -> Manifest:
        """Somebody else's manifest; what only ours referred to is removed."""
        mine = object_prefix(self.key, self.writer)
        kept = {ref.name for ref in winner.objects}
        for ref in self._objects.values():
            if ref.name.startswith(mine) and ref.name not in kept:
                self.store.delete(ref.name)
        return winner
