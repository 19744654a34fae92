"""Garbage collection: what nobody uses is deleted, in an order that a run beside it survives (contract 2).

What makes something exist (a manifest, a unit's commit) goes first. Then the store is looked at once more: where a plan
has begun to use it meanwhile, it is put back; only else do the objects go. A plan marks its use before it looks anything
up, so it either is seen by that second look, or finds the artifact gone and makes it again.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from kd_runtime.artifacts.manifest import ARTIFACTS, MANIFEST, manifest_name, manifest_sha256, retire
from kd_runtime.artifacts.reach import PLAN_SECONDS, YOUNG_SECONDS, Kept, Reach
from kd_runtime.artifacts.store import AlreadyExists, Missing, ObjectInfo, Store
from kd_runtime.artifacts.units import ANSWERS, RETRY

T = TypeVar("T")
WORK, DIGESTS, PROBES = "work/", "digests/", "probes/"
BATCH = 64
"""Artifacts, or units of answers, between two looks at what is in use."""


@dataclass(frozen=True)
class Swept:
    """One thing that went (or would go): an artifact, the answers or checkpoints under one key, remnants."""

    kind: str
    name: str
    objects: int
    size: int
    """Bytes."""


def collect(
    store: Store, *, keep: Sequence[str] = (), dry_run: bool = False, clock: Callable[[], float] = time.time
) -> list[Swept]:
    """Delete what is not reachable from plans used in the last 30 days, published models and ``keep`` (whole keys).

    Nothing younger than 7 days goes. Plans, reports and history/ stay. ``dry_run`` only says what would go.

    Raises:
        StorageError, DeniedError: the store cannot be read or written, or a plan or manifest in it is garbled.
    """
    now = clock()
    sweep = _Sweep(store, Reach(store, keep, now), now, dry_run)
    sweep.artifacts()
    sweep.remnants()
    sweep.answers()
    sweep.work()
    sweep.flat("remembered digests", DIGESTS, PLAN_SECONDS)
    sweep.flat("probes", PROBES, YOUNG_SECONDS)
    sweep.unfinished()
    return sweep.swept


@dataclass
class _Unit:
    """What lies in answers/ of one unit: its commit, and the objects of everybody who wrote it."""

    commit: ObjectInfo | None = None
    objects: list[ObjectInfo] = field(default_factory=list)

    @property
    def infos(self) -> list[ObjectInfo]:
        """The commit first."""
        return [*([self.commit] if self.commit else []), *self.objects]


@dataclass
class _Sweep:
    store: Store
    reach: Reach
    now: float
    dry_run: bool
    swept: list[Swept] = field(default_factory=list)
    _gone: set[str] = field(default_factory=set)
    """sha256 of the manifests that this sweep chose."""

    # ---- artifacts -----------------------------------------------------------------------------------------------------

    def artifacts(self) -> None:
        """Artifacts that nothing in use names: a copy of the manifest to history/, the manifest, then the objects."""
        kept = self.reach.look()
        by_key = _grouped(self.store.list(ARTIFACTS))
        chosen = [
            key
            for key, infos in by_key.items()
            if key not in kept.keys and self._old(infos) and any(i.name == manifest_name(key) for i in infos)
        ]
        for batch in _batches(chosen):
            bodies = {key: body for key in batch if (body := self._unmade(key)) is not None}
            kept = self.reach.look(self._gone)
            for key, body in bodies.items():
                if key in kept.keys:
                    self._put_back(manifest_name(key), body)
                    self._gone.discard(manifest_sha256(body))
                else:
                    objects = [i for i in by_key[key] if i.name not in kept.objects and i.name != manifest_name(key)]
                    self._delete("artifact", key, objects, extra=len(body))

    def _unmade(self, key: str) -> bytes | None:
        """Take the manifest away; its bytes."""
        try:
            body = self.store.get(manifest_name(key))
        except Missing:
            return None
        self._gone.add(manifest_sha256(body))
        if not self.dry_run:
            retire(self.store, key)
        return body

    def remnants(self) -> None:
        """Objects of artifacts that no manifest names: of writers that were killed or came second, or of what was stale."""
        by_key = _grouped(self.store.list(ARTIFACTS))
        kept = self.reach.look(self._gone)
        counted = {swept.name for swept in self.swept}
        for key, infos in by_key.items():
            old = [i for i in infos if i.name != manifest_name(key) and self._old([i]) and i.name not in kept.objects]
            if old and key not in counted:
                self._delete("remnants", key, old)

    # ---- answers -------------------------------------------------------------------------------------------------------

    def answers(self) -> None:
        """Units that no plan in use asks for and no manifest refers to; and objects that never got a commit."""
        kept = self.reach.look(self._gone)
        for asking, infos in _grouped(self.store.list(ANSWERS)).items():
            units, retries = _units(infos)
            chosen = [unit for unit in units if self._unread(unit, asking, kept)]
            removed: list[ObjectInfo] = []
            for batch in _batches(chosen):
                removed += self._sweep_units(asking, batch)
            if len(chosen) == len(units) and asking not in kept.askings and self._old(retries):
                removed += retries
            if removed:
                self._delete("answers", asking, removed)

    def _unread(self, unit: _Unit, asking: str, kept: Kept) -> bool:
        used = asking in kept.askings and unit.commit is not None
        return not used and self._old(unit.infos) and not any(i.name in kept.objects for i in unit.objects)

    def _sweep_units(self, asking: str, units: Sequence[_Unit]) -> list[ObjectInfo]:
        """Take the commits away, look again, put back what is in use now; what may be deleted."""
        bodies: dict[str, bytes] = {}
        for unit in units:
            if unit.commit is not None and not self.dry_run:
                with contextlib.suppress(Missing):
                    bodies[unit.commit.name] = self.store.get(unit.commit.name)
                self.store.delete(unit.commit.name)
        kept = self.reach.look(self._gone)
        removed = []
        for unit in units:
            if self._unread(unit, asking, kept):
                removed += unit.infos
            elif unit.commit is not None and unit.commit.name in bodies:
                self._put_back(unit.commit.name, bodies[unit.commit.name])
        return removed

    # ---- the rest ------------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Checkpoints of stages that are done, or that no plan in use has; their manifests first."""
        by_key = {key: infos for key, infos in _grouped(self.store.list(WORK)).items() if self._old(infos)}
        kept = self.reach.look(self._gone) if by_key else None
        for key, infos in by_key.items():
            assert kept is not None
            if key not in kept.keys or self.store.exists(manifest_name(key)):
                self._delete("checkpoints", key, sorted(infos, key=lambda i: not i.name.endswith(f"/{MANIFEST}")))

    def flat(self, kind: str, prefix: str, age: float) -> None:
        """Objects below ``prefix`` that are older than ``age`` seconds."""
        old = [info for info in self.store.list(prefix) if info.modified <= self.now - age]
        if old:
            self._delete(kind, prefix, old)

    def unfinished(self) -> None:
        """Writes that were begun and never ended: multipart uploads, temporary files."""
        left = list(self.store.unfinished(self.now - YOUNG_SECONDS))
        if left:
            if not self.dry_run:
                for info in left:
                    self.store.discard(info)
            self.swept.append(Swept("unfinished writes", self.store.uri, len(left), sum(i.size for i in left)))

    def _old(self, infos: Iterable[ObjectInfo]) -> bool:
        return all(info.modified <= self.now - YOUNG_SECONDS for info in infos)

    def _put_back(self, name: str, body: bytes) -> None:
        if not self.dry_run:
            with contextlib.suppress(AlreadyExists):  # it was made anew meanwhile
                self.store.put(name, body, if_absent=True)

    def _delete(self, kind: str, name: str, infos: Sequence[ObjectInfo], extra: int = 0) -> None:
        """Delete and count; ``extra`` bytes of one more object went before."""
        if not self.dry_run:
            for info in infos:
                self.store.delete(info.name)
        self.swept.append(Swept(kind, name, len(infos) + bool(extra), sum(i.size for i in infos) + extra))


def _grouped(infos: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    """By the segment after the first: the key."""
    groups: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in infos:
        segments = info.name.split("/")
        if len(segments) > 2:
            groups[segments[1]].append(info)
    return groups


def _units(infos: Iterable[ObjectInfo]) -> tuple[list[_Unit], list[ObjectInfo]]:
    """Units, and retries, of what lies under one asking key: `<unit>.json`, `<writer>-<unit>.<suffix>`, `retry-<nonce>.json`."""
    units: dict[str, _Unit] = defaultdict(_Unit)
    retries = []
    for info in infos:
        base = info.name.split("/")[-1]
        if base.startswith(RETRY):
            retries.append(info)
        elif "-" in base:
            units[base.partition("-")[2].partition(".")[0]].objects.append(info)
        else:
            units[base.partition(".")[0]].commit = info
    return list(units.values()), retries


def _batches(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
