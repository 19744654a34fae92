"""The CustomResourceDefinitions of both kinds, from the models."""

from __future__ import annotations

from typing import Any

from kd_runtime.api.job import DistillationJob
from kd_runtime.api.metadata import JOB_NAME, JOB_NAME_LENGTH
from kd_runtime.api.model import GROUP, VERSION, Model
from kd_runtime.api.runtime import ClusterDistillationRuntime
from kd_runtime.api.structural import PRIVATE, Schema, schema_of

LIMIT_BYTES = 262_144
"""What `kubectl apply` can keep in its annotation."""


def crds() -> dict[str, dict[str, Any]]:
    """The CustomResourceDefinitions by file name."""
    return {
        f"{GROUP}_distillationjobs.yaml": _job_crd(),
        f"{GROUP}_clusterdistillationruntimes.yaml": _runtime_crd(),
    }


def _job_crd() -> dict[str, Any]:
    root = public(schema_of(DistillationJob))
    root["properties"]["metadata"] = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": JOB_NAME_LENGTH, "pattern": JOB_NAME}},
    }
    columns = [
        _column("Phase", ".status.phase"),
        _column("Stage", ".status.currentStage"),
        _column("Progress", ".status.progress"),
        _column("Attempt", ".status.attempts.counted", "integer"),
        _column("GPU-h", ".status.usage.gpuHours"),
        _column("Age", ".metadata.creationTimestamp", "date"),
        _column("Student", ".spec.student.model.uri", priority=1),
        _column("Teacher", ".spec.teacher.hosted.model.uri", priority=1),
        _column("Reason", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
    ]
    crd = _crd("DistillationJob", "distillationjobs", ["dj"], "Namespaced", _typed_root(root), columns, status=True)
    # so that a list of the jobs at work leaves out the ended and suspended ones, which are many
    crd["spec"]["versions"][0]["selectableFields"] = [
        {"jsonPath": ".status.completionTime"},
        {"jsonPath": ".spec.suspend"},
    ]
    return crd


def _runtime_crd() -> dict[str, Any]:
    root = public(schema_of(ClusterDistillationRuntime))
    root["properties"]["metadata"] = {"type": "object"}
    default = r".metadata.annotations.kubedistill\.io/is-default-runtime"
    columns = [
        _column("Default", default),
        _column("Image", ".spec.images.runtime"),
        _column("Age", ".metadata.creationTimestamp", "date"),
    ]
    kind, plural = "ClusterDistillationRuntime", "clusterdistillationruntimes"
    return _crd(kind, plural, ["cdr"], "Cluster", _typed_root(root), columns, status=False)


def _crd(
    kind: str, plural: str, short: list[str], scope: str, root: Schema, columns: list[Schema], *, status: bool
) -> dict[str, Any]:
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": root},
    }
    if status:
        version["subresources"] = {"status": {}}
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {**names, "shortNames": short, "categories": ["kd"]},
            "scope": scope,
            "versions": [version],
        },
    }


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    if priority:
        column["priority"] = priority
    return column


def _typed_root(root: Schema) -> Schema:
    """The API server itself fixes apiVersion and kind, so the schema only names their type."""
    for name in ("apiVersion", "kind"):
        root["properties"][name] = {"type": "string"}
    root["required"] = ["spec"]
    return root


def public(schema: Any) -> Any:
    """``schema`` without what only this project reads."""
    if isinstance(schema, dict):
        return {key: public(value) for key, value in schema.items() if not key.startswith(PRIVATE)}
    if isinstance(schema, list):
        return [public(value) for value in schema]
    return schema


def kinds() -> dict[str, type[Model]]:
    """The models of the kinds, by name."""
    return {"DistillationJob": DistillationJob, "ClusterDistillationRuntime": ClusterDistillationRuntime}
