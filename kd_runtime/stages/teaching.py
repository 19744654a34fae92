"""From a plan's teacher to the options of its server."""

from __future__ import annotations

from pathlib import Path

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.job import HostedTeacher
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.planning.digests import DigestMemory
from kd_runtime.planning.fetch import fetch_external
from kd_runtime.planning.plan import Plan, StageType
from kd_runtime.planning.resolve import teacher_named
from kd_runtime.stages.runner import load_plan, local_cache
from kd_runtime.teachers.serve import ServeOptions


def planned_teacher(
    store_uri: str, digest: str, name: str, cache: Path | None, endpoint: str | None, region: str | None
) -> ServeOptions:
    """Fetch the weights of the plan's teacher ``name``; how to serve it.

    Raises:
        SettingsError: the plan has no hosted teacher of that name.
        DataError, StorageError, DeniedError: its weights.
    """
    store = open_store(store_uri, endpoint=endpoint, region=region)
    plan = load_plan(store, digest)
    asking = [stage for stage in plan.stages if stage.teacher == name]
    if not asking:
        raise SettingsError(f"--teacher {name}: no stage of plan {digest[:12]} asks it")
    _, teacher = teacher_named(plan.spec, name)
    if teacher.hosted is None:
        raise SettingsError(f"--teacher {name}: is external, so there is nothing to serve")
    folder = fetch_external(
        asking[0].externals["teacher"],
        local_cache(cache),
        DigestMemory(store),
        endpoint=endpoint,
        region=region,
    )
    return _options(plan, store, name, teacher.hosted, folder)


def _options(plan: Plan, store: Store, name: str, hosted: HostedTeacher, folder: Path) -> ServeOptions:
    runtime = plan.serving
    return ServeOptions(
        model_dir=folder,
        engine=hosted.engine,
        served_name=name,
        dtype=hosted.dtype.value,
        quantization=hosted.quantization,
        max_model_len=hosted.max_model_len,
        max_logprobs=max([20, *_wanted_logprobs(plan, name)]),
        trust_remote_code=hosted.model.trust_remote_code,
        serving=hosted.serving,
        parallelism=hosted.parallelism,
        extra_args=runtime.extra_args,
        extra_env={variable.name: variable.value for variable in runtime.env},
        teacher_key=teacher_key(plan, name),
    )


def _wanted_logprobs(plan: Plan, name: str) -> list[int]:
    """topK of every capture stage that asks this teacher."""
    captures = [plan.settings(s.name).capture for s in plan.stages if s.type is StageType.Capture and s.teacher == name]
    return [capture.top_k for capture in captures if capture is not None]


def teacher_key(plan: Plan, name: str) -> str:
    """What a score request must name: the digest of the teacher's files."""
    return next(s.externals["teacher"].digest for s in plan.stages if s.teacher == name)
