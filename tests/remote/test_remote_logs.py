"""`kd logs`: all pods of a stage, each line behind its pod, in the order of time, also while they write."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console
from statuses import case

from kd_runtime.api.failures import SettingsError
from kd_runtime.remote import logs
from kd_runtime.remote.cluster import Cluster
from kd_runtime.remote.jobs import RemoteJob
from kd_runtime.remote.logs import chosen_part, show_logs

PODS = "/api/v1/namespaces/default/pods"
JOB = "/apis/kubedistill.io/v1alpha1/namespaces/default/distillationjobs/math-tutor"


def pod(name: str, stage: str = "answers", *, index: int | None = None, attempt: int = 1, started: bool = True,
        component: str = "workers") -> dict[str, Any]:  # fmt: skip
    labels = {"stage": stage, "attempt": str(attempt), "component": component}
    annotations = {} if index is None else {"batch.kubernetes.io/job-completion-index": str(index)}
    state = {"running": {}} if started else {"waiting": {"reason": "ContainerCreating"}}
    return {
        "metadata": {
            "name": name,
            "labels": {f"kubedistill.io/{k}": v for k, v in labels.items()},
            "annotations": annotations,
            "creationTimestamp": f"2026-01-05T10:00:0{attempt}Z",
        },
        "spec": {"containers": [{"name": "stage"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "stage", "state": state}]},
    }


def at(second: int, text: str) -> str:
    return f"2026-01-05T10:00:{second:02d}.123456789Z {text}\n"


@pytest.fixture
def hold(api: Any) -> Any:
    """Puts a job and pods with their logs on the server."""

    def put(name: str, *pods: tuple[dict[str, Any], Any]) -> None:
        api.job(case(name).document())
        api.answers[PODS] = {"items": [one for one, _ in pods]}
        for one, log in pods:
            api.answers[f"{PODS}/{one['metadata']['name']}/log"] = log

    return put


def printed(cluster: Cluster, part: str | None = "answers", **options: Any) -> str:
    console = Console(width=100, file=io.StringIO(), record=True, soft_wrap=True)
    show_logs(cluster, "math-tutor", part, console, **options)
    return console.export_text()


def test_lines_of_all_pods_are_in_the_order_of_time_behind_their_pod(cluster: Cluster, hold: Any) -> None:
    hold(
        "running",
        (pod("math-tutor-answers-0a1b2-1-0-aaaaa", index=0), at(1, "zero begins") + at(3, "zero ends")),
        (pod("math-tutor-answers-0a1b2-1-1-bbbbb", index=1), at(2, "one begins") + at(4, "one ends")),
    )
    assert printed(cluster).splitlines() == [
        "answers-0 │ zero begins",
        "answers-1 │ one begins",
        "answers-0 │ zero ends",
        "answers-1 │ one ends",
    ]


def test_a_pod_that_took_another_s_place_is_told_from_it(cluster: Cluster, hold: Any) -> None:
    hold("running", (pod("p-0-aaaaa", index=0), at(1, "first")), (pod("p-0-bbbbb", index=0), at(2, "second")))
    assert printed(cluster).splitlines() == ["answers-0       │ first", "answers-0-bbbbb │ second"]


def test_only_the_newest_attempt_is_shown_unless_another_is_asked_for(cluster: Cluster, hold: Any) -> None:
    hold("running", (pod("p-1-aaaaa", attempt=1), at(1, "old")), (pod("p-2-bbbbb", attempt=2), at(2, "new")))
    assert "old" not in printed(cluster)
    assert printed(cluster, attempt=1) == "answers-aaaaa │ old\n"


def test_other_stages_stay_out_and_the_teacher_can_be_asked_for(cluster: Cluster, hold: Any) -> None:
    hold(
        "running",
        (pod("p-aaaaa"), at(1, "worker")),
        (pod("t-bbbbb", "teacher", component="teacher"), at(2, "weights")),
        (pod("plan-ccccc", "plan", component="plan"), at(3, "resolving")),
    )
    assert "worker" in printed(cluster)
    assert printed(cluster, "teacher") == "teacher-bbbbb │ weights\n"
    assert printed(cluster, "plan") == "plan-ccccc │ resolving\n"


def test_what_a_pod_writes_cannot_command_the_terminal(cluster: Cluster, hold: Any) -> None:
    hold("running", (pod("p-aaaaa"), at(1, "\x1b]0;owned\x07\x1b[2J10 %\r100 % [bold]x[/bold]")))
    assert printed(cluster) == "answers-aaaaa │ 100 % [bold]x[/bold]\n"


def test_previous_and_tail_are_asked_of_the_server(api: Any, cluster: Cluster, hold: Any) -> None:
    hold("running", (pod("p-aaaaa"), at(1, "x")))
    printed(cluster, previous=True, tail=5)
    asked = dict(api.requests[-1].url.params)
    assert asked == {"timestamps": "true", "container": "stage", "previous": "true", "tailLines": "5"}


def test_only_pods_of_this_very_job_are_asked_for(api: Any, cluster: Cluster, hold: Any) -> None:
    hold("running", (pod("p-aaaaa"), at(1, "x")))
    printed(cluster)
    listed = next(request for request in api.requests if request.url.path == PODS)
    uid = case("running").document()["metadata"]["uid"]
    assert listed.url.params["labelSelector"] == f"kubedistill.io/job=math-tutor,kubedistill.io/job-uid={uid}"


@pytest.mark.parametrize(
    ("state", "part", "said"),
    [
        ("running", "logits", "no pod ran, its artifact was found"),
        ("running", "answers", "no pod is left, they go with the job's retention"),
        ("queued", "answers", "no pod is there yet; `kubectl kd explain math-tutor` says why, -f waits for it"),
        ("running", "student", "no pod is there yet"),
    ],
)
def test_why_there_is_no_log_is_said(cluster: Cluster, hold: Any, state: str, part: str, said: str) -> None:
    hold(state)
    with pytest.raises(SettingsError, match=said):
        printed(cluster, part)


def test_a_pod_that_has_not_started_is_said(cluster: Cluster, hold: Any) -> None:
    hold("running", (pod("p-aaaaa", started=False), "never read"))
    with pytest.raises(SettingsError, match="no pod of it has started; `kubectl kd explain math-tutor` says why"):
        printed(cluster)


def test_a_stage_that_the_job_lacks_has_names_like_it(cluster: Cluster, hold: Any) -> None:
    hold("running")
    with pytest.raises(SettingsError, match=r"math-tutor has no stage answer; did you mean answers\?"):
        printed(cluster, "answer")


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ("failed", "student"),
        ("running", "student"),
        ("succeeded", "release"),
        ("first_write", "plan"),
        ("backoff", "answers"),
    ],
)
def test_without_a_stage_it_is_the_one_that_matters(state: str, part: str) -> None:
    assert chosen_part(RemoteJob.of(case(state).document()), None) == part


class Broken(httpx.SyncByteStream):
    """A log whose connection breaks."""

    def __init__(self, text: str):
        self._text = text

    def __iter__(self) -> Iterator[bytes]:
        yield self._text.encode()
        raise httpx.ReadError("connection reset")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.02)


@pytest.mark.usefixtures("impatient")
def test_following_ends_with_the_stage_and_loses_and_repeats_nothing_when_a_connection_breaks(
    api: Any, cluster: Cluster, hold: Any
) -> None:
    asked: list[dict[str, str]] = []

    def log(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        if "sinceTime" not in request.url.params:
            return httpx.Response(200, stream=Broken(at(1, "one") + at(2, "two")))
        api.job(case("running").document())  # where answers is done
        return httpx.Response(200, text=at(2, "two") + at(3, "three"))

    hold("backoff", (pod("p-aaaaa"), log))
    assert printed(cluster, follow=True).splitlines() == [f"answers-aaaaa │ {n}" for n in ("one", "two", "three")]
    assert asked[1]["sinceTime"].startswith("2026-01-05T10:00:02")


@pytest.mark.usefixtures("impatient")
def test_following_waits_for_pods_and_takes_up_new_ones(api: Any, cluster: Cluster, hold: Any) -> None:
    hold("queued")
    first, second = pod("p-1-aaaaa"), pod("p-2-bbbbb", attempt=2)
    pages = [[], [first], [first], [first, second]]

    def listed(_: httpx.Request) -> dict[str, Any]:
        if len(pages) == 1:
            api.job(case("running").document())
        return {"items": pages.pop(0) if len(pages) > 1 else pages[0]}

    api.answers[PODS] = listed
    api.answers[f"{PODS}/p-1-aaaaa/log"] = at(1, "first attempt")
    api.answers[f"{PODS}/p-2-bbbbb/log"] = at(2, "second attempt")
    text = printed(cluster, follow=True)
    assert "first attempt" in text
    assert "second attempt" in text


@pytest.mark.usefixtures("impatient")
def test_following_survives_a_pod_that_is_deleted(api: Any, cluster: Cluster, hold: Any) -> None:
    hold("running", (pod("p-aaaaa"), at(1, "here")), (pod("p-bbbbb"), "gone"))
    del api.answers[f"{PODS}/p-bbbbb/log"]
    assert "here" in printed(cluster, follow=True)


@pytest.mark.usefixtures("impatient")
def test_following_a_stage_without_pods_ends_with_why(cluster: Cluster, hold: Any) -> None:
    hold("running")
    with pytest.raises(SettingsError, match="no pod ran, its artifact was found"):
        printed(cluster, "logits", follow=True)
