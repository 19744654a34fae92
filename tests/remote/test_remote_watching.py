"""`kd watch` follows a job until it ends, and says how."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console
from statuses import case

from kd_runtime.api.failures import ExitClass, SettingsError
from kd_runtime.remote.cluster import Cluster
from kd_runtime.remote.watching import watch_job, watch_namespace

JOB = "/apis/kubedistill.io/v1alpha1/namespaces/default/distillationjobs/math-tutor"


def watch(api: Any, cluster: Cluster, *states: Any, terminal: bool = False) -> tuple[ExitClass, str, list[float]]:
    """What is printed while the job goes through ``states``: a case's name, an object, or an answer."""
    left: Iterator[Any] = iter(states)

    def answer(_: httpx.Request) -> Any:
        state = next(left)
        return case(state).document() if isinstance(state, str) else state

    api.answers[JOB] = answer
    console = Console(width=110, file=io.StringIO(), force_terminal=terminal, color_system=None, record=True)
    slept: list[float] = []
    ended = watch_job(cluster, "math-tutor", console, sleep=slept.append)
    assert next(left, None) is None
    return ended, console.export_text(), slept


@pytest.mark.parametrize("terminal", [True, False])
def test_it_ends_with_the_job_and_its_class(api: Any, cluster: Cluster, terminal: bool) -> None:
    ended, text, slept = watch(api, cluster, "no_status", "planning", "running", "succeeded", terminal=terminal)
    assert ended is ExitClass.Done
    assert len(slept) == 3
    assert "succeeded  s3://models/math-tutor/" in text
    assert "kubectl kd report math-tutor" in text


def test_a_failure_says_what_to_do_and_where_the_log_is(api: Any, cluster: Cluster) -> None:
    ended, text, _ = watch(api, cluster, "running", "failed")
    assert ended is ExitClass.HostOutOfMemory
    assert "Raise the memory that the message names." in text
    assert "kubectl kd logs math-tutor student" in text


def test_without_a_terminal_it_prints_a_line_a_change(api: Any, cluster: Cluster) -> None:
    _, text, _ = watch(api, cluster, "planning", "planning", "running", "running", "succeeded")
    lines = [line for line in text.splitlines() if "math-tutor " in line and ":" in line[:3]]
    assert [line.split()[2] for line in lines] == ["Planning", "Running", "Succeeded"]
    assert "student Running 504/1,200 steps 8,123 tokens/s 18 min left" in lines[1]
    assert "━" not in text


def test_a_server_that_does_not_answer_is_waited_for(api: Any, cluster: Cluster) -> None:
    silence = [httpx.Response(503, json={"message": "etcd is away"}) for _ in range(3)]
    ended, text, _ = watch(api, cluster, "running", *silence, "succeeded")
    assert ended is ExitClass.Done
    assert "etcd is away" in text


def test_a_job_that_is_deleted_or_made_anew_meanwhile_is_over(api: Any, cluster: Cluster) -> None:
    gone = httpx.Response(404, json={"reason": "NotFound", "message": "not found", "details": {"name": "math-tutor"}})
    ended, text, _ = watch(api, cluster, "running", gone)
    assert ended is ExitClass.Killed
    assert "math-tutor was deleted" in text
    anew = case("first_write").document()
    anew["metadata"]["uid"] = "another"
    assert watch(api, cluster, "running", anew)[0] is ExitClass.Killed


def test_a_job_that_is_not_there_is_an_error(api: Any, cluster: Cluster) -> None:
    api.answers[JOB.rpartition("/")[0]] = {"items": []}
    with pytest.raises(SettingsError, match="no job math-tutor in namespace default"):
        watch_job(cluster, "math-tutor", Console(file=io.StringIO()))


def test_all_jobs_are_shown_once_where_there_is_no_terminal(api: Any, cluster: Cluster) -> None:
    api.job(case("running").document())
    console = Console(width=120, file=io.StringIO(), record=True)
    watch_namespace(cluster, console)
    assert "18 min left" in console.export_text()


def test_an_empty_namespace_says_so(api: Any, cluster: Cluster) -> None:
    api.answers[JOB.rpartition("/")[0]] = {"items": []}
    console = Console(width=120, file=io.StringIO(), record=True)
    watch_namespace(cluster, console)
    assert "no job in namespace default (context here)" in console.export_text()


class Enough(Exception):
    """The person types Ctrl-C."""


def test_all_jobs_are_shown_anew_on_a_terminal(api: Any, cluster: Cluster) -> None:
    api.job(case("planning").document())
    console = Console(width=120, file=io.StringIO(), force_terminal=True, color_system=None)
    states = iter([case("running").document(), case("succeeded").document()])

    def sleep(_: float) -> None:
        document = next(states, None)
        if document is None:
            raise Enough
        api.job(document)

    with pytest.raises(Enough):
        watch_namespace(cluster, console, sleep=sleep)
    assert isinstance(console.file, io.StringIO)
    for phase in ("Planning", "Running", "Succeeded"):
        assert phase in console.file.getvalue()
