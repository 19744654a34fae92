"""Which changes of a child wake its job, and which of those may wait for the next."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kd_operator.queue import Haste
from kd_operator.triggers import Forgetful, child_seen, haste

Object = dict[str, Any]


def child(kind: str = "Job", deleted: str | None = None, **status: Any) -> Object:
    metadata = {"name": "c", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    if deleted is not None:
        metadata["deletionTimestamp"] = deleted
    return {"kind": kind, "metadata": metadata, "spec": {"containers": [{"name": "stage"}]}, "status": status}


def condition(type: str, status: str = "True", reason: str = "") -> dict[str, str]:
    return {"type": type, "status": status, "reason": reason, "lastProbeTime": "whenever"}


def container(**more: Any) -> list[Object]:
    return [{"name": "stage", "restartCount": 0, **more}]


DELETED = "2026-01-01T00:00:00Z"
TERMINATED = {"terminated": {"exitCode": 0, "message": "{}"}}


@pytest.mark.parametrize(
    "changed",
    [
        child(deleted=DELETED),
        child(conditions=[condition("Complete")]),
        child(conditions=[condition("FailureTarget", reason="PodFailurePolicy")]),
        child("Deployment", readyReplicas=1),
        child("Pod", deleted=DELETED),
        child("Pod", phase="Running"),
        child("Pod", conditions=[condition("Ready")]),
        child("Pod", conditions=[condition("DisruptionTarget")]),
        child("Pod", containerStatuses=container(state=TERMINATED)),
        child("Pod", containerStatuses=container(state={"waiting": {"reason": "ImagePullBackOff"}})),
    ],
)
def test_what_a_look_would_read_counts(changed: Object) -> None:
    assert child_seen(changed) != child_seen(child(changed["kind"]))


@pytest.mark.parametrize(
    "changed",
    [
        child(active=1, ready=1, uncountedTerminatedPods={"succeeded": ["u"]}, startTime="now"),
        child("Deployment", observedGeneration=3, updatedReplicas=1),
        child("Deployment", conditions=[condition("Progressing", "False", "ProgressDeadlineExceeded")]),
        child("Pod", conditions=[condition("PodReadyToStartContainers"), condition("Initialized")], podIP="10.0.0.1"),
    ],
)
def test_what_no_look_would_read_does_not(changed: Object) -> None:
    assert child_seen(changed) == child_seen(child(changed["kind"]))


@pytest.mark.parametrize(
    ("type", "changed"),
    [
        ("ADDED", child()),
        ("ADDED", child("Pod", phase="Pending")),
        ("MODIFIED", child("Pod", phase="Pending", conditions=[condition("PodScheduled")])),
        ("MODIFIED", child("Pod", phase="Succeeded", containerStatuses=container(state=TERMINATED))),
        ("DELETED", child("Pod", phase="Succeeded")),
        ("DELETED", child("Pod", phase="Failed")),
    ],
)
def test_what_is_followed_by_another_change_or_nobody_waits_for_can_wait(type: str, changed: Object) -> None:
    assert haste(type, child_seen(changed)) is Haste.CanWait


@pytest.mark.parametrize(
    ("type", "changed"),
    [
        ("DELETED", child()),
        ("MODIFIED", child("Pod", deleted=DELETED)),
        ("MODIFIED", child()),
        ("MODIFIED", child("Deployment")),
        ("MODIFIED", child("Pod", phase="Running")),
        ("MODIFIED", child("Pod", phase="Failed")),
        ("MODIFIED", child("Pod", phase="Succeeded", deleted=DELETED)),
        ("MODIFIED", child("Pod", phase="Pending", conditions=[condition("DisruptionTarget")])),
        (
            "MODIFIED",
            child(
                "Pod",
                phase="Pending",
                conditions=[condition("PodScheduled", "False", "Unschedulable") | {"message": "0/1"}],
            ),
        ),
        (
            "MODIFIED",
            child(
                "Pod",
                phase="Pending",
                containerStatuses=container(state={"waiting": {"reason": "ErrImagePull", "message": "no such image"}}),
            ),
        ),
    ],
)
def test_what_a_job_may_go_on_or_fail_by_cannot(type: str, changed: Object) -> None:
    assert haste(type, child_seen(changed)) is Haste.Soon


@pytest.mark.parametrize(
    ("type", "changed"),
    [
        ("MODIFIED", child(conditions=[condition("SuccessCriteriaMet")])),
        ("MODIFIED", child(conditions=[condition("Complete")])),
        ("MODIFIED", child(conditions=[condition("FailureTarget")])),
        ("MODIFIED", child("Deployment", readyReplicas=1)),
        ("DELETED", child("Pod", phase="Succeeded", deleted=DELETED)),
        ("DELETED", child("Pod", phase="Running")),
    ],
)
def test_what_a_job_goes_on_or_fails_by_is_looked_at_at_once(type: str, changed: Object) -> None:
    assert haste(type, child_seen(changed)) is Haste.AtOnce


def test_kopf_keeps_nothing_of_an_object() -> None:
    async def recalled() -> list[object]:
        memories = Forgetful()
        await memories.recall(child("Pod"), noticed_by_listing=True)
        await memories.forget(child("Pod"))
        return list(memories.iter_all_memories())

    assert asyncio.run(recalled()) == []
