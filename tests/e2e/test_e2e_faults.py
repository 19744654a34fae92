"""Faults on a real node: whatever is killed, the same student comes out, and nothing that was committed is asked again."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from artifacts.faulty_proxy import Fault, faulty_proxy
from e2e.asked import asked, halted_capture
from e2e.tiny_jobs import (
    SECONDS,
    STAGES,
    STEPS,
    copy_store,
    in_training,
    pods_watched,
    student_digest,
    tiny_job,
    training_steps,
)
from kit import crash, revive
from real_node import NAMESPACE, OPERATOR_NAMESPACE, Node, condition, phase, stages

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

Wound = Callable[[Node, str], None]


def killed_trainer(node: Node, name: str) -> None:
    node.kill_9(node.pods(name, "student")[1]["metadata"]["name"])


def evicted_trainer(node: Node, name: str) -> None:
    pod = node.pods(name, "student")[0]["metadata"]["name"]
    eviction = f'{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{pod}"}}}}'
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    node.kubectl("create", "--raw", path, "-f", "-", stdin=eviction)


def killed_operator(node: Node, name: str) -> None:
    node.kill_9(node.operator_pod(), OPERATOR_NAMESPACE)


def suspended_and_resumed(node: Node, name: str) -> None:
    node.kubectl("patch", "dj", name, "-n", NAMESPACE, "--type=merge", "-p", '{"spec": {"suspend": true}}')
    seen = node.until(name, lambda job: condition(job, "Suspended").get("status") == "True", 120, "suspended")
    assert condition(seen, "ResourcesReleased")["status"] == "True"
    assert [pod for pod in node.pods(name, "student") if pod["status"]["phase"] == "Running"] == []
    node.kubectl("patch", "dj", name, "-n", NAMESPACE, "--type=merge", "-p", '{"spec": {"suspend": false}}')


def store_gone(node: Node, name: str) -> None:
    crash(node.environment, "versitygw")
    time.sleep(60)  # what the promise says: for a minute
    revive(node.environment, "versitygw")


FURTHER = pytest.mark.faults
"""In `make test-faults` alone: the suite has an end-to-end test of each kind without it."""


@pytest.mark.parametrize(
    "wound",
    [
        killed_trainer,
        pytest.param(suspended_and_resumed, marks=FURTHER),
        pytest.param(evicted_trainer, marks=FURTHER),
        pytest.param(store_gone, marks=FURTHER),
        pytest.param(killed_operator, marks=FURTHER),
    ],
)
def test_training_goes_on_to_the_same_student(node: Node, undisturbed: dict[str, Any], wound: Wound) -> None:
    name = wound.__name__.replace("_", "-")
    copy_store(node, "calm", name, without=undisturbed["keys"]["student"])
    policy = {"backoffLimit": 5, "backoff": {"baseSeconds": 5, "maxSeconds": 30}}
    node.apply(tiny_job(node, name, failurePolicy=policy))
    in_training(node, name)
    wound(node, name)
    node.succeeded(name, SECONDS)
    assert student_digest(node, name, undisturbed["keys"]["student"]) == undisturbed["student"]
    assert training_steps(node, name, undisturbed["keys"]["student"]) == list(range(1, STEPS + 1))


def test_sigterm_to_one_pod_of_two_ends_both_with_80_and_the_next_attempt_goes_on(
    node: Node, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    name = "sigterm"
    copy_store(node, "calm", name, without=undisturbed["keys"]["student"])
    node.apply(tiny_job(node, name))
    with pods_watched(node, name, tmp_path / "pods.json") as events:  # the Job takes away whichever ends later
        in_training(node, name)
        pods = [pod["metadata"]["name"] for pod in node.pods(name, "student")]
        ask = "import os; os.kill(1, 15)"
        node.kubectl("exec", "-n", NAMESPACE, pods[1], "--", "python3", "-c", ask)
        node.until(name, lambda job: job["status"]["attempts"]["disruptions"] == 1, 180, "disrupted once")
        seen = node.succeeded(name, SECONDS)
    codes = exit_codes(events)
    assert [codes[pod] for pod in pods] == [80, 80]
    assert seen["status"]["attempts"] == {"counted": 0, "disruptions": 1}
    assert student_digest(node, name, undisturbed["keys"]["student"]) == undisturbed["student"]
    assert training_steps(node, name, undisturbed["keys"]["student"]) == list(range(1, STEPS + 1))


def exit_codes(events: list[dict[str, Any]]) -> dict[str, int]:
    """How each pod's container was last seen to have ended."""
    found = {}
    for event in events:
        pod = event["object"]
        for container in pod["status"].get("containerStatuses", ()):
            ended = container["state"].get("terminated")
            if ended is not None:
                found[pod["metadata"]["name"]] = ended["exitCode"]
    return found


