"""`kd plan` and `kd run`: from a manifest to a table, and to a published student."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.text import Text

from kd_runtime.api.failures import GateError, SettingsError
from kd_runtime.api.parse import warnings
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.evaluation.gates import unmet_gates
from kd_runtime.local.display import Display
from kd_runtime.local.executor import Executor
from kd_runtime.local.folder import RunFolder, RunState
from kd_runtime.local.manifest import LocalJob, load_job
from kd_runtime.local.tables import plan_table
from kd_runtime.planning.estimates import StageEstimate
from kd_runtime.planning.lookup import StageLookup
from kd_runtime.planning.outlook import outlook
from kd_runtime.planning.plan import Plan
from kd_runtime.planning.probes import missing_secrets
from kd_runtime.stages.reporting import write_report as render_and_keep
from kd_runtime.stages.runner import mark_used


@dataclass(frozen=True)
class Planned:
    """A manifest, planned: everything that `kd plan` shows and `kd run` needs."""

    local: LocalJob
    store: Store
    plan: Plan
    states: dict[str, StageLookup]
    estimates: dict[str, StageEstimate]
    notes: tuple[str, ...] = ()
    """What the probes warn of."""


def plan_manifest(manifest: Path, runtime: Path | None, *, run_id: str | None = None, probe: bool = True) -> Planned:
    """Parse, resolve, look up, estimate and probe; nothing is run and no teacher started.

    Raises:
        KDError: what is wrong, with its exit class.
    """
    local = load_job(manifest, runtime)
    spec = local.job.spec
    missing = missing_secrets(spec, dict(os.environ))
    if missing:
        raise SettingsError("; ".join(missing))
    store = open_store(spec.artifacts.uri, endpoint=spec.artifacts.endpoint, region=spec.artifacts.region)
    machine = psutil.virtual_memory().total
    found = outlook(
        local.job,
        local.runtime,
        store,
        uncached=run_id or _run_id(local),
        memory=lambda _: machine,
        probe=probe,
    )
    return Planned(local, store, found.plan, found.states, found.estimates, found.notes)


def _run_id(local: LocalJob) -> str | None:
    state = RunFolder(local.run_folder).last() if local.run_folder.exists() else None
    return state.run_id if state and not state.ended else "unstarted"


def show_plan(manifest: Path, runtime: Path | None, console: Console) -> Planned:
    """`kd plan`: the table, with warnings."""
    planned = plan_manifest(manifest, runtime)
    _warn(planned, console)
    console.print(plan_table(planned.plan, planned.states, planned.estimates))
    return planned


def _warn(planned: Planned, console: Console) -> None:
    for warning in (*warnings(planned.local.job), *planned.notes):
        console.print(Text.assemble(("warning", "yellow"), f" {warning}"))


def run_manifest(manifest: Path, runtime: Path | None, console: Console) -> Path:
    """`kd run`: continue the run of this manifest to its end; the path of its report.

    Raises:
        KDError: what ended it, with its exit class.
    """
    local = load_job(manifest, runtime)
    with RunFolder(local.run_folder) as folder:
        state = folder.state()
        planned = plan_manifest(manifest, runtime, run_id=state.run_id)
        _store_plan(planned)
        folder.keep(replace(state, plan=planned.plan.digest))
        _warn(planned, console)
        console.print(plan_table(planned.plan, planned.states, planned.estimates))
        cache = local.folder / "cache"
        with Display(console) as display:
            Executor(planned.plan, planned.store, folder, cache, display).run()
        report = write_report(planned.plan, planned.store, cache, local.run_folder / "report.html")
        folder.keep(RunState(state.run_id, planned.plan.digest, ended=True))
        check_gates(planned.plan, planned.store, Cache(cache))
        return report


def check_gates(plan: Plan, store: Store, cache: Cache) -> None:
    """Gates of evaluations that no publish stage reads decide how the job ends (publish judges the others itself).

    Raises:
        GateError: a gate is unmet; the message names its measure, bound and value.
    """
    unmet = [f"{name}: {sentence}" for name, sentence in unmet_gates(plan, store, cache).items()]
    if unmet:
        raise GateError(f"{'; '.join(unmet)}; train longer or on more data, or change the gate")


def _store_plan(planned: Planned) -> None:
    planned.store.put(f"plans/{planned.plan.digest}.json", planned.plan.encoded())
    mark_used(planned.store, planned.plan.digest)


def write_report(plan: Plan, store: Store, cache: Path, path: Path) -> Path:
    """Render the report of a plan from its manifests, here and in the store."""
    path.write_text(render_and_keep(plan, store, Cache(cache)), encoding="utf-8")
    return path


def open_run(run: Path) -> tuple[Plan, Store, Path]:
    """The plan, store and cache of a run: a manifest, or a run folder below `.kd/runs`.

    Raises:
        SettingsError: nothing has been run there.
    """
    manifest = run
    if run.is_dir():
        raise SettingsError(f"{run}: is a folder; name the manifest that was run")
    local = load_job(manifest)
    state = RunFolder(local.run_folder).last()
    if state is None or state.plan is None:
        raise SettingsError(f"{manifest}: has not been run here; type `kd run {manifest}` first")
    spec = local.job.spec
    store = open_store(spec.artifacts.uri, endpoint=spec.artifacts.endpoint, region=spec.artifacts.region)
    plan = Plan.model_validate_json(store.get(f"plans/{state.plan}.json"))
    return plan, store, local.folder / "cache"
