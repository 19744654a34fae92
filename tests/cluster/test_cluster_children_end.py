"""How the real Job controller ends the children: what is final, what is tried again, what is free (on simulated nodes)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_server import Server, api_server
from job_children import context, job, only, runtime
from kd_operator.children import build

pytestmark = pytest.mark.cluster

NAMESPACE = "default"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with simulated nodes, where a pod ends as its annotations say."""
    with api_server("--kwok", "4") as ready:
        yield ready


def started(server: Server, name: str, stage: str, backoff_limit: int = 1, **ending: str) -> str:
    """Create stage ``stage`` of a job called ``name``, whose pods end by ``ending``; the batch Job's name."""
    document = job(failurePolicy={"backoffLimit": backoff_limit})
    document["metadata"]["name"] = name
    document["spec"]["stages"][0]["workers"] = 2
    annotations = {f"kit/{word.replace('_', '-')}": value for word, value in ending.items()}
    pods = {component: {"annotations": annotations} for component in ("workers", "trainer", "tools")}
    ctx = context(document, runtime(pod=pods), NAMESPACE)
    manifest = only(build.stage(ctx, stage, 1, teacher_attempt=1))
    # the owner would be collected: no such job is there
    answer = server.create({**manifest, "metadata": {**manifest["metadata"], "ownerReferences": []}}, dry_run=False)
    assert answer.status_code == 201, answer.json()["message"]
    return str(manifest["metadata"]["name"])


def ended(server: Server, name: str, condition: str) -> dict[str, Any]:
    """Why a Job ended so, once it has: its condition, with the numbers of its pods."""
    waited = server.kubectl("wait", f"--for=condition={condition}", f"job/{name}", "--timeout=90s")
    assert waited.returncode == 0, waited.stderr + server.kubectl("describe", "job", name).stdout
    status = json.loads(server.kubectl("get", "job", name, "-o", "json").stdout)["status"]
    (found,) = [c for c in status["conditions"] if c["type"] == condition]
    return {**status, "reason": found.get("reason", "")}


def test_workers_that_find_no_units_left_complete_their_job(server: Server) -> None:
    done = ended(server, started(server, "done", "answers", exit_code="0"), "Complete")
    assert (done["succeeded"], done.get("failed", 0)) == (2, 0)


@pytest.mark.parametrize("code", ["65", "77"])
def test_a_final_ending_ends_the_job_at_once(server: Server, code: str) -> None:
    failed = ended(server, started(server, f"final-{code}", "answers", exit_code=code), "Failed")
    assert failed["reason"] == "PodFailurePolicy"
    assert failed["failed"] <= 2  # no worker was started again


def test_a_passing_failure_is_tried_again_as_often_as_backoff_limit_says(server: Server) -> None:
    failed = ended(server, started(server, "again", "answers", backoff_limit=1, exit_code="75"), "Failed")
    assert failed["reason"] == "MaxFailedIndexesExceeded"
    assert failed["failed"] >= 3  # the index that failed for good was there twice


def test_a_gang_ends_with_its_first_failure(server: Server) -> None:
    failed = ended(server, started(server, "gang", "student", backoff_limit=9, exit_code="75"), "Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    assert failed["failed"] <= 2


def test_a_tool_is_not_tried_again_by_its_job(server: Server) -> None:
    failed = ended(server, started(server, "tool", "exam", backoff_limit=9, exit_code="75"), "Failed")
    assert (failed["reason"], failed["failed"]) == ("BackoffLimitExceeded", 1)


def test_an_evicted_worker_is_replaced_and_not_counted(server: Server) -> None:
    """Even where no failure at all is allowed."""
    name = started(server, "evicted", "answers", backoff_limit=0, run_for="300s")
    ready = server.kubectl("wait", "--for=jsonpath={.status.ready}=2", f"job/{name}", "--timeout=60s")
    assert ready.returncode == 0, ready.stderr
    first = pods(server, name)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first[0], "namespace": NAMESPACE}}
    url = f"/api/v1/namespaces/{NAMESPACE}/pods/{first[0]}/eviction"
    assert server.client.post(url, json=eviction).status_code == 201
    gone = server.kubectl("wait", "--for=delete", f"pod/{first[0]}", "--timeout=60s")
    assert gone.returncode == 0, gone.stderr
    again = server.kubectl("wait", "--for=jsonpath={.status.ready}=2", f"job/{name}", "--timeout=60s")
    assert again.returncode == 0, again.stderr
    status = json.loads(server.kubectl("get", "job", name, "-o", "json").stdout)["status"]
    assert "conditions" not in status  # it goes on
    assert not status["failedIndexes"]
    assert len({*pods(server, name), *first}) == 3


def pods(server: Server, name: str) -> list[str]:
    """Names of the Job's pods that are there."""
    found = server.kubectl("get", "pods", "-l", f"job-name={name}", "-o", "json")
    return [pod["metadata"]["name"] for pod in json.loads(found.stdout)["items"]]
