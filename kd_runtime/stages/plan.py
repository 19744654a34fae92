"""`kd stage plan`: the plan pod. From a job and its runtime to a plan in the store, and a result that says what is found (contract 12)."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from kd_runtime.api.failures import DataError, ExitClass, SettingsError
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.parse import parse_job, parse_runtime
from kd_runtime.api.result import PlannedState, PlanResult
from kd_runtime.api.runtime import ClusterDistillationRuntime
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.evaluation.gates import unmet_gates
from kd_runtime.planning.lookup import Lookup, look_up
from kd_runtime.planning.outlook import Outlook, lost_notes, outlook, probe_running
from kd_runtime.stages.retrying import retry
from kd_runtime.stages.runner import load_plan, local_cache, mark_used, said_of

QUANTITY_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)
}


@dataclass(frozen=True)
class PlanOptions:
    """The command line of `kd stage plan`."""

    job: Path
    """The DistillationJob as JSON, with its uid."""
    runtime: Path
    """Its ClusterDistillationRuntime as JSON."""
    plan: str | None = None
    """The digest of a plan that is there: look-up and probes only."""
    retry: str | None = None
    """``<stage>/<nonce>``: ask what that stage rejected once more."""
    cache: Path | None = None


def run_plan(options: PlanOptions) -> int:
    """Plan; write the result file; return the exit code. Never raises."""
    try:
        result = plan_result(options)
    except BaseException as error:
        kind, message = said_of(error)
        result = PlanResult(exit_class=kind, message=message)
    result.write()
    said = result.estimate if result.exit_class is ExitClass.Done else f"{result.exit_class.name}: {result.message}"
    print(f"plan: {said}", file=sys.stderr, flush=True)
    return int(result.exit_class)


def plan_result(options: PlanOptions) -> PlanResult:
    """Resolve, probe, look up; write the plan.

    Raises:
        KDError: what is wrong, with its exit class.
    """
    runtime = parse_runtime(_read(options.runtime), source=options.runtime.name)
    job = parse_job(_read(options.job), runtime, source=options.job.name)
    s3 = job.spec.artifacts
    store = open_store(s3.uri, endpoint=s3.endpoint, region=s3.region)
    found = _planned(job, runtime, store) if options.plan is None else _again(job, runtime, store, options.plan)
    cache = local_cache(options.cache)
    if options.retry:
        found = _retried(found, store, cache, options.retry.partition("/")[0])
    states = found.states
    return PlanResult(
        exit_class=ExitClass.Done,
        message=" ".join(found.notes),
        digest=found.plan.digest,
        estimate=_estimate(found),
        stages=tuple(
            PlannedState(
                name=stage.name,
                key=stage.key,
                state=states[stage.name].state.value,
                manifest=_manifest_sha256(states[stage.name].manifest, states[stage.name].state),
            )
            for stage in found.plan.stages
        ),
        unmet=unmet_gates(found.plan, store, cache),
    )


def _planned(job: DistillationJob, runtime: ClusterDistillationRuntime, store: Store) -> Outlook:
    """A first plan, written to the store."""
    found = outlook(job, runtime, store, uncached=job.metadata.uid, memory=lambda name: _memory(job, name))
    store.put(f"plans/{found.plan.digest}.json", found.plan.encoded())
    mark_used(store, found.plan.digest)
    return found


def _again(job: DistillationJob, runtime: ClusterDistillationRuntime, store: Store, digest: str) -> Outlook:
    """The plan ``digest`` looked up anew.

    Raises:
        DataError: something outside the store that a stage still to run reads has other content now.
    """
    plan = load_plan(store, digest)
    now = outlook(job, runtime, store, uncached=job.metadata.uid, memory=lambda name: _memory(job, name), probe=False)
    states = look_up(plan, store)
    found = Outlook(plan, states, now.estimates, tuple(lost_notes(plan, states, store)))
    for name in found.running:
        for role, planned in plan.stage(name).externals.items():
            current = now.plan.stage(name).externals.get(role)
            if current is None or current.digest != planned.digest:
                raise DataError(
                    f"stage {name}: {role} {planned.uri} has other content than when the job was planned "
                    f"({planned.digest[:12]}, now {current.digest[:12] if current else 'gone'}); "
                    "put the former content back, or create the job under another name"
                )
    probe_running(found, lambda name: _memory(job, name))
    return found


def _retried(found: Outlook, store: Store, cache: Cache, name: str) -> Outlook:
    """What ``name`` rejected is open again; a stage that asks no teacher has nothing to ask again, and just runs."""
    if name not in {stage.name for stage in found.plan.stages}:
        raise SettingsError(f"kubedistill.io/retry: the job has no stage {name!r}; name one of its stages")
    if found.plan.stage(name).asking_key is None:
        return found
    retry(found.plan, store, cache, name)
    return Outlook(found.plan, look_up(found.plan, store), found.estimates, found.notes)


def _manifest_sha256(manifest: object, state: Lookup) -> str | None:
    return getattr(manifest, "sha256", None) if state is Lookup.Found else None


def _estimate(found: Outlook) -> str:
    """``5 of 7 stages to run, about 120,000 tokens, 0.4 GB and 12 minutes``."""
    costs = [found.estimates[name] for name in found.running]
    if not costs:
        return f"all {len(found.plan.stages)} stages are found"
    return (
        f"{len(costs)} of {len(found.plan.stages)} stages to run, about {sum(c.tokens for c in costs):,} tokens, "
        f"{sum(c.bytes for c in costs) / 1e9:.1f} GB and {max(1, round(sum(c.seconds for c in costs) / 60))} minutes"
    )


def _memory(job: DistillationJob, name: str) -> int | None:
    """Bytes of memory that the pods of a stage get; None where it does not say, or an accelerator holds the model."""
    for stage in job.spec.stages:
        if stage.name == name and not stage.asks_teacher and not stage.resources.gpus_per_node:
            return quantity_bytes(stage.resources.memory) if stage.resources.memory else None
    return None


def quantity_bytes(text: str) -> int | None:
    """Bytes of a Kubernetes quantity such as 400Gi; None for units that no memory has."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = QUANTITY_UNITS.get(text[len(digits) :])
    return None if unit is None else int(float(digits) * unit)


def _read(path: Path) -> dict[str, object]:
    try:
        document: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read as JSON ({error})") from error
    return document
