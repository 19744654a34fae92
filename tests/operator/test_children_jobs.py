"""How Jobs behave: workers are tried again one by one, a gang lives and ends as one, tools and plan are one try each."""

from __future__ import annotations

from typing import Any

import pytest
from job_children import context, job, only, variables
from kd_operator.children import build

from kd_runtime.api.failures import ExitClass


def stage(name: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = only(build.stage(context(document or job()), name, 1, teacher_attempt=1))["spec"]
    return spec


def codes(spec: dict[str, Any], action: str) -> set[int]:
    """Exit codes for which a Job's podFailurePolicy has ``action``."""
    rules = spec["podFailurePolicy"]["rules"]
    return {
        code for rule in rules if rule["action"] == action for code in rule.get("onExitCodes", {}).get("values", ())
    }


def test_workers_share_a_stage_and_are_each_tried_again_by_themselves() -> None:
    document = job(failurePolicy={"backoffLimit": 5})
    document["spec"]["stages"][0]["workers"] = 3
    spec = stage("answers", document)
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (5, 0)
    assert "backoffLimit" not in spec  # all indexes together have no limit of their own
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_exit_codes_of_workers_are_final_free_or_counted_as_contract_7_says() -> None:
    spec = stage("answers")
    final, free = codes(spec, "FailJob"), codes(spec, "Ignore")
    assert final == {64, 65, 66, 70, 71, 72, 77} == {int(kind) for kind in ExitClass if kind.final}
    assert free == {80, 143}
    counted = {int(kind) for kind in ExitClass} - final - free - {0}
    assert counted == {69, 74, 75, 78}
    first = spec["podFailurePolicy"]["rules"][0]
    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_ingest_is_one_worker() -> None:
    assert (stage("dataset")["completions"], stage("dataset")["backoffLimitPerIndex"]) == (1, 3)


def test_a_gang_is_one_attempt_and_meets_at_its_first_pod() -> None:
    service, gang = (c.manifest for c in build.stage(context(job()), "student", 4, teacher_attempt=1))
    spec = gang["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (2, 2, 0)
    assert "podFailurePolicy" not in spec
    pod = spec["template"]["spec"]
    assert (pod["restartPolicy"], pod["subdomain"]) == ("Never", "tiny-student-0f9c2-4")
    assert variables(gang)["MASTER_ADDR"] == "tiny-student-0f9c2-4-0.tiny-student-0f9c2-4"
    assert variables(gang)["MASTER_PORT"] == "29500"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()


def test_one_node_needs_no_meeting_point() -> None:
    document = job()
    document["spec"]["stages"][2]["resources"] = {"nodes": 1}
    (alone,) = build.stage(context(document), "student", 1, teacher_attempt=0)
    assert "MASTER_ADDR" not in variables(alone.manifest)  # else its ranks would not find a free port by themselves
    assert "subdomain" not in alone.manifest["spec"]["template"]["spec"]


def test_a_trainer_has_the_time_of_its_drain_and_half_a_minute() -> None:
    document = job()
    document["spec"]["stages"][2]["train"]["checkpoint"] = {"drainSeconds": 90}
    assert stage("student", document)["template"]["spec"]["terminationGracePeriodSeconds"] == 120
    assert stage("answers", document)["template"]["spec"]["terminationGracePeriodSeconds"] == 30


@pytest.mark.parametrize("name", ["exam", "release", "plan"])
def test_tools_and_plan_are_one_try_each(name: str) -> None:
    ctx = context(job())
    children = build.plan_job(ctx, 1, retry=None) if name == "plan" else build.stage(ctx, name, 1, teacher_attempt=0)
    (child,) = children
    spec = child.manifest["spec"]
    assert (spec["completions"], spec["backoffLimit"], spec["completionMode"]) == (1, 0, "Indexed")


@pytest.mark.parametrize("number", [0, 2, 3], ids=["workers", "trainer", "tools"])
def test_a_stages_timeout_ends_its_job_even_while_the_operator_is_down(number: int) -> None:
    document = job()
    document["spec"]["stages"][number]["timeoutSeconds"] = 600
    name = document["spec"]["stages"][number]["name"]
    assert stage(name, document)["activeDeadlineSeconds"] == 600
    assert "activeDeadlineSeconds" not in stage(name)


def test_claims_say_which_attempt_a_child_belongs_to_and_the_main_child_is_last() -> None:
    ctx = context(job())
    creates = [
        *build.plan_job(ctx, 2, retry=None),
        *build.teacher(ctx, "teacher", 3),
        *build.stage(ctx, "student", 4, teacher_attempt=3),
    ]
    assert [(c.claim.part, c.claim.attempt, c.manifest["kind"]) for c in creates] == [
        ("plan", 2, "Job"),
        ("teacher/teacher", 3, "Secret"),
        ("teacher/teacher", 3, "Service"),
        ("teacher/teacher", 3, "Deployment"),
        ("student", 4, "Service"),
        ("student", 4, "Job"),
    ]
