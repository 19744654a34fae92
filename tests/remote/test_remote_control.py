"""What is asked of a job, and what is refused before it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kd_operator import names
from kd_operator.children import context
from kd_operator.decide import ending
from statuses import UID, case, failed, job

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.reasons import Reason
from kd_runtime.artifacts.store import open_store
from kd_runtime.remote import control, explain, pods
from kd_runtime.remote.cluster import Cluster
from kd_runtime.remote.completion import job_names, part_names
from kd_runtime.remote.control import resume, retry, retryable, suspend
from kd_runtime.remote.jobs import RemoteJob
from kd_runtime.remote.reports import fetch_report, job_store, keep_report
from kd_runtime.remote.submission import local_addresses, submit

JOB = "/apis/kubedistill.io/v1alpha1/namespaces/default/distillationjobs/math-tutor"


@pytest.fixture
def patches(api: Any) -> list[dict[str, Any]]:
    """What was asked of the job on the server."""
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> dict[str, Any]:
        if request.method == "PATCH":
            assert request.headers["Content-Type"] == "application/merge-patch+json"
            assert request.url.params["fieldManager"] == "kubedistill-cli"
            asked.append(json.loads(request.content))
        return dict(api.held)

    api.answers[JOB] = answer
    return asked


def test_suspend_and_resume_patch_one_field_of_this_very_job(api: Any, cluster: Cluster, patches: list[Any]) -> None:
    api.held = case("running").document()
    assert "checkpoint" in suspend(cluster, "math-tutor")
    api.held = case("suspended").document()
    assert "goes on" in resume(cluster, "math-tutor")
    assert patches == [
        {"spec": {"suspend": True}, "metadata": {"uid": UID}},
        {"spec": {"suspend": False}, "metadata": {"uid": UID}},
    ]


def test_typed_twice_they_ask_nothing(api: Any, cluster: Cluster, patches: list[Any]) -> None:
    api.held = case("suspended").document()
    assert suspend(cluster, "math-tutor") == "math-tutor is suspended already"
    api.held = case("running").document()
    assert resume(cluster, "math-tutor") == "math-tutor is not suspended"
    assert patches == []


@pytest.mark.parametrize("state", ["succeeded", "failed"])
@pytest.mark.parametrize("command", [suspend, resume])
def test_a_job_that_has_ended_can_be_neither(
    api: Any, cluster: Cluster, patches: list[Any], state: str, command: Any
) -> None:
    api.held = case(state).document()
    with pytest.raises(SettingsError, match="has ended"):
        command(cluster, "math-tutor")
    assert patches == []


def test_what_a_budget_holds_only_a_larger_budget_frees(api: Any, cluster: Cluster, patches: list[Any]) -> None:
    api.held = case("over_budget").document()
    with pytest.raises(SettingsError, match=r"spec\.budget\.maxGPUHours.*kubectl patch dj math-tutor"):
        resume(cluster, "math-tutor")
    assert patches == []


def test_a_retry_names_stage_and_a_fresh_nonce(api: Any, cluster: Cluster, patches: list[Any]) -> None:
    api.held = case("failed").document()
    assert "student will be tried once more" in retry(cluster, "math-tutor", "student")
    retry(cluster, "math-tutor", "student")
    values = [patch["metadata"]["annotations"]["kubedistill.io/retry"] for patch in patches]
    assert all(value.startswith("student/") and len(value) > len("student/") for value in values)
    assert len(set(values)) == 2


def test_rejected_rows_of_a_teacher_stage_can_be_asked_again() -> None:
    assert retryable(RemoteJob.of(case("running").document()), "answers").state == "Succeeded"


@pytest.mark.parametrize(
    ("state", "stage", "said"),
    [
        ("running", "student", "student is Running, so there is nothing to retry"),
        ("succeeded", "answers", "answers is Succeeded, so there is nothing to retry"),
        ("no_status", "answers", "answers is Waiting, so there is nothing to retry"),
        ("failed", "studnet", "has no stage studnet; did you mean student?"),
    ],
)
def test_there_must_be_something_to_retry(state: str, stage: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        retryable(RemoteJob.of(case(state).document()), stage)
    assert said in str(caught.value)


def test_a_plan_that_failed_can_be_retried() -> None:
    status = failed(Reason.StorageUnavailable, "no answer")
    plan = status.model_copy(update={"plan": status.plan and status.plan.model_copy(update={"state": "Failed"})})
    assert retryable(RemoteJob.of(job(plan)), "plan").state == "Failed"


def test_a_job_that_failed_before_its_plan_can_be_planned_again(api: Any, cluster: Cluster, patches: list[Any]) -> None:
    api.held = job(failed(Reason.NotAllowed, "allowed.images: none").model_copy(update={"plan": None}))
    assert "plan will be tried once more" in retry(cluster, "math-tutor", "plan")
    assert patches[0]["metadata"]["annotations"]["kubedistill.io/retry"].startswith("plan/")


def test_labels_and_names_are_the_operator_s() -> None:
    for name in ("JOB_LABEL", "UID_LABEL", "STAGE_LABEL", "ATTEMPT_LABEL", "COMPONENT_LABEL"):
        assert getattr(pods, name) == getattr(context, name)
    assert (control.RETRY_ANNOTATION, explain.RECONCILE_ANNOTATION) == (
        ending.RETRY_ANNOTATION,
        names.RECONCILE_ANNOTATION,
    )


@pytest.mark.parametrize("uri", ["file:///data/x.jsonl", "data/x.jsonl", ".kd/store/", "file://x"])
def test_addresses_of_this_machine_are_found_wherever_they_stand(uri: str) -> None:
    spec = {
        "dataset": {"uri": uri, "template": "s3://b/t.jinja"},
        "stages": [{"name": "a"}, {"publish": {"targets": [{"uri": "s3://b/p/"}, {"uri": uri}]}}],
    }
    found = list(local_addresses(spec, "spec"))
    assert [error.path for error in found] == ["spec.dataset.uri", "spec.stages[1].publish.targets[1].uri"]
    assert "no pod of the cluster sees it" in str(found[0])


@pytest.mark.parametrize("uri", ["s3://b/k", "hf://o/n", "hf://datasets/x"])
def test_addresses_that_pods_see_are_left_alone(uri: str) -> None:
    assert list(local_addresses({"dataset": {"uri": uri}}, "spec")) == []


def with_store(document: dict[str, Any], uri: str) -> RemoteJob:
    document["spec"]["artifacts"] = {"uri": uri}
    return RemoteJob.of(document)


def test_the_report_is_the_plan_s_and_comes_from_the_job_s_store(tmp_path: Path) -> None:
    found = with_store(case("succeeded").document(), f"file://{tmp_path}/store/")
    store = open_store(f"file://{tmp_path}/store/")
    store.put(f"reports/{'d' * 64}.html", b"<html>all well</html>")
    html = fetch_report(job_store(found), found)
    path = keep_report(html, found, tmp_path / "report.html")
    assert path.read_text() == "<html>all well</html>"
    kept = keep_report(html, found, None)
    assert (kept.read_bytes(), kept.stat().st_mode & 0o077) == (html, 0)
    kept.unlink()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("first_write", "has no plan yet, so no report"),
        ("running", "is not there; the last stage writes it"),
        ("failed", "the job ended before a stage wrote it"),
    ],
)
def test_a_report_that_is_not_there_says_why(tmp_path: Path, state: str, said: str) -> None:
    found = with_store(case(state).document(), f"file://{tmp_path}/store/")
    with pytest.raises(SettingsError, match=said):
        fetch_report(job_store(found), found)


def test_the_store_is_reached_as_the_job_says_or_as_this_machine_must() -> None:
    document = case("succeeded").document()
    document["spec"]["artifacts"] |= {"endpoint": "https://s3.example.com", "region": "eu-1"}
    found = RemoteJob.of(document)
    store: Any = job_store(found)
    assert (store.uri, store._endpoint, store._region) == ("s3://team-a/kd/", "https://s3.example.com", "eu-1")
    other: Any = job_store(found, "http://127.0.0.1:9000")
    assert other._endpoint == "http://127.0.0.1:9000"


@pytest.mark.parametrize("parameters", [{"kubeconfig": "/nowhere"}, {"context": "none"}, {}])
def test_completion_without_a_cluster_offers_nothing_and_says_nothing(
    parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert job_names(parameters, "m") == []
    assert part_names({**parameters, "job": "math-tutor"}, "", logs=True) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("metadata", [[1], "x"])
def test_a_job_whose_metadata_is_no_map_is_refused_before_anything_is_asked_to_change(
    api: Any, cluster: Cluster, tmp_path: Path, metadata: object
) -> None:
    runtime = {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "ClusterDistillationRuntime",
        "metadata": {"name": "cuda"},
    }
    api.answers["/apis/kubedistill.io/v1alpha1/clusterdistillationruntimes/cuda"] = runtime
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**case("succeeded").document(), "kind": "DistillationJob", "metadata": metadata}))
    with pytest.raises(SettingsError, match=r"metadata: .*is a (list|string), not a map"):
        submit(cluster, path)
    assert {request.method for request in api.requests} == {"GET"}
