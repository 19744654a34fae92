"""Jobs, and the children that the operator's builders make of them, for tests with and without an API server."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import manifests
from kd_operator.children import build
from kd_operator.children.context import ChildContext
from kd_operator.decision import Claim, Create
from kd_operator.settings import Settings

from kd_runtime.api.parse import load_documents, parse_job, parse_runtime
from kd_runtime.api.runtime import shipped_runtime

UID = "0f9c2a7e-5b1d-4c3a-9e8f-123456789abc"
PLAN = "3b" * 32
SETTINGS = Settings(
    namespace="kubedistill",
    identity="operator-0",
    plan_image="registry.example.com/operator:1",
    runtime_image="registry.example.com/runtime:1",
    progress_url="http://kubedistill-operator.kubedistill.svc:8080",
)
REPOSITORY = Path(__file__).parents[1]
MANIFESTS = sorted(
    path for folder in (REPOSITORY / "examples", REPOSITORY / "tests/api/corpus/good") for path in folder.glob("*.yaml")
)
"""Every example, and every good manifest of the API's corpus."""


def context(document: dict[str, Any], runtime: dict[str, Any] | None = None, namespace: str = "team") -> ChildContext:
    """The context of a job's children; ``runtime`` is the document of one, else that of the shipped `cpu`."""
    parsed = parse_runtime(runtime) if runtime is not None else shipped_runtime("cpu")
    return ChildContext(parse_job(document, parsed), namespace, UID, parsed, SETTINGS, PLAN)


def context_of(path: Path, namespace: str = "team") -> ChildContext:
    """The context of a manifest's job, under the runtime beside it in the file or the shipped one that it names."""
    documents = load_documents(path)
    job = next(document for document in documents if document["kind"] == "DistillationJob")
    runtime = next((d for d in documents if d["kind"] == "ClusterDistillationRuntime"), None)
    if runtime is not None:
        return context(job, runtime, namespace)
    shipped = shipped_runtime(job["spec"].get("runtimeRef", {}).get("name", "cpu"))
    return ChildContext(parse_job(job, shipped), namespace, UID, shipped, SETTINGS, PLAN)


def runtime(**spec: Any) -> dict[str, Any]:
    """A runtime's document."""
    return {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "ClusterDistillationRuntime",
        "metadata": {"name": "team"},
        "spec": spec,
    }


def job(stages: list[dict[str, Any]] | None = None, **spec: Any) -> dict[str, Any]:
    """A job's document over s3://: generate, capture, train on two nodes, evaluate and publish, unless ``stages`` says else."""
    if stages is None:
        stages = copy.deepcopy(manifests.FULL)
        stages[2]["resources"] = {"nodes": 2}
    store = {"uri": "s3://team-a/kd/", "endpoint": "http://s3.team.svc:9000", "credentialsSecretRef": {"name": "store"}}
    document = manifests.job(stages, Path("/models"), Path("/data.jsonl"), "s3://team-a/kd/")
    document["spec"] |= {
        "student": {"model": {"uri": "s3://models/student/"}},
        "artifacts": store,
        **spec,
    }
    return document


def without_plan(ctx: ChildContext) -> ChildContext:
    """Before there is one."""
    return replace(ctx, plan=None)


def only(creates: list[Create]) -> dict[str, Any]:
    """The manifest of the main child, which is the last."""
    return creates[-1].manifest


def every_child(ctx: ChildContext, attempt: int = 1) -> Iterator[Create]:
    """All that can ever be created for a job: its objects, plan pods of both kinds, its teachers, its stages."""
    spec = ctx.job.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    metadata = {"name": ctx.name, "namespace": ctx.namespace, "uid": ctx.uid}
    original = {
        "apiVersion": ctx.job.api_version,
        "kind": ctx.job.kind,
        "metadata": metadata,
        "spec": spec,
    }
    yield Create(build.config_map(ctx, original=original), Claim("", 0))
    yield Create(build.network_policy(ctx), Claim("", 0))
    yield from build.plan_job(without_plan(ctx), attempt, retry=None)
    yield from build.plan_job(ctx, attempt + 1, retry="dataset/again")
    for name, teacher in ctx.job.spec.named_teachers().items():
        if teacher.hosted is not None:
            yield from build.teacher(ctx, name, attempt)
    for name in ("dataset", *(stage.name for stage in ctx.job.spec.stages)):
        yield from build.stage(ctx, name, attempt, teacher_attempt=attempt)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """A bare pod from the template of a Job or Deployment, in its namespace; None of an object without one."""
    template = manifest.get("spec", {}).get("template")
    if template is None:
        return None
    metadata = {**template["metadata"], "name": "pod", "namespace": manifest["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The one container of a Job's or Deployment's pods."""
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return container


def variables(manifest: dict[str, Any]) -> dict[str, Any]:
    """Its environment: plain values, or ``secret/key``."""
    found = {}
    for variable in container_of(manifest)["env"]:
        secret = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = variable["value"] if secret is None else f"{secret['name']}/{secret['key']}"
    return found


def volumes(manifest: dict[str, Any]) -> dict[str, Any]:
    """Its volumes by where they are mounted."""
    sources = {volume["name"]: volume for volume in manifest["spec"]["template"]["spec"]["volumes"]}
    return {mount["mountPath"]: sources[mount["name"]] for mount in container_of(manifest)["volumeMounts"]}
