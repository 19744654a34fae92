"""Look a plan up in the store: what is found, what is stale, what has to run (contract 2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from kd_runtime.artifacts.manifest import Manifest, read_manifest
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.artifacts.units import UnitStore
from kd_runtime.artifacts.wholeness import lost_object
from kd_runtime.planning.plan import Plan, PlannedStage, StageType
from kd_runtime.planning.targets import TargetState, target_state


class Lookup(StrEnum):
    """What looking a stage up says."""

    Found = "Found"
    ToDo = "ToDo"
    Stale = "Stale"
    """Its manifest was made from inputs that have other content now: moved aside and made again."""
    NotNeeded = "NotNeeded"
    """Absent, but every stage that would read it is found."""


@dataclass(frozen=True)
class StageLookup:
    """One stage, looked up."""

    state: Lookup
    manifest: Manifest | None = None
    why: str = ""
    lost: str | None = None
    """An object that its manifest names and the store lacks: the artifact counts as absent."""

    @property
    def runs(self) -> bool:
        """True where the stage has to run."""
        return self.state in (Lookup.ToDo, Lookup.Stale)


def look_up(plan: Plan, store: Store) -> dict[str, StageLookup]:
    """Every stage of the plan, looked up in ``store``, and every target of what was published.

    An artifact that has lost an object is none, whatever its manifest says: who makes it again moves the manifest aside.
    """
    read = {stage.name: read_manifest(store, stage.key) for stage in plan.stages}
    lost = {name: gone for name, m in read.items() if m is not None and (gone := lost_object(store, m.objects))}
    manifests = {name: None if name in lost else manifest for name, manifest in read.items()}
    found = judge(plan, manifests, lost_targets(plan, manifests), retried_stages(plan, manifests, store))
    return {
        name: replace(state, why=f"its object {lost[name]} is gone", lost=lost[name]) if name in lost else state
        for name, state in found.items()
    }


def retried_stages(plan: Plan, manifests: Mapping[str, Manifest | None], store: Store) -> list[str]:
    """Stages without an artifact of which a rejected pair is to be asked again, and has not been (contract 4)."""
    absent = [stage for stage in plan.stages if manifests[stage.name] is None and stage.asking_key]
    return [s.name for s in absent if UnitStore(store, str(s.asking_key), "look-up").has_open_retry()]


def lost_targets(plan: Plan, manifests: Mapping[str, Manifest | None]) -> dict[str, str]:
    """Publish stage -> one of its targets that neither names the published model nor ever did.

    A target that named it and has moved on counts as found (contract 10).
    """
    s3 = {"endpoint": plan.spec.artifacts.endpoint, "region": plan.spec.artifacts.region}
    lost: dict[str, str] = {}
    for stage in plan.stages:
        manifest = manifests[stage.name] if stage.type is StageType.Publish else None
        publish = plan.settings(stage.name).publish if manifest is not None else None
        if manifest is None or publish is None:
            continue
        for target in publish.targets:
            state = target_state(open_store(target.uri.rstrip("/") + "/", **s3), manifest.extra["model"])
            if state is TargetState.ToDo:
                lost[stage.name] = target.uri
    return lost


def judge(
    plan: Plan,
    manifests: Mapping[str, Manifest | None],
    lost: Mapping[str, str] = MappingProxyType({}),
    retried: Collection[str] = (),
) -> dict[str, StageLookup]:
    """The state of each stage, given the manifests that are there, the ``lost_targets`` and the ``retried_stages`` (pure).

    From the last stage to the first: a stage runs if it is not found and is a last one, or one that runs reads it, or its
    rejected pairs are to be asked again.
    """
    readers = consumers({stage.name: stage.inputs for stage in plan.stages})
    states: dict[str, StageLookup] = {}
    for stage in reversed(plan.stages):
        manifest = manifests[stage.name]
        why = _stale(stage, manifests, manifest, lost) if manifest else "not made yet"
        if manifest and not why:
            states[stage.name] = StageLookup(Lookup.Found, manifest)
            continue
        read = any(states[reader].runs for reader in readers[stage.name])
        needed = read or not readers[stage.name] or stage.name in retried
        if manifest:
            states[stage.name] = StageLookup(Lookup.Stale, manifest, why)
        else:
            states[stage.name] = StageLookup(Lookup.ToDo if needed else Lookup.NotNeeded, None, why)
    return {stage.name: states[stage.name] for stage in plan.stages}


def consumers(inputs: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """For each stage name, the names of the stages that read it, given each stage's roles."""
    readers: dict[str, list[str]] = {name: [] for name in inputs}
    for name, roles in inputs.items():
        for source in dict.fromkeys(roles.values()):
            readers[source].append(name)
    return readers


def _stale(
    stage: PlannedStage, manifests: Mapping[str, Manifest | None], manifest: Manifest, lost: Mapping[str, str]
) -> str:
    """Why the manifest no longer holds: an input whose content is another now, a lost target; '' where it holds."""
    for role, recorded in manifest.inputs.items():
        source = stage.inputs.get(role)
        current = manifests.get(source) if source else None
        if current is not None and current.content_digest != recorded.content_digest:
            return f"input {role} ({source}) has other content now"
    return f"not published to {lost[stage.name]}" if stage.name in lost else ""
