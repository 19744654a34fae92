"""Requests and limits: the stage's own settings, then the runtime's, then defaults that never contradict them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from job_children import container_of, context, every_child, job, only, runtime, variables
from kd_operator.children import build
from kd_operator.children.context import ChildContext
from kd_operator.children.resources import amount
from random_jobs import contexts


def resources(name: str, own: dict[str, Any] | None = None, **pod: Any) -> dict[str, Any]:
    """Of the pods of stage ``name``, with its own ``own``, and ``pod`` in the runtime."""
    document = job()
    for stage in document["spec"]["stages"]:
        if stage["name"] == name:
            stage["resources"] = own or {}
    ctx = context(document, runtime(pod=pod))
    found: dict[str, Any] = container_of(only(build.stage(ctx, name, 1, teacher_attempt=1)))["resources"]
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contexts())
def test_no_request_exceeds_its_limit(ctx: ChildContext) -> None:
    for child in every_child(ctx):
        if child.manifest["kind"] in ("Job", "Deployment"):
            found = container_of(child.manifest)["resources"]
            for name, limit in found["limits"].items():
                assert amount(found["requests"][name]) <= amount(limit)


def test_memory_that_a_stage_asks_for_is_reserved_and_the_limit() -> None:
    found = resources("student", {"cpu": "32", "memory": "400Gi"}, trainer={"resources": {"limits": {"memory": "1Gi"}}})
    assert found == {"requests": {"cpu": "32", "memory": "400Gi"}, "limits": {"memory": "400Gi"}}


def test_a_runtimes_limit_of_cpu_gives_way_to_a_stage_that_asks_for_more() -> None:
    pod = {"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}
    assert resources("student", {"cpu": "500m"}, trainer=pod)["limits"]["cpu"] == "2"
    assert resources("student", {"cpu": "4"}, trainer=pod)["limits"]["cpu"] == "4"


def test_what_the_runtime_says_goes_before_the_defaults() -> None:
    pod = {"resources": {"requests": {"cpu": "3", "ephemeral-storage": "10Gi"}, "limits": {"memory": "100Mi"}}}
    assert resources("answers", workers=pod) == {
        "requests": {"cpu": "3", "memory": "100Mi", "ephemeral-storage": "10Gi"},
        "limits": {"memory": "100Mi"},
    }


def test_where_nobody_says_there_is_no_limit_of_cpu() -> None:
    assert resources("answers") == {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "4096Mi"}}


def test_gpus_are_counted_by_the_runtimes_name_for_them_in_both() -> None:
    document = job()
    document["spec"]["stages"][2]["resources"] = {"nodes": 2, "gpusPerNode": 8}
    ctx = context(document, runtime(gpuResourceName="amd.com/gpu"))
    found = container_of(only(build.stage(ctx, "student", 1, teacher_attempt=1)))["resources"]
    assert found["requests"]["amd.com/gpu"] == found["limits"]["amd.com/gpu"] == "8"
    assert found["requests"]["memory"] == "266240Mi"  # and memory grows with them


def test_a_teacher_gets_the_gpus_of_a_replica() -> None:
    document = job()
    document["spec"]["teacher"]["hosted"] |= {"gpusPerReplica": 4, "parallelism": {"tensor": 4}}
    found = container_of(only(build.teacher(context(document), "teacher", 1)))["resources"]
    assert found["requests"]["nvidia.com/gpu"] == found["limits"]["nvidia.com/gpu"] == "4"
    none = container_of(only(build.teacher(context(job()), "teacher", 1)))["resources"]
    assert none["requests"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize(
    ("own", "threads"),
    [({"cpu": "8"}, "8"), ({"cpu": "500m"}, "1"), ({"cpu": "32", "gpusPerNode": 8}, "4"), ({}, "1")],
    ids=str,
)
def test_a_rank_starts_as_many_threads_as_its_share_of_the_reserved_cpu(own: dict[str, Any], threads: str) -> None:
    document = job()
    document["spec"]["stages"][2]["resources"] = own
    assert (
        variables(only(build.stage(context(document), "student", 1, teacher_attempt=0)))["OMP_NUM_THREADS"] == threads
    )


@pytest.mark.parametrize(
    ("quantity", "number"), [("500m", "0.5"), ("2", "2"), ("1Ki", "1024"), ("1.5G", "1500000000"), ("10k", "10000")]
)
def test_quantities_are_compared_as_numbers(quantity: str, number: str) -> None:
    assert amount(quantity) == Decimal(number)