def test_a_trainer_out_of_memory_fails_at_once_and_says_which_limit(node: Node, undisturbed: dict[str, Any]) -> None:
    name = "greedy"
    copy_store(node, "calm", name, without=undisturbed["keys"]["student"])
    tight = json.loads(node.kubectl("get", "cdr", "cpu", "-o", "json"))
    tight["metadata"] = {"name": "tight"}
    few = {"cpu": "250m", "memory": "300Mi"}
    tight["spec"].setdefault("pod", {})["trainer"] = {"resources": {"requests": few, "limits": few}}
    node.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(tight))
    train = {**STAGES[2], "resources": {"nodes": 2}}
    job = tiny_job(node, name, runtimeRef={"name": "tight"}, stages=[*STAGES[:2], train])
    node.apply(job)
    seen = node.until(name, lambda job: phase(job) == "Failed", SECONDS, "Failed")
    failed = condition(seen, "Failed")
    assert failed["reason"] == "HostOutOfMemory", failed
    assert "resources.memory" in failed["message"]
    assert seen["status"]["attempts"]["counted"] == 0
    student = next(stage for stage in stages(seen) if stage["name"] == "student")
    assert student["lastFailure"]["reason"] == "OOMKilled"


TORN = (Fault.Slow, Fault.Truncated, Fault.Reset, Fault.Dropped, Fault.Unsaid, Fault.Refused)
LATE_SECONDS = 2.0


@FURTHER
def test_a_store_that_is_slow_and_torn_from_the_first_read_to_the_last_write_changes_nothing(
    node: Node, undisturbed: dict[str, Any]
) -> None:
    """Every seventh request of any pod goes wrong, each in the next way of `TORN`; one in 23 is answered late."""
    name = "torn"
    lock = threading.Lock()
    number = itertools.count(1)
    happened: Counter[tuple[str, Fault]] = Counter()

    def judge(method: str, path: str, body: bytes) -> Fault | None:
        with lock:
            now = next(number)
            fault = TORN[now // 7 % len(TORN)] if now % 7 == 0 else None
            if fault is not None:
                happened[method, fault] += 1
        if now % 23 == 0:
            time.sleep(LATE_SECONDS)
        return fault

    with asked(node, name) as teacher, faulty_proxy(node.endpoint, urlsplit(node.endpoint).hostname or "") as proxy:
        proxy.judge = judge
        job = tiny_job(node, name)
        job["spec"]["artifacts"]["endpoint"] = proxy.url
        node.apply(job)
        seen = node.succeeded(name, SECONDS)
    assert all(happened["GET", fault] > 0 and happened["PUT", fault] > 0 for fault in TORN), happened
    assert {stage["name"]: stage["key"] for stage in stages(seen)} == undisturbed["keys"]
    assert student_digest(node, name, undisturbed["keys"]["student"]) == undisturbed["student"]
    assert training_steps(node, name, undisturbed["keys"]["student"]) == list(range(1, STEPS + 1))
    teacher.check()
    assert seen["status"]["attempts"]["counted"] == 0, seen["status"]["attempts"]


def killed_teacher(node: Node, name: str) -> None:
    node.kill_9(node.pods(name, "teacher")[0]["metadata"]["name"])


def killed_worker(node: Node, name: str) -> None:
    node.kill_9(node.pods(name, "logits")[0]["metadata"]["name"])


def killed_control_plane(node: Node, name: str) -> None:
    """And the operator; etcd is back before its API server."""
    killed_operator(node, name)
    for program in ("kube-apiserver", "etcd"):
        crash(node.environment, program)
    for program in ("etcd", "kube-apiserver"):
        revive(node.environment, program)


@pytest.mark.parametrize(
    "wound", [killed_teacher, *(pytest.param(wound, marks=FURTHER) for wound in (killed_control_plane, killed_worker))]
)
def test_capture_goes_on_to_the_same_student_and_asks_nothing_again_that_was_committed(
    node: Node, undisturbed: dict[str, Any], wound: Wound
) -> None:
    name = wound.__name__.replace("_", "-")
    with asked(node, name) as proxy:
        node.apply(tiny_job(node, name))
        with halted_capture(node, name, proxy):
            wound(node, name)
        seen = node.succeeded(name, SECONDS)
    proxy.check()
    assert {stage["name"]: stage["key"] for stage in stages(seen)} == undisturbed["keys"]
    assert student_digest(node, name, undisturbed["keys"]["student"]) == undisturbed["student"]
    assert training_steps(node, name, undisturbed["keys"]["student"]) == list(range(1, STEPS + 1))
    assert seen["status"]["attempts"] == {"counted": 0, "disruptions": 0}
