"""Manifests: an artifact exists if and only if its manifest does (contract 2)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.store import AlreadyExists, Missing, Store

ARTIFACTS, HISTORY = "artifacts/", "history/"
MANIFEST = "manifest.json"


class ObjectRef(BaseModel):
    """One object of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Relative to the store's root."""
    size: int
    """Bytes."""
    sha256: str
    path: str
    """What the object is within the artifact: ``model/config.json``, ``rows/00000.parquet``."""
    aside: bool = False
    """True for facts of the run alone (timings): no part of the artifact's content."""


class InputRef(BaseModel):
    """An input that was really read: its key, and its content then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    content_digest: str


class Manifest(BaseModel):
    """What an artifact is made of, what it was made from, and by whom."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    key: str
    stage_type: str
    objects: tuple[ObjectRef, ...]
    """Sorted by path."""
    counts: dict[str, int] = Field(default_factory=dict)
    content_digest: str
    """sha256 over the objects' paths and digests, and the counts: equal for equal content, whoever made it and when."""
    inputs: dict[str, InputRef] = Field(default_factory=dict)
    """By role."""
    externals: dict[str, str] = Field(default_factory=dict)
    """Role -> content digest."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Class (a)."""
    recorded: dict[str, Any] = Field(default_factory=dict)
    """Class (b)."""
    metrics: dict[str, float] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)
    """What one stage tells the stages that read it; JSON."""
    writer: str
    created: str
    """UTC, ISO 8601."""
    seconds: float = 0.0

    def select(self, prefix: str) -> list[ObjectRef]:
        """The objects whose path starts with ``prefix``, sorted by path."""
        return [ref for ref in self.objects if ref.path.startswith(prefix)]

    def object(self, path: str) -> ObjectRef:
        """The object at ``path``; KeyError where there is none."""
        for ref in self.objects:
            if ref.path == path:
                return ref
        raise KeyError(path)

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(ref.size for ref in self.objects)

    def encoded(self) -> bytes:
        """The manifest's bytes in the store: canonical JSON (RFC 8785).

        Raises:
            ValueError: a number that JSON cannot hold exactly: NaN, an infinity, an integer beyond 2^53.
        """
        try:
            return rfc8785.dumps(self.model_dump(mode="json"))
        except rfc8785.CanonicalizationError as error:
            raise ValueError(f"manifest of {self.stage_type} {self.key[:12]}: {error}") from error

    @property
    def sha256(self) -> str:
        """sha256 hex of the encoded manifest: what a result file names."""
        return manifest_sha256(self.encoded())


@dataclass(frozen=True)
class Found:
    """The artifact is there, and each input that it records has that content now, or is absent."""

    manifest: Manifest


@dataclass(frozen=True)
class Stale:
    """The artifact is there, but was made from an input that has other content now."""

    manifest: Manifest
    role: str
    now: str
    """The input's content digest now."""


def manifest_name(key: str) -> str:
    """Where the manifest of ``key`` lies."""
    return f"{ARTIFACTS}{key}/{MANIFEST}"


def object_prefix(key: str, writer: str) -> str:
    """Where ``writer`` puts the objects of ``key``."""
    return f"{ARTIFACTS}{key}/{writer}/"


def manifest_sha256(body: bytes) -> str:
    """sha256 hex of a manifest's bytes."""
    return hashlib.sha256(body).hexdigest()


def content_digest(objects: Iterable[ObjectRef], counts: Mapping[str, int]) -> str:
    """sha256 hex over (path, sha256) of the objects that are content, and the counts; neither names nor writer enter."""
    content = sorted([ref.path, ref.sha256] for ref in objects if not ref.aside)
    return hashlib.sha256(rfc8785.dumps({"objects": content, "counts": dict(counts)})).hexdigest()


def decode_manifest(body: bytes, name: str) -> Manifest:
    """The manifest in ``body``.

    Raises:
        StorageError: it is garbled; the message has ``name``.
    """
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        raise StorageError(
            f"{name}: is not a manifest ({error.error_count()} errors); delete it and run again"
        ) from error
    if manifest.content_digest != content_digest(manifest.objects, manifest.counts):
        raise StorageError(f"{name}: its content digest does not fit its objects; delete it and run again")
    return manifest


def read_manifest(store: Store, key: str) -> Manifest | None:
    """The manifest of ``key``; None where there is no such artifact.

    Raises:
        StorageError: it cannot be read, or is garbled.
    """
    name = manifest_name(key)
    try:
        body = store.get(name)
    except Missing:
        return None
    manifest = decode_manifest(body, store.uri + name)
    if manifest.key != key:
        raise StorageError(f"{store.uri}{name}: is the manifest of {manifest.key[:12]}; delete it and run again")
    return manifest


def is_found(manifest: Manifest | None, current: Callable[[str], Manifest | None]) -> Found | Stale | None:
    """Whether an artifact still holds, given ``current`` (key -> manifest now); None where there is no manifest.

    An absent input does not matter here: whether something that will run needs it is the plan's to say.
    """
    if manifest is None:
        return None
    for role, recorded in sorted(manifest.inputs.items()):
        now = current(recorded.key)
        if now is not None and now.content_digest != recorded.content_digest:
            return Stale(manifest, role, now.content_digest)
    return Found(manifest)


def retire(store: Store, key: str) -> str | None:
    """Move the manifest of ``key`` to history/ (the copy first); its sha256, or None where there was none.

    The artifact's objects stay: what lies in history can still be read about, and a reader may be at work.
    """
    name = manifest_name(key)
    try:
        body = store.get(name)
    except Missing:
        return None
    digest = manifest_sha256(body)
    with contextlib.suppress(AlreadyExists):
        store.put(f"{HISTORY}{digest}.json", body, if_absent=True)
    try:
        unchanged = store.get(name) == body
    except Missing:
        unchanged = False
    if unchanged:  # else somebody else retired it, and a newer one may be there
        store.delete(name)
    return digest


def delete_artifact(store: Store, key: str) -> int:
    """Retire the manifest, then delete the objects below artifacts/<key>/; the bytes that became free.

    Objects that the manifest refers to elsewhere (answers/) go by sweep only.
    """
    retire(store, key)
    freed = 0
    for info in list(store.list(f"{ARTIFACTS}{key}/")):
        if info.name != manifest_name(key):
            store.delete(info.name)
            freed += info.size
    return freed
