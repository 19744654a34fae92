"""A node that is lost in the middle of training: its pods run on unseen, or are dead, or it stays away until it is given up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from e2e.asked import asked
from e2e.tiny_jobs import (
    SECONDS,
    STEPS,
    copy_store,
    in_training,
    pods_watched,
    student_digest,
    tiny_job,
    training_steps,
)
from kit import crash, crash_containers, revive
from real_node import OPERATOR_NAMESPACE, Node, condition

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(900)]

LOSS_SECONDS = 180.0
"""A node is taken for lost 50 s after its last sign; then its pods are marked, as they tolerate it for a second only."""
GIVEN_UP_SECONDS = 300.0
"""The pods' grace of a minute, and a minute more."""
CRAWL, WALK = 0.01, 0.25
"""Cores of a trainer pod that is to be at work for as long as all this takes, and of one that drains."""
IMPATIENT = {
    "tolerations": [
        {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
        for taint in ("unreachable", "not-ready")
    ]
}
BEAT_SECONDS = 8.0


@pytest.fixture
def another_node(node: Node) -> Iterator[None]:
    """A node that only says that it lives: where every node is silent, Kubernetes takes itself for the one that is cut off, and
    takes no pod from any."""
    now, over = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), threading.Event()
    spare: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "spare"}}
    node.apply({**spare, "spec": {"taints": [{"key": "kubedistill.io/spare", "effect": "NoSchedule"}]}})
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now}
    said = json.dumps({"status": {"conditions": [{**ready, "lastHeartbeatTime": now}]}})
    node.kubectl("patch", "node", "spare", "--subresource=status", "--type=merge", "-p", said)

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            _renew(node)

    _renew(node)
    beats = threading.Thread(target=beat)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        node.kubectl("delete", "node", "spare")


def _renew(node: Node) -> None:
    spec = {"holderIdentity": "spare", "leaseDurationSeconds": 40}
    renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "spare"}}
    node.apply({**lease, "spec": {**spec, "renewTime": renewed}}, "kube-node-lease")


def test_a_node_that_is_cut_off_while_its_pods_run_on_is_told_and_costs_no_attempt(
    node: Node, undisturbed: dict[str, Any], another_node: None, tmp_path: Path
) -> None:
    with trained(node, undisturbed, "cut-off", tmp_path), silent(node, "cut-off", drains=True):
        until(lambda: leaving(node, "cut-off"), LOSS_SECONDS, "the pods are marked", node, "cut-off")
        told(node, "cut-off")
    node.kubectl("get", "node", "spare")  # or else nothing above was what it seems
    failure = node.stage("cut-off", "student")["lastFailure"]
    assert (failure["node"], failure["reason"]) == ("node-1", "DeletionByTaintManager")
    assert failure["pod"].startswith("cut-off-student-")


def test_a_node_that_dies_with_all_its_containers_and_the_operator_costs_no_attempt(
    node: Node, undisturbed: dict[str, Any], another_node: None, tmp_path: Path
) -> None:
    restarts = operator_restarts(node)
    with trained(node, undisturbed, "power-cut", tmp_path), silent(node, "power-cut"):
        crash_containers(node.environment)
        until(lambda: leaving(node, "power-cut"), LOSS_SECONDS, "the pods are marked", node, "power-cut")
    assert operator_restarts(node) > restarts


def test_a_node_that_stays_away_is_given_up_and_the_next_attempt_waits_for_another(
    node: Node, undisturbed: dict[str, Any], another_node: None, tmp_path: Path
) -> None:
    with trained(node, undisturbed, "given-up", tmp_path), silent(node, "given-up"):
        seen = node.until(
            "given-up",
            lambda job: condition(job, "Degraded")["reason"] == "Unschedulable",
            GIVEN_UP_SECONDS,
            "given up, and without another node",
        )
        student = next(stage for stage in seen["status"]["stages"] if stage["name"] == "student")
        assert (student["state"], student["lastFailure"]["node"]) == ("Backoff", "node-1")
        assert "node-1 is lost" in student["message"]
        assert node.pods("given-up", "student") == []


