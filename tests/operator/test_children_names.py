"""Children are named by job, part, uid and attempt; they are labelled, owned by the job, and never too long for DNS."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_children import UID, context, every_child, job, without_plan
from kd_operator.children import build
from kd_operator.children.context import ChildContext
from random_jobs import contexts

DNS_LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contexts(), st.integers(1, 9999))
def test_every_hostname_and_service_is_a_dns_label(ctx: ChildContext, attempt: int) -> None:
    for child in every_child(ctx, attempt):
        kind, name = child.manifest["kind"], child.manifest["metadata"]["name"]
        longest = name
        if kind == "Job":  # the hostname of an Indexed Job's last pod
            longest = f"{name}-{child.manifest['spec']['completions'] - 1}"
        if kind in ("Job", "Service"):
            assert len(longest) <= 63
            assert DNS_LABEL.match(longest)
        assert len(name) <= 253
        for value in child.manifest["metadata"]["labels"].values():
            assert len(value) <= 63


def test_names_grow_from_job_part_uid_and_attempt() -> None:
    ctx = context(job())
    assert [(c.manifest["kind"], c.manifest["metadata"]["name"]) for c in build.teacher(ctx, "teacher", 3)] == [
        ("Secret", f"tiny-teacher-{UID}"),
        ("Service", "tiny-teacher-0f9c2-3"),
        ("Deployment", "tiny-teacher-0f9c2-3"),
    ]
    (plan,) = build.plan_job(ctx, 2, retry=None)
    assert plan.manifest["metadata"]["name"] == "tiny-plan-0f9c2-2"
    gang = build.stage(ctx, "student", 4, teacher_attempt=1)
    assert [(c.manifest["kind"], c.manifest["metadata"]["name"]) for c in gang] == [
        ("Service", "tiny-student-0f9c2-4"),
        ("Job", "tiny-student-0f9c2-4"),
    ]


def test_no_two_children_of_one_kind_have_the_same_name() -> None:
    seen = [(c.manifest["kind"], c.manifest["metadata"]["name"]) for c in every_child(context(job()))]
    assert len(seen) == len(set(seen))


def test_every_child_goes_with_the_job_even_while_the_operator_is_down() -> None:
    for child in every_child(context(job())):
        assert child.manifest["metadata"]["namespace"] == "team"
        assert child.manifest["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "kubedistill.io/v1alpha1",
                "kind": "DistillationJob",
                "name": "tiny",
                "uid": UID,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ]


def test_labels_say_job_stage_attempt_and_component() -> None:
    document = job()
    document["metadata"]["labels"] = {"team": "mine"}
    (capture,) = build.stage(context(document), "logits", 5, teacher_attempt=1)
    wanted = {
        "kubedistill.io/job": "tiny",
        "kubedistill.io/job-uid": UID,
        "kubedistill.io/stage": "logits",
        "kubedistill.io/attempt": "5",
        "kubedistill.io/component": "workers",
    }
    assert capture.manifest["metadata"]["labels"] == wanted  # and none of the job's own
    assert capture.manifest["spec"]["template"]["metadata"]["labels"] == wanted


@pytest.mark.parametrize(
    ("part", "component"),
    [
        ("plan", "plan"),
        ("teacher/teacher", "teacher"),
        ("dataset", "workers"),
        ("answers", "workers"),
        ("logits", "workers"),
        ("student", "trainer"),
        ("exam", "tools"),
        ("release", "tools"),
    ],
)
def test_every_part_has_its_component(part: str, component: str) -> None:
    main = [c.manifest for c in every_child(context(job())) if c.claim.part == part][-1]
    assert main["kind"] == ("Deployment" if component == "teacher" else "Job")
    assert main["metadata"]["labels"]["kubedistill.io/component"] == component
    assert main["metadata"]["labels"]["kubedistill.io/stage"] == part.removeprefix("teacher/")


@pytest.mark.parametrize("part", ["dataset", "answers", "logits", "student", "exam", "release", "teacher"])
def test_nothing_but_the_plan_pod_can_be_built_before_there_is_a_plan(part: str) -> None:
    ctx = without_plan(context(job()))
    with pytest.raises(ValueError, match="team/tiny: has no plan yet"):
        build.teacher(ctx, part, 1) if part == "teacher" else build.stage(ctx, part, 1, teacher_attempt=1)


def test_a_stage_or_teacher_that_the_job_does_not_have_is_a_mistake_of_the_caller() -> None:
    other: dict[str, Any] = {"external": {"baseURL": "https://t.example.com/v1", "protocol": "KD", "model": "m"}}
    ctx = context(job(teacher=other))
    with pytest.raises(KeyError):
        build.stage(ctx, "nothing", 1, teacher_attempt=0)
    with pytest.raises(KeyError):
        build.teacher(ctx, "teacher", 1)  # somebody else serves it


def test_builders_are_pure() -> None:
    ctx = context(job())
    assert list(every_child(ctx)) == list(every_child(ctx))
