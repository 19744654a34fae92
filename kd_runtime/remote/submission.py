"""`kd submit`: check a manifest as the operator will, against the cluster's own runtime, then server-side apply it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_runtime.api.errors import FieldError, ManifestErrors
from kd_runtime.api.failures import DeniedError, SettingsError
from kd_runtime.api.labels import DEFAULT_RUNTIME_ANNOTATION
from kd_runtime.api.lint import runtime_name
from kd_runtime.api.parse import JOB, load_documents, parse_job, parse_runtime, warnings, without_nulls
from kd_runtime.api.runtime import ClusterDistillationRuntime
from kd_runtime.remote.cluster import APPLY, JOBS, RUNTIMES, Cluster, Conflict, Document, NotFound, near

ADDRESS_FIELDS = ("uri", "template")


@dataclass(frozen=True)
class Submitted:
    """One job as it is on the cluster now."""

    name: str
    namespace: str
    what: str
    """created, changed or unchanged."""
    notes: tuple[str, ...]
    """Warnings, one sentence each."""


def submit(cluster: Cluster, path: Path, *, force: bool = False) -> list[Submitted]:
    """Apply every job of the file, after all of them were found good.

    Raises:
        ManifestErrors: everything that is wrong with them.
        SettingsError: no job in the file, or the server refuses one.
    """
    documents = load_documents(path)
    jobs = [document for document in documents if document.get("kind") == JOB]
    if not jobs:
        raise SettingsError(
            f"{path}: holds no {JOB}; start with `apiVersion: kubedistill.io/v1alpha1` and `kind: {JOB}`"
        )
    others = sorted({str(document.get("kind")) for document in documents} - {JOB})
    passed = tuple(f"{path}: {kind} is not submitted; apply it with kubectl" for kind in others)
    checked = [check(cluster, job, str(path)) for job in jobs]
    return [apply(cluster, job, (*passed, *notes), force=force) for job, notes in zip(jobs, checked, strict=True)]


def check(cluster: Cluster, document: Document, source: str) -> tuple[str, ...]:
    """Warnings of a job that is good to submit; its namespace is filled in.

    Raises:
        ManifestErrors: what is wrong with it.
    """
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        metadata = {}
    errors = [*_namespace_errors(cluster, metadata), *local_addresses(document.get("spec"), "spec")]
    if errors:
        raise ManifestErrors(errors, source)
    metadata["namespace"] = cluster.namespace
    runtime, notes = live_runtime(cluster, runtime_name(document))
    job = parse_job(document, runtime, source=source)
    return (*notes, *(f"{source}: {warning}" for warning in warnings(job)))


def _namespace_errors(cluster: Cluster, metadata: dict[str, Any]) -> Iterator[FieldError]:
    namespace = metadata.get("namespace")
    if namespace not in (None, cluster.namespace):
        yield FieldError(
            "metadata.namespace",
            namespace,
            f"is not {cluster.namespace}, where this command works",
            f"give -n {namespace}",
        )


def local_addresses(value: Any, path: str) -> Iterator[FieldError]:
    """Every address of a job that only this machine knows."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}.{key}"
            if key in ADDRESS_FIELDS and isinstance(item, str) and (item.startswith("file://") or "://" not in item):
                yield FieldError(
                    here, item, "lies on this machine, where no pod of the cluster sees it",
                    "copy it to a bucket and write s3://…, or use hf://; `kd run` runs the job here",
                )  # fmt: skip
            else:
                yield from local_addresses(item, here)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from local_addresses(item, f"{path}[{number}]")


def live_runtime(cluster: Cluster, name: str | None) -> tuple[ClusterDistillationRuntime | None, tuple[str, ...]]:
    """The cluster's runtime of that name, or its default one; None, with a warning, where this user may not read it.

    Raises:
        SettingsError: there is none.
    """
    try:
        if name is not None:
            return parse_runtime(cluster.get(cluster.url(RUNTIMES, name, scoped=False))), ()
        found = cluster.list(cluster.url(RUNTIMES, scoped=False))
    except NotFound:
        names = [str(item["metadata"]["name"]) for item in cluster.list(cluster.url(RUNTIMES, scoped=False))]
        raise SettingsError(
            f"spec.runtimeRef.name: {name} is no ClusterDistillationRuntime of the cluster; {near(name or '', names, 'it has')}"
        ) from None
    except DeniedError:
        unread = "you may not read the cluster's runtimes, so their defaults, `allowed` and `limits` were not looked at"
        return None, (f"{unread}; the operator will",)
    for document in found:
        if (document["metadata"].get("annotations") or {}).get(DEFAULT_RUNTIME_ANNOTATION) == "true":
            return parse_runtime(document), ()
    names = [str(item["metadata"]["name"]) for item in found]
    raise SettingsError(
        f'spec.runtimeRef: names no runtime, and no runtime of the cluster is annotated {DEFAULT_RUNTIME_ANNOTATION}: "true";'
        f" name one: {', '.join(names) or '(the cluster has none)'}"
    )


def apply(cluster: Cluster, document: Document, notes: tuple[str, ...], *, force: bool = False) -> Submitted:
    """Server-side apply one job.

    Raises:
        SettingsError: an immutable field changed, or a field belongs to another manager.
    """
    name = str(document["metadata"].get("name"))
    url = cluster.url(JOBS, name)
    try:
        before = cluster.get(url)["metadata"]["resourceVersion"]
    except NotFound:
        before = None
    options = {"fieldValidation": "Strict", **({"force": "true"} if force else {})}
    try:
        after = cluster.patch(url, without_nulls(document), APPLY, **options)["metadata"]["resourceVersion"]
    except Conflict as conflict:
        raise Conflict(
            f"{name}: {conflict}; leave those fields out, or take them over with --force-conflicts"
        ) from None
    what = "created" if before is None else "unchanged" if after == before else "changed"
    return Submitted(name, cluster.namespace, what, notes)