@contextmanager
def trained(node: Node, undisturbed: dict[str, Any], name: str, folder: Path) -> Iterator[None]:
    """A job in the middle of training, to which anything may happen: it ends with the student of the undisturbed one, free of
    charge, after two attempts that were never there at once."""
    key = undisturbed["keys"]["student"]
    copy_store(node, "calm", name, without=key)
    policy = {"backoffLimit": 0, "backoff": {"baseSeconds": 1, "maxSeconds": 2}}
    node.apply(tiny_job(node, name, failurePolicy=policy, scheduling=IMPATIENT))
    with asked(node, name) as teacher, pods_watched(node, name, folder / "pods.json") as events:
        in_training(node, name)
        yield
        seen = node.succeeded(name, SECONDS)
    student = next(stage for stage in seen["status"]["stages"] if stage["name"] == "student")
    # a plan pod too may be taken once more from a node that has only just come back: it tolerates its taint, for a second
    disruptions = 1 + seen["status"]["plan"]["disruptions"]
    assert seen["status"]["attempts"] == {"counted": 0, "disruptions": disruptions}, node.told(name)
    assert student["disruptions"] == 1
    assert (student["attempt"], student["lastFailure"]["class"]) == (2, "Disruption")
    assert student_digest(node, name, key) == undisturbed["student"]
    assert training_steps(node, name, key) == list(range(1, STEPS + 1))
    assert teacher.seen == []
    assert most_at_once(events) == 1


@contextmanager
def silent(node: Node, name: str, *, drains: bool = False) -> Iterator[None]:
    """The node without its kubelet; trainers crawl meanwhile, so that they are not done before they are missed.

    ``drains``: they are to save what they have when the node is back.
    """
    containers = [node.container(pod["metadata"]["name"]) for pod in node.pods(name, "student")]
    for container in containers:
        node.slowed(container, CRAWL)
    crash(node.environment, "kubelet")
    try:
        yield
        for container in containers if drains else ():
            node.slowed(container, WALK)
    finally:
        revive(node.environment, "kubelet")
        node.kubectl("wait", "--for=condition=Ready", "node/node-1", "--timeout=60s")


def most_at_once(events: list[dict[str, Any]]) -> int:
    """Of how many attempts pods were there at once that had not ended."""
    alive: dict[str, str] = {}
    most = 0
    for event in events:
        pod = event["object"]
        name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]
        alive.pop(name, None)
        if event["type"] != "DELETED" and pod["status"]["phase"] not in ("Succeeded", "Failed"):
            alive[name] = labels["kubedistill.io/attempt"]
        most = max(most, len(set(alive.values())))
    return most


def leaving(node: Node, name: str) -> bool:
    """Whether all trainers are marked for deletion."""
    pods = node.pods(name, "student")
    return len(pods) == 2 and all("deletionTimestamp" in pod["metadata"] for pod in pods)


def operator_restarts(node: Node) -> int:
    """How often the operator's container was started anew."""
    pod = node.get("pod", node.operator_pod(), OPERATOR_NAMESPACE)
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def told(node: Node, name: str) -> None:
    """While the node is away, the job says so wherever one looks."""
    seen = node.until(
        name, lambda job: "must leave" in condition(job, "Degraded")["message"], 30, "told of its node's loss"
    )
    for kind in ("Degraded", "Ready"):
        said = condition(seen, kind)
        assert said["reason"] == "NodeNotReady", said
        assert said["message"].startswith("node node-1 has not been ready since ")
    student = next(stage for stage in seen["status"]["stages"] if stage["name"] == "student")
    assert student["reason"] == "NodeNotReady"
    assert student["lastFailure"]["node"] == "node-1"
    assert seen["status"]["attempts"]["disruptions"] == 0
    events = node.list("events")
    assert any(e["reason"] == "NodeNotReady" and e["involvedObject"]["name"] == name for e in events)


def until(holds: Any, seconds: float, what: str, node: Node, job: str) -> None:
    """Wait until something of the cluster is so."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, f"not in {seconds:.0f} s: {what}\n{node.told(job)}"
        time.sleep(0.5)
