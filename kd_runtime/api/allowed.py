"""What a runtime allows a job to use, and how large it may be."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel

from kd_runtime.api.errors import FieldError
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.job_rules import teacher_paths
from kd_runtime.api.model import ModelSource, NameReference, SecretReference
from kd_runtime.api.runtime import ClusterDistillationRuntime

_ADDRESSES = ("uri", "template")
_SERVERS = ("endpoint", "baseURL")
"""Where a prefix of a bucket means nothing unless it is said whose bucket, and where prompts go."""


def runtime_errors(job: DistillationJob, runtime: ClusterDistillationRuntime) -> Iterator[FieldError]:
    """Everything of ``job`` that ``runtime`` does not allow."""
    yield from _uses(job, runtime)
    yield from _placement(job, runtime)
    yield from _size(job, runtime)


def within(uri: str, prefix: str) -> bool:
    """True where ``uri`` lies at or below ``prefix``: scheme, host and path segments are compared, never strings.

    A prefix of a scheme alone (``hf://``) holds every host.
    """
    here, there = urlsplit(uri), urlsplit(prefix)
    if here.scheme != there.scheme or there.netloc not in ("", here.netloc):
        return False
    path, allowed = ([s for s in parts.path.split("/") if s] for parts in (here, there))
    return ".." not in unquote(here.path).split("/") and path[: len(allowed)] == allowed


def _uses(job: DistillationJob, runtime: ClusterDistillationRuntime) -> Iterator[FieldError]:
    allowed, name = runtime.spec.allowed, runtime.metadata.name
    namespace = job.metadata.namespace or "default"
    given = {(_field(path), value) for path, value in _parts(runtime.spec.defaults, "") if isinstance(value, str)}
    for path, value in _parts(job.spec, "spec"):
        last = _field(path)
        if isinstance(value, ModelSource) and value.trust_remote_code and not allowed.remote_code:
            yield FieldError(
                f"{path}.trustRemoteCode",
                True,
                f"is not allowed by the runtime {name}",
                "use a model without code of its own, or a runtime with allowed.remoteCode",
            )
        named = last in _ADDRESSES or (last in _SERVERS and (last, value) not in given)
        if isinstance(value, str) and named and allowed.uris is not None:
            prefixes = [prefix.replace("{namespace}", namespace) for prefix in allowed.uris]
            if not any(within(value, prefix) for prefix in prefixes):
                yield _refused(path, value, name, ", ".join(prefixes))
        if isinstance(value, SecretReference) or (isinstance(value, NameReference) and last == "credentialsSecretRef"):
            yield from _named(f"{path}.name", value.name, allowed.secrets, name)
        if isinstance(value, str) and last == "serviceAccountName":
            yield from _named(path, value, allowed.service_accounts, name)


def _field(path: str) -> str:
    return path.rpartition(".")[2]


def _placement(job: DistillationJob, runtime: ClusterDistillationRuntime) -> Iterator[FieldError]:
    allowed, scheduling, name = runtime.spec.allowed, job.spec.scheduling, runtime.metadata.name
    if scheduling.priority_class_name is not None:
        yield from _named(
            "spec.scheduling.priorityClassName", scheduling.priority_class_name, allowed.priority_classes, name
        )
    if allowed.node_selector is not None:
        for key, value in scheduling.node_selector.items():
            if allowed.node_selector.get(key) not in (value, "*"):
                yield _refused(f"spec.scheduling.nodeSelector.{key}", value, name, ", ".join(allowed.node_selector))
    if allowed.tolerations is not None:
        for number, toleration in enumerate(scheduling.tolerations):
            if toleration not in allowed.tolerations:
                yield _refused(f"spec.scheduling.tolerations[{number}]", None, name, "those of allowed.tolerations")


def _size(job: DistillationJob, runtime: ClusterDistillationRuntime) -> Iterator[FieldError]:
    limits, spec = runtime.spec.limits, job.spec
    gpus_of_teachers = {}
    for path, teacher in teacher_paths(spec):
        if teacher.hosted is not None:
            gpus_of_teachers[getattr(teacher, "name", None)] = teacher.hosted.replicas * teacher.hosted.gpus_per_replica
            yield from _within_limit(f"{path}.hosted.replicas", teacher.hosted.replicas, limits.replicas, runtime)
    for number, stage in enumerate(spec.stages):
        path, own = f"spec.stages[{number}].resources", stage.resources
        yield from _within_limit(f"{path}.nodes", own.nodes, limits.nodes, runtime)
        gpus = own.gpus_per_node * max(own.nodes, stage.workers)
        gpus += gpus_of_teachers.get(stage.teacher, 0) if stage.asks_teacher else 0
        yield from _within_limit(path, gpus, limits.gpus_per_job, runtime, "GPUs with its teacher")
    deadline = spec.active_deadline_seconds
    if deadline is not None:
        yield from _within_limit("spec.activeDeadlineSeconds", deadline, limits.active_deadline_seconds, runtime)


def _within_limit(
    path: str, value: int, limit: int | None, runtime: ClusterDistillationRuntime, unit: str = ""
) -> Iterator[FieldError]:
    if limit is not None and value > limit:
        said = f"{unit} exceeds" if unit else "exceeds"
        yield FieldError(
            path, value, f"{said} {limit}, the limit of the runtime {runtime.metadata.name}", "ask for less"
        )


def permits(patterns: tuple[str, ...] | None, name: str) -> bool:
    """Whether a list of `allowed` holds ``name``; one that is left out holds every name."""
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _named(path: str, value: str, patterns: tuple[str, ...] | None, runtime: str) -> Iterator[FieldError]:
    if patterns is not None and not permits(patterns, value):
        yield _refused(path, value, runtime, ", ".join(patterns))


def _refused(path: str, value: Any, runtime: str, allowed: str) -> FieldError:
    return FieldError(path, value, f"is not allowed by the runtime {runtime}", f"use one of: {allowed or '(none)'}")


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every model and plain value below ``value``, with its path."""
    yield path, value
    if isinstance(value, BaseModel):
        for attribute, info in type(value).model_fields.items():
            yield from _parts(getattr(value, attribute), f"{path}.{info.alias or attribute}")
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _parts(item, f"{path}[{number}]")
