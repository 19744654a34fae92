"""From objects as a real API server tells them to what is seen of them."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from kd_operator.cluster.reading import main_child, node_is_ready, peer_seen, pod_seen
from kd_operator.observed import Ending

UID = "5e4d8a5c-0a56-4f8e-9f3e-3f3f0c7b5a11"

POD: dict[str, Any] = {
    "metadata": {
        "name": "tutor-student-5e4d8-2-1-x7k2p",
        "namespace": "team-a",
        "uid": "0a0a",
        "labels": {
            "kubedistill.io/job": "tutor",
            "kubedistill.io/job-uid": UID,
            "kubedistill.io/stage": "student",
            "kubedistill.io/attempt": "2",
            "kubedistill.io/component": "trainer",
            "batch.kubernetes.io/job-completion-index": "1",
        },
        "annotations": {"batch.kubernetes.io/job-completion-index": "1"},
        "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": "tutor-student-5e4d8-2", "uid": "j0b", "controller": True}
        ],
    },
    "spec": {
        "nodeName": "gpu-7",
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "containers": [
            {"name": "stage", "resources": {"limits": {"cpu": "8", "nvidia.com/gpu": "8"}}},
            {"name": "sidecar", "resources": {}},
        ],
    },
    "status": {
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True"},
        ],
        "containerStatuses": [
            {"name": "sidecar", "restartCount": 9, "state": {"running": {"startedAt": "2025-01-01T00:00:00Z"}}},
            {"name": "stage", "restartCount": 0, "state": {"running": {"startedAt": "2026-03-01T10:00:05Z"}}},
        ],
    },
}


def pod(**status: Any) -> dict[str, Any]:
    changed = copy.deepcopy(POD)
    changed["status"] |= status
    return changed


def main(state: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"name": "stage", "restartCount": 0, "state": state, **more}]


def test_a_running_pod_tells_whose_it_is_where_it_runs_and_what_it_holds() -> None:
    seen = pod_seen(POD)
    assert (seen.component, seen.stage, seen.attempt, seen.index) == ("trainer", "student", 2, 1)
    assert (seen.owner_uid, seen.node, seen.phase, seen.ready) == ("j0b", "gpu-7", "Running", True)
    assert (seen.gpus, seen.gpu_flavor) == (8, "NVIDIA-H100-80GB-HBM3")
    assert seen.started == datetime(2026, 3, 1, 10, 0, 5, tzinfo=UTC)
    assert seen.restarts == 0
    assert seen.ending is None
    assert seen.alive


def test_gpus_are_those_of_the_runtimes_resource() -> None:
    raw = copy.deepcopy(POD)
    raw["spec"].pop("nodeSelector")
    raw["spec"]["containers"][0]["resources"]["limits"] = {"amd.com/gpu": "4"}
    assert (pod_seen(raw).gpus, pod_seen(raw).gpu_flavor) == (0, "")
    seen = pod_seen(raw, "amd.com/gpu")
    assert (seen.gpus, seen.gpu_flavor) == (4, "amd.com/gpu")


def test_the_first_containers_end_is_the_pods() -> None:
    terminated = {
        "exitCode": 137,
        "signal": 9,
        "reason": "OOMKilled",
        "message": '{"class":72}',
        "startedAt": "2026-03-01T10:00:05Z",
        "finishedAt": "2026-03-01T10:07:00Z",
    }
    seen = pod_seen(pod(phase="Failed", containerStatuses=main({"terminated": terminated})))
    assert seen.ending == Ending(
        exit_code=137,
        signal=9,
        reason="OOMKilled",
        message='{"class":72}',
        finished=datetime(2026, 3, 1, 10, 7, tzinfo=UTC),
        started=datetime(2026, 3, 1, 10, 0, 5, tzinfo=UTC),
    )
    assert not seen.alive
    assert seen.started == seen.ending.started


def test_a_container_that_was_started_again_shows_its_previous_end() -> None:
    last = {"terminated": {"exitCode": 1, "reason": "Error"}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    seen = pod_seen(pod(containerStatuses=[{"name": "stage", "restartCount": 3, "state": waiting, "lastState": last}]))
    assert seen.restarts == 3
    assert seen.last_ending is not None
    assert (seen.last_ending.exit_code, seen.last_ending.reason, seen.last_ending.message) == (1, "Error", "")
    assert (seen.waiting, seen.waiting_message) == ("CrashLoopBackOff", "back-off 10s")


def test_an_init_container_that_hangs_or_fails_is_what_is_seen() -> None:
    begun = main({"waiting": {"reason": "PodInitializing"}})
    pulling = {"name": "weights", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    seen = pod_seen(pod(phase="Pending", containerStatuses=begun, initContainerStatuses=[pulling]))
    assert (seen.waiting, seen.waiting_message) == ("ImagePullBackOff", "no such image")
    failed = {"name": "weights", "state": {"terminated": {"exitCode": 74, "reason": "Error"}}}
    seen = pod_seen(pod(phase="Failed", containerStatuses=begun, initContainerStatuses=[failed]))
    assert seen.ending is not None
    assert seen.ending.exit_code == 74
    done = {"name": "weights", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    assert pod_seen(pod(initContainerStatuses=[done])).ending is None


def test_a_pod_that_the_scheduler_cannot_place_says_why() -> None:
    raw = pod(phase="Pending", conditions=[], containerStatuses=None)
    raw["spec"].pop("nodeName")
    assert pod_seen(raw).unschedulable == ""
    raw["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    ]
    assert pod_seen(raw).unschedulable == "0/3 nodes are available"
    assert pod_seen(raw).node is None
    raw["status"]["conditions"][0]["reason"] = "SchedulingGated"
    assert pod_seen(raw).unschedulable == ""


def test_an_evicted_pod_is_disrupted_and_says_so() -> None:
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
    seen = pod_seen(pod(phase="Failed", reason="Evicted", conditions=conditions))
    assert seen.disrupted
    assert seen.pod_reason == "Evicted"


def test_a_pod_that_is_being_deleted_lives_until_it_is_gone() -> None:
    raw = pod(phase="Failed")
    raw["metadata"]["deletionTimestamp"] = "2026-03-01T10:08:00Z"
    seen = pod_seen(raw, node_ready=False)
    assert seen.deleted_at == datetime(2026, 3, 1, 10, 8, tzinfo=UTC)
    assert seen.alive
    assert not seen.node_ready


def test_a_pod_that_no_kubelet_has_seen_yet_is_pending() -> None:
    raw = copy.deepcopy(POD)
    raw.pop("status")
    seen = pod_seen(raw)
    assert (seen.phase, seen.started, seen.ending, seen.waiting) == ("Pending", None, None, "")


JOB: dict[str, Any] = {
    "metadata": {
        "name": "tutor-student-5e4d8-2",
        "uid": "j0b",
        "creationTimestamp": "2026-03-01T10:00:00Z",
        "labels": POD["metadata"]["labels"],
        "ownerReferences": [
            {"kind": "ConfigMap", "name": "x", "uid": "other"},
            {"kind": "DistillationJob", "name": "tutor", "uid": UID, "controller": True},
        ],
    },
    "spec": {"completions": 2},
    "status": {"active": 2},
}


@pytest.mark.parametrize(
    ("conditions", "complete", "failed", "reason"),
    [
        ([], False, False, ""),
        ([{"type": "Complete", "status": "True"}], True, False, ""),
        ([{"type": "SuccessCriteriaMet", "status": "True"}], True, False, ""),
        ([{"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy"}], False, True, "PodFailurePolicy"),
        ([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}], False, True, "BackoffLimitExceeded"),
        ([{"type": "Failed", "status": "False", "reason": "BackoffLimitExceeded"}], False, False, ""),
        ([{"type": "Suspended", "status": "True"}], False, False, ""),
    ],
)
def test_a_job_has_ended_when_its_conditions_say_so(
    conditions: list[dict[str, Any]], complete: bool, failed: bool, reason: str
) -> None:
    child = main_child({**JOB, "status": {"conditions": conditions}}, "Job")
    assert (child.complete, child.failed, child.failed_reason) == (complete, failed, reason)
    assert (child.stage, child.attempt, child.owner_uid) == ("student", 2, UID)
    assert not child.deleting


def test_a_deployment_shows_its_replicas() -> None:
    raw = {**JOB, "spec": {"replicas": 3}, "status": {"readyReplicas": 1, "conditions": []}}
    child = main_child(raw, "Deployment")
    assert (child.ready, child.desired) == (1, 3)
    child = main_child({**raw, "status": {}}, "Deployment")
    assert (child.ready, child.desired) == (0, 3)


def test_a_label_that_is_no_number_is_no_attempt() -> None:
    raw = copy.deepcopy(JOB)
    raw["metadata"]["labels"]["kubedistill.io/attempt"] = "two"
    assert main_child(raw, "Job").attempt == 0


@pytest.mark.parametrize(
    ("node", "ready"),
    [
        (None, False),
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, True),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, False),
        ({"status": {}}, False),
    ],
)
def test_a_node_is_ready_only_where_it_says_so(node: dict[str, Any] | None, ready: bool) -> None:
    assert node_is_ready(node) is ready


PEER: dict[str, Any] = {
    "metadata": {"name": "other", "uid": "0the", "creationTimestamp": "2026-03-01T09:00:00Z", "resourceVersion": "7"},
    "spec": {},
    "status": {
        "conditions": [{"type": "Complete", "status": "False"}],
        "stages": [
            {"name": "dataset", "state": "Succeeded", "key": "k0"},
            {"name": "answers", "state": "Running", "key": "k1"},
            {"name": "logits", "state": "Backoff", "key": "k2"},
            {"name": "student", "state": "Waiting", "key": "k3"},
            {"name": "exam", "state": "Starting"},
        ],
    },
}


def test_a_peer_claims_the_keys_of_stages_that_are_at_work_or_will_be_again() -> None:
    seen = peer_seen(PEER)
    assert seen is not None
    assert seen.claimed == {"k1", "k2"}
    assert peer_seen({**PEER, "status": {}}) is not None


def test_of_a_peer_that_is_left_alone_only_what_is_at_work_claims_anything() -> None:
    left_alone = {**PEER, "metadata": {**PEER["metadata"], "annotations": {"kubedistill.io/reconcile": "disabled"}}}
    seen = peer_seen(left_alone)
    assert seen is not None and seen.disabled
    for alive, claimed in (
        (set(), set()),
        ({"logits", "exam", "student"}, {"k2"}),
        ({"answers", "logits"}, {"k1", "k2"}),
    ):
        at_work = peer_seen(left_alone, alive)
        assert at_work is not None
        assert at_work.claimed == claimed


def test_a_peer_has_begun_the_stages_whose_children_it_saw() -> None:
    stages = [
        {"name": s, "state": state, "key": s, "childUID": uid}
        for s, state, uid in (
            ("a", "Running", "1"),
            ("b", "Starting", "2"),
            ("c", "Queued", None),
            ("d", "Backoff", "4"),
            ("e", "Succeeded", "5"),
        )
    ]
    seen = peer_seen({**PEER, "status": {"stages": stages}})
    assert seen is not None
    assert (seen.claimed, seen.begun) == ({"a", "b", "c", "d"}, {"a", "b"})


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"suspend": True}},
        {"metadata": {**PEER["metadata"], "deletionTimestamp": "2026-03-01T09:10:00Z"}},
        {"status": {**PEER["status"], "conditions": [{"type": "Failed", "status": "True"}]}},
        {"status": {**PEER["status"], "conditions": [{"type": "Complete", "status": "True"}]}},
    ],
)
def test_a_job_that_is_suspended_deleted_or_over_claims_nothing(change: dict[str, Any]) -> None:
    assert peer_seen({**PEER, **change}) is None
