"""A job, planned: what can be known of it before anything runs, by `kd plan`, `kd run` and the plan pod alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kd_runtime.api.job import DistillationJob
from kd_runtime.api.runtime import ClusterDistillationRuntime
from kd_runtime.api.wiring import DATASET
from kd_runtime.artifacts.store import Store
from kd_runtime.planning.estimates import StageEstimate, estimate, sample_dataset
from kd_runtime.planning.lookup import StageLookup, look_up
from kd_runtime.planning.plan import Plan
from kd_runtime.planning.probes import (
    probe_held_out,
    probe_memory,
    probe_score_routes,
    probe_store,
    probe_teachers,
    probe_tokenizers,
)
from kd_runtime.planning.resolve import build_plan


@dataclass(frozen=True)
class Outlook:
    """A plan with the state of each stage, what each will cost, and what the probes warn of."""

    plan: Plan
    states: dict[str, StageLookup]
    estimates: dict[str, StageEstimate]
    notes: tuple[str, ...] = ()

    @property
    def running(self) -> list[str]:
        """Names of the stages that have to run."""
        return [stage.name for stage in self.plan.stages if self.states[stage.name].runs]


def outlook(
    job: DistillationJob,
    runtime: ClusterDistillationRuntime,
    store: Store,
    *,
    uncached: str | None,
    memory: Callable[[str], int | None],
    probe: bool = True,
) -> Outlook:
    """Resolve, look up, estimate and probe; nothing is run and no teacher started.

    ``uncached`` enters the keys of stages with `cache: Never`; ``memory`` gives the bytes that a stage's process may use.

    Raises:
        KDError: what is wrong, with its exit class.
    """
    note = probe_store(store) if probe else None
    plan, resolver = build_plan(job, runtime, store, uncached=uncached)
    states = look_up(plan, store)
    manifests = {name: state.manifest for name, state in states.items()}
    rows = manifests[DATASET]
    if rows is not None:
        probe_held_out(plan, rows.counts)
    estimates = estimate(plan, resolver.headers, manifests, sample_dataset(plan))
    notes = (*((note,) if note else ()), *lost_notes(plan, states, store))
    found = Outlook(plan, states, estimates, notes)
    if probe:
        probe_running(found, memory)
    return found


def lost_notes(plan: Plan, states: Mapping[str, StageLookup], store: Store) -> Iterator[str]:
    """What is said of artifacts of which an object is gone."""
    for name, state in states.items():
        if state.lost is not None:
            follows = "it is made again" if state.runs else "no stage that runs reads it, so it is left as it is"
            yield (
                f"stage {name}: {store.uri}{state.lost} is gone, so the artifact {plan.stage(name).key[:12]} is not whole: {follows}"
            )


def probe_running(found: Outlook, memory: Callable[[str], int | None]) -> None:
    """Probe what the stages that have to run need: tokenizers, teachers, memory.

    Raises:
        SettingsError, TeacherError, DeniedError: what is wrong.
    """
    probe_tokenizers(found.plan)
    if any(found.plan.stage(name).teacher for name in found.running):
        probe_teachers(found.plan)
        probe_score_routes(found.plan, found.running)
    for name in found.running:
        available = memory(name)
        if available is not None:
            probe_memory(found.plan, {name: found.estimates[name].memory}, available)
