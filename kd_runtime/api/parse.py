"""From a document to a job: the runtime's defaults under it, then every check, all errors at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kd_runtime.api.allowed import runtime_errors
from kd_runtime.api.cel_rules import violations
from kd_runtime.api.effects import effectless
from kd_runtime.api.errors import FieldError, ManifestErrors
from kd_runtime.api.job import DistillationJob, DistillationJobSpec
from kd_runtime.api.job_rules import job_errors
from kd_runtime.api.model import Model
from kd_runtime.api.partial import merge_under
from kd_runtime.api.runtime import ClusterDistillationRuntime
from kd_runtime.api.stage import BODIES, Stage
from kd_runtime.api.structural import schema_of
from kd_runtime.api.structure import known, structure_errors
from kd_runtime.api.teacher import NamedTeacher
from kd_runtime.api.yaml_documents import documents_of, load_documents

M = TypeVar("M", bound=Model)
JOB, RUNTIME = "DistillationJob", "ClusterDistillationRuntime"

__all__ = [
    "FieldError",
    "ManifestErrors",
    "complete",
    "documents_of",
    "load_documents",
    "load_runtime",
    "parse_job",
    "parse_kept_runtime",
    "parse_runtime",
    "warnings",
    "with_defaults",
    "without_nulls",
]


def parse_job(
    document: dict[str, Any], runtime: ClusterDistillationRuntime | None = None, *, source: str = ""
) -> DistillationJob:
    """The job in ``document``, with every default filled in: the runtime's, then the models'.

    Raises:
        ManifestErrors: with everything that is wrong.
    """
    cleaned = without_nulls(document)
    errors = document_errors(DistillationJob, cleaned)
    job = _model(DistillationJob, with_defaults(cleaned, runtime) if runtime else cleaned, errors)
    if job is not None:
        completed = violations(schema_of(DistillationJob), complete(job))
        errors = _distinct([*errors, *completed, *job_errors(job), *(runtime_errors(job, runtime) if runtime else ())])
    if errors or job is None:
        raise ManifestErrors(errors, source)
    return job


def parse_runtime(document: dict[str, Any], *, source: str = "") -> ClusterDistillationRuntime:
    """The runtime in ``document``. Raises ManifestErrors, with everything that is wrong."""
    cleaned = without_nulls(document)
    errors = document_errors(ClusterDistillationRuntime, cleaned)
    runtime = _model(ClusterDistillationRuntime, cleaned, errors)
    if errors or runtime is None:
        raise ManifestErrors(errors, source)
    return runtime


def load_runtime(path: Path | str) -> ClusterDistillationRuntime:
    """The runtime in the file ``path``. Raises ManifestErrors, also where the file holds none or several."""
    documents = load_documents(path)
    found = [document for document in documents if document.get("kind") == RUNTIME]
    if len(found) != 1:
        few = FieldError("file", None, f"holds {len(found)} documents of kind {RUNTIME}", "name a file that holds one")
        raise ManifestErrors([few], str(path))
    return parse_runtime(found[0], source=str(path))


def parse_kept_runtime(document: dict[str, Any]) -> ClusterDistillationRuntime:
    """The runtime that any version of the project wrote to ``document``: what this one does not know is left out.

    Raises:
        ManifestErrors: it cannot be read even so.
    """
    return parse_runtime(known(schema_of(ClusterDistillationRuntime), document))


def warnings(job: DistillationJob, *, local: bool = False) -> list[FieldError]:
    """Settings of ``job`` without effect where they stand; ``local``: also those that only a cluster acts on."""
    return list(effectless(job, local))


def document_errors(model: type[Model], document: dict[str, Any]) -> list[FieldError]:
    """What the API server would say of ``document``: its structure, then its CEL rules."""
    schema = schema_of(model)
    named = [
        FieldError(name, None, "is missing", f"add {name}: {schema['properties'][name]['enum'][0]}")
        for name in ("apiVersion", "kind")
        if name not in document
    ]
    wrong = [*named, *structure_errors(schema, document)]
    return [*wrong, *violations(schema, document, tuple(error.path for error in wrong))]


def without_nulls(value: Any) -> Any:
    """``value`` without the keys of maps that hold null: null and absent are one."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
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
    present = [name for name in BODIES if name in stage] if isinstance(stage, dict) else []
    if len(present) != 1:
        return stage
    kind = present[0]
    defaults = {kind: bodies[kind]} if kind in bodies else {}
    if kind in resources:
        defaults["resources"] = resources[kind]
    return merge_under(stage, defaults, Stage)


def complete(instance: BaseModel) -> dict[str, Any]:
    """``instance`` as a map under manifest names with every default written out.

    Of fields that exclude each other, a default stays out where another was chosen.
    """
    plain = instance.model_dump(mode="json", by_alias=True)
    written: dict[str, Any] = {}
    for attribute, info in type(instance).model_fields.items():
        value = getattr(instance, attribute)
        if value is None or _left_out(instance, attribute):
            continue
        name = info.alias or attribute
        written[name] = _completed(value, plain[name])
    return written


def _completed(value: Any, plain: Any) -> Any:
    if isinstance(value, BaseModel):
        return complete(value)
    if isinstance(value, tuple):
        return [_completed(item, plain[index]) for index, item in enumerate(value)]
    return plain


def _left_out(instance: BaseModel, attribute: str) -> bool:
    for group in getattr(instance, "exclusive", ()):
        if attribute in group and attribute not in instance.model_fields_set:
            return any(getattr(instance, other) is not None for other in group if other in instance.model_fields_set)
    return False


def _model(kind: type[M], document: dict[str, Any], errors: list[FieldError]) -> M | None:
    """The model of a document; None where its structure is wrong, which ``errors`` say already or are made to."""
    try:
        return kind.model_validate(document)
    except ValidationError as failure:
        if not errors:
            errors += [_of_pydantic(detail) for detail in failure.errors()]
        return None


def _of_pydantic(detail: Any) -> FieldError:
    path = ""
    for part in detail["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return FieldError(path, detail["input"], f"is wrong: {detail['msg']}", "see docs/api.md")


def _distinct(errors: Iterable[FieldError]) -> list[FieldError]:
    """``errors`` without those that say the same of the same field."""
    return list({(error.path, error.message): error for error in reversed(list(errors))}.values())[::-1]
