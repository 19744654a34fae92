"""The ConfigMap pins a job and its runtime: what is read back is what was, for the plan pod and for the operator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from job_children import MANIFESTS, UID, container_of, context, context_of, job, only, runtime, volumes
from kd_operator.children import build
from kd_operator.children.context import ChildContext
from random_jobs import contexts

from kd_runtime.api.parse import load_documents, parse_job, parse_runtime
from kd_runtime.api.runtime import runtime_hash


def original(ctx: ChildContext, document: dict[str, Any]) -> dict[str, Any]:
    """A job as the API server holds it: with what users and controllers wrote beside its spec."""
    metadata = {"name": ctx.name, "namespace": "team", "uid": UID, "resourceVersion": "7", "annotations": {"a": "b"}}
    return {**document, "metadata": metadata, "status": {"phase": "Pending"}}


def pinned(ctx: ChildContext, document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    data = build.config_map(ctx, original=original(ctx, document))["data"]
    return json.loads(data["job.json"]), json.loads(data["runtime.json"])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_job_and_runtime_read_back_are_those_that_were_pinned(path: Path) -> None:
    ctx = context_of(path)
    document = next(d for d in load_documents(path) if d["kind"] == "DistillationJob")
    job_back, runtime_back = pinned(ctx, document)
    found = parse_runtime(runtime_back)
    assert runtime_hash(found) == runtime_hash(ctx.runtime)
    assert found.spec.default_settings() == ctx.runtime.spec.default_settings()
    assert parse_job(job_back, found).spec == ctx.job.spec


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contexts())
def test_any_runtime_read_back_has_the_same_hash(ctx: ChildContext) -> None:
    _, back = pinned(ctx, job())
    assert runtime_hash(parse_runtime(back)) == runtime_hash(ctx.runtime)


def test_it_holds_spec_and_identity_and_nothing_that_changes() -> None:
    ctx = context(job())
    back, _ = pinned(ctx, job())
    assert back.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert back["metadata"] == {"name": "tiny", "namespace": "team", "uid": UID}
    assert back["spec"] == job()["spec"]


def test_it_cannot_be_changed_and_fits() -> None:
    made = build.config_map(context(job()), original=original(context(job()), job()))
    assert made["immutable"] is True
    assert made["metadata"]["name"] == "tiny-config-0f9c2"
    assert sum(len(text.encode()) for text in made["data"].values()) < 1 << 20


def test_the_plan_pod_alone_reads_it_where_its_command_says() -> None:
    ctx = context(job(), runtime())
    manifest = only(build.plan_job(ctx, 1, retry=None))
    assert volumes(manifest)["/etc/kubedistill"]["configMap"] == {"name": "tiny-config-0f9c2"}
    assert {"/etc/kubedistill/job.json", "/etc/kubedistill/runtime.json"} <= set(container_of(manifest)["args"])
    assert "/etc/kubedistill" not in volumes(only(build.stage(ctx, "exam", 1, teacher_attempt=0)))
