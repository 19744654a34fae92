"""From a document to a DistillationJob: defaults under it, then every check, all errors at once."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from kd_runtime.api.errors import FieldError, ManifestErrors
from kd_runtime.api.job import BODIES, DistillationJob, DistillationJobSpec, Stage
from kd_runtime.api.partial import merge_under
from kd_runtime.api.runtime import ClusterDistillationRuntime
from kd_runtime.api.teacher import NamedTeacher
from kd_runtime.api.yaml_documents import load_documents

__all__ = ["FieldError", "ManifestErrors", "load_documents", "parse_job", "parse_runtime", "warnings"]


def without_nulls(value: Any) -> Any:
    """``value`` without the keys of maps that hold null: null and absent are one."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def with_defaults(document: dict[str, Any], runtime: ClusterDistillationRuntime) -> dict[str, Any]:
    """``document`` (a job's, without nulls) with the runtime's defaults where it says nothing."""
    spec = document.get("spec")
    if not isinstance(spec, dict):
        return document
    defaults = runtime.spec.default_settings()
    bodies, resources = defaults.pop("stages", {}), defaults.pop("resources", {})
    merged = merge_under(spec, defaults, DistillationJobSpec)
    if isinstance(merged.get("teachers"), list):
        teacher = defaults.get("teacher", {})
        merged["teachers"] = [merge_under(item, teacher, NamedTeacher) for item in merged["teachers"]]
    if isinstance(merged.get("stages"), list):
        merged["stages"] = [_stage_with_defaults(stage, bodies, resources) for stage in merged["stages"]]
    return {**document, "spec": merged}


def _stage_with_defaults(stage: Any, bodies: dict[str, Any], resources: dict[str, Any]) -> Any:
    if not isinstance(stage, dict):
        return stage
    present = [name for name in BODIES if name in stage]
    defaults = {name: bodies[name] for name in present if name in bodies}
    if len(present) == 1 and present[0] in resources:
        defaults["resources"] = resources[present[0]]
    return merge_under(stage, defaults, Stage) if len(present) == 1 else stage


def parse_job(
    document: dict[str, Any], runtime: ClusterDistillationRuntime | None = None, *, source: str = ""
) -> DistillationJob:
    """The job in ``document``, with every default filled in.

    Raises:
        ManifestErrors: with everything that is wrong.
    """
    cleaned = without_nulls(document)
    merged = with_defaults(cleaned, runtime) if runtime else cleaned
    try:
        return DistillationJob.model_validate(merged)
    except ValidationError as error:
        raise ManifestErrors(
            [FieldError(".".join(map(str, e["loc"])), e["input"], e["msg"], "") for e in error.errors()], source
        ) from error


def parse_runtime(document: dict[str, Any], *, source: str = "") -> ClusterDistillationRuntime:
    """The runtime in ``document``. Raises ManifestErrors."""
    try:
        return ClusterDistillationRuntime.model_validate(without_nulls(document))
    except ValidationError as error:
        raise ManifestErrors(
            [FieldError(".".join(map(str, e["loc"])), e["input"], e["msg"], "") for e in error.errors()], source
        ) from error


def warnings(job: DistillationJob) -> list[FieldError]:
    """Settings of ``job`` that have no effect where they stand."""
    return []
