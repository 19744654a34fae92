"""What of a store is in use: recent plans, published models, what a person keeps, and every object that these name (contract 2)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.manifest import ARTIFACTS, HISTORY, MANIFEST, Manifest, decode_manifest, manifest_sha256
from kd_runtime.artifacts.store import Missing, ObjectInfo, Store

PLANS = "plans/"
DAY_SECONDS = 86_400.0
PLAN_SECONDS = 30 * DAY_SECONDS
"""A plan counts as in use for so long after a plan, a run or a stage of it began; a running stage says so again each day."""
YOUNG_SECONDS = 7 * DAY_SECONDS
"""Nothing younger is swept."""
READERS = 16


@dataclass(frozen=True)
class Kept:
    """What must stay."""

    keys: frozenset[str]
    """Of artifacts."""
    askings: frozenset[str]
    """Asking keys whose answers a plan in use may read, whatever their pairs."""
    objects: frozenset[str]
    """Names of objects that a manifest refers to."""


class _StageKeys(BaseModel):
    model_config = ConfigDict(extra="ignore")

    key: str
    asking_key: str | None = None


class _PlanKeys(BaseModel):
    """The part of a plan that says where its artifacts and answers lie."""

    model_config = ConfigDict(extra="ignore")

    stages: tuple[_StageKeys, ...]


@dataclass(frozen=True)
class _Stored:
    """A manifest, the sha256 of its bytes, and when they were written (s, epoch)."""

    manifest: Manifest
    sha256: str
    modified: float


class Reach:
    """Looks at a store again and again; each plan and manifest is read once.

    ``now`` (s, epoch) is when the sweep began. ``keep`` holds whole keys.
    """

    def __init__(self, store: Store, keep: Collection[str], now: float):
        self._store, self._keep, self._now = store, frozenset(keep), now
        self._plans: dict[str, _PlanKeys] = {}
        self._manifests: dict[tuple[str, str], _Stored] = {}

    def look(self, gone: Collection[str] = ()) -> Kept:
        """What must stay now. Manifests whose sha256 is in ``gone`` count as deleted: the sweep has chosen them.

        Raises:
            StorageError: a plan or a manifest is garbled (named): nothing can be said then.
        """
        keys, askings = set(self._keep), set()
        for plan in self._plans_in_use():
            keys |= {stage.key for stage in plan.stages}
            askings |= {stage.asking_key for stage in plan.stages if stage.asking_key}
        present = [s for s in self._read(ARTIFACTS, f"/{MANIFEST}") if s.sha256 not in gone]
        for stored in present:
            manifest = stored.manifest
            if stored.modified > self._now - YOUNG_SECONDS:
                keys.add(manifest.key)
            if manifest.stage_type == "publish":
                keys |= {manifest.key, *(ref.key for role, ref in manifest.inputs.items() if role == "model")}
        retired = [s for s in self._read(HISTORY, ".json", self._now - YOUNG_SECONDS) if s.sha256 not in gone]
        named = {ref.name for stored in present + retired for ref in stored.manifest.objects}
        return Kept(frozenset(keys), frozenset(askings), frozenset(named))

    def _plans_in_use(self) -> Iterator[_PlanKeys]:
        used: dict[str, float] = {}
        bodies: set[str] = set()
        for info in self._store.list(PLANS):
            digest, _, kind = info.name.removeprefix(PLANS).rpartition(".")
            used[digest] = max(used.get(digest, 0.0), info.modified)
            if kind == "json":
                bodies.add(digest)
        for digest in sorted(bodies):
            if used[digest] > self._now - PLAN_SECONDS:
                yield self._plan(digest)

    def _plan(self, digest: str) -> _PlanKeys:
        if digest not in self._plans:
            name = f"{PLANS}{digest}.json"
            try:
                self._plans[digest] = _PlanKeys.model_validate_json(self._store.get(name))
            except ValidationError as error:
                raise StorageError(
                    f"{self._store.uri}{name}: is no plan ({error.error_count()} errors), so nothing is swept; delete it first"
                ) from error
        return self._plans[digest]

    def _read(self, prefix: str, ending: str, since: float = 0.0) -> list[_Stored]:
        """The manifests below ``prefix`` that were written after ``since``; one that vanishes meanwhile is left out."""
        infos = [i for i in self._store.list(prefix) if i.name.endswith(ending) and i.modified > since]
        with ThreadPoolExecutor(READERS) as pool:
            return [stored for stored in pool.map(self._manifest, infos) if stored is not None]

    def _manifest(self, info: ObjectInfo) -> _Stored | None:
        known = (info.name, info.etag)
        if known not in self._manifests:
            try:
                body = self._store.get(info.name)
            except Missing:
                return None
            manifest = decode_manifest(body, self._store.uri + info.name)
            self._manifests[known] = _Stored(manifest, manifest_sha256(body), info.modified)
        return self._manifests[known]
