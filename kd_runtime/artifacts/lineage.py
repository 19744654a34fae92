"""What a store holds, and what each artifact was made from: plain data for `kd ls`, `kd lineage` and reports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from kd_runtime.api.failures import SettingsError
from kd_runtime.artifacts.manifest import (
    ARTIFACTS,
    HISTORY,
    MANIFEST,
    InputRef,
    Manifest,
    decode_manifest,
    read_manifest,
)
from kd_runtime.artifacts.store import Missing, Store

READERS = 16
_WHOLE_KEY = re.compile("[0-9a-f]{64}")


class Presence(StrEnum):
    """Whether an artifact is there."""

    Present = "Present"
    Retired = "Retired"
    """Only its manifest is kept, in history/."""
    Gone = "Gone"
    """Nothing is known of it but its key and its content digest."""


@dataclass(frozen=True)
class LineageNode:
    """An artifact, and the artifacts that it was made from."""

    key: str
    content_digest: str
    presence: Presence
    manifest: Manifest | None
    inputs: tuple[tuple[str, LineageNode], ...] = ()
    """(role, artifact), sorted by role."""

    @property
    def stage_type(self) -> str:
        """The type of the stage that made it; ``unknown`` where it is gone."""
        return self.manifest.stage_type if self.manifest else "unknown"

    @property
    def externals(self) -> dict[str, str]:
        """Role -> digest of what lay outside the store."""
        return self.manifest.externals if self.manifest else {}

    def walk(self, role: str = "", depth: int = 0) -> Iterator[tuple[int, str, LineageNode]]:
        """(depth, role, node) of this node and everything below it, each time it is read."""
        yield depth, role, self
        for below, node in self.inputs:
            yield from node.walk(below, depth + 1)


def list_artifacts(store: Store) -> list[Manifest]:
    """The manifest of every artifact, the oldest first. What is deleted meanwhile is left out."""
    names = [info.name for info in store.list(ARTIFACTS) if info.name.endswith(f"/{MANIFEST}")]
    keys = [name.removeprefix(ARTIFACTS).removesuffix(f"/{MANIFEST}") for name in names]
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda key: read_manifest(store, key), (key for key in keys if "/" not in key)))
    return sorted((m for m in found if m is not None), key=lambda m: (m.created, m.key))


def find_key(store: Store, beginning: str) -> str:
    """The whole key of the one artifact whose key begins with ``beginning``.

    Raises:
        SettingsError: there is none, or there are several.
    """
    found = sorted(
        {
            info.name.split("/")[1]
            for info in store.list(f"{ARTIFACTS}{beginning}")
            if info.name.count("/") == 2 and info.name.endswith(f"/{MANIFEST}")
        }
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise SettingsError(f"{beginning}: no artifact in {store.uri} has a key that begins so; `kd ls` shows all")
    raise SettingsError(
        f"{beginning}: begins {len(found)} keys ({', '.join(k[:16] for k in found[:4])}); write more of it"
    )


def lineage(store: Store, key: str) -> LineageNode:
    """The tree of what ``key`` (or the one key that begins so) was made from; history/ fills in for what is deleted.

    Raises:
        SettingsError: there is no such artifact, or there are several.
    """
    manifest = read_manifest(store, key if _WHOLE_KEY.fullmatch(key) else find_key(store, key))
    if manifest is None:
        raise SettingsError(f"{key}: {store.uri} holds no such artifact; `kd ls` shows all")
    return _Ancestry(store).node(manifest, Presence.Present)


class _Ancestry:
    """Looks inputs up, each once; reads history/ only where something is not there any more."""

    def __init__(self, store: Store):
        self._store = store
        self._known: dict[InputRef, LineageNode] = {}

    def node(self, manifest: Manifest, presence: Presence) -> LineageNode:
        inputs = tuple((role, self._input(ref)) for role, ref in sorted(manifest.inputs.items()))
        return LineageNode(manifest.key, manifest.content_digest, presence, manifest, inputs)

    def _input(self, ref: InputRef) -> LineageNode:
        if ref not in self._known:
            presence, manifest = self._look_up(ref.key, ref.content_digest)
            gone = LineageNode(ref.key, ref.content_digest, presence, None)
            self._known[ref] = self.node(manifest, presence) if manifest else gone
        return self._known[ref]

    def _look_up(self, key: str, digest: str) -> tuple[Presence, Manifest | None]:
        manifest = read_manifest(self._store, key)
        if manifest is not None and manifest.content_digest == digest:
            return Presence.Present, manifest
        retired = self._history.get((key, digest))
        return (Presence.Retired, retired) if retired else (Presence.Gone, None)

    @cached_property
    def _history(self) -> dict[tuple[str, str], Manifest]:
        names = [info.name for info in self._store.list(HISTORY) if info.name.endswith(".json")]
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(self._retired, names))
        return {(m.key, m.content_digest): m for m in found if m is not None}

    def _retired(self, name: str) -> Manifest | None:
        try:
            return decode_manifest(self._store.get(name), self._store.uri + name)
        except Missing:
            return None
