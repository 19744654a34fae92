"""What two statuses say has happened is counted once, under labels from closed lists."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st
from kd_operator import metrics
from kd_operator.metrics import ReconcileOutcome, Words, observe_transition

from kd_runtime.api.status import JobStatus

Sample = tuple[str, tuple[tuple[str, str], ...]]


def samples() -> dict[Sample, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("kubedistill_") and not sample.name.endswith("_bucket")
    }


def counted(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, float]:
    """What a transition adds, as `name{label=value}`."""
    was = samples()
    observe_transition(None if before is None else JobStatus.model_validate(before), JobStatus.model_validate(after))
    return {
        re.sub(r"^kubedistill_", "", name) + "".join(f"{{{key}={value}}}" for key, value in labels): round(
            value - was.get((name, labels), 0),
            6,  # seconds that other tests summed up need not be whole
        )
        for (name, labels), value in samples().items()
        if value != was.get((name, labels), 0)
    }


def stage(**fields: Any) -> dict[str, Any]:
    return {"stages": [{"name": "anything", "type": "train", **fields}]}


def test_an_attempt_counts_when_it_is_claimed() -> None:
    assert counted(None, {"plan": {"attempt": 1}}) == {"attempts_total{type=plan}": 1}
    assert counted(stage(), stage(attempt=1)) == {"attempts_total{type=train}": 1}
    assert counted({}, {"teachers": [{"name": "big", "attempt": 1}]}) == {"attempts_total{type=teacher}": 1}


def test_a_failure_counts_by_its_class_and_a_disruption_apart() -> None:
    failed = {"attempt": 1, "failures": 1, "lastFailure": {"class": "HostOutOfMemory"}}
    name = "attempt_failures_total{class=HostOutOfMemory}{type=train}"
    assert counted(stage(attempt=1), stage(**failed)) == {name: 1}
    disrupted = {**failed, "disruptions": 3}
    assert counted(stage(**failed), stage(**disrupted)) == {"attempt_disruptions_total{type=train}": 3}


def test_a_retry_that_sets_counts_to_zero_takes_nothing_back() -> None:
    failed = stage(attempt=4, failures=4, lastFailure={"class": "Storage"})
    again = stage(attempt=5, failures=0, lastFailure={"class": "Storage"})
    assert counted(failed, again) == {"attempts_total{type=train}": 1}
    once_more = stage(attempt=5, failures=1, lastFailure={"class": "Storage"})
    assert counted(again, once_more) == {"attempt_failures_total{class=Storage}{type=train}": 1}


def test_a_stage_that_ends_is_timed_once() -> None:
    queued = stage(state="Starting", times={"queued": "2025-01-01T00:00:00Z"})
    times = {"queued": "2025-01-01T00:00:00Z", "started": "2025-01-01T00:00:30Z"}
    assert counted(queued, stage(state="Running", times=times)) == {
        "stage_wait_seconds_count{type=train}": 1,
        "stage_wait_seconds_sum{type=train}": 30,
    }
    done = stage(state="Succeeded", times={**times, "finished": "2025-01-01T01:00:30Z"})
    assert counted(stage(state="Running", times=times), done) == {
        "stages_finished_total{outcome=Succeeded}{type=train}": 1,
        "stage_duration_seconds_count{outcome=Succeeded}{type=train}": 1,
        "stage_duration_seconds_sum{outcome=Succeeded}{type=train}": 3600,
    }
    assert counted(done, done) == {}


def test_a_stage_that_was_found_has_no_duration() -> None:
    assert counted(stage(), stage(state="Skipped")) == {"stages_finished_total{outcome=Skipped}{type=train}": 1}


@pytest.mark.parametrize("finished", [None, "yesterday", "2025-01-01T00:00:00", "2024-01-01T00:00:00Z"])
def test_times_that_make_no_sense_are_left_out(finished: str | None) -> None:
    times = {"started": "2025-01-01T00:00:30Z", "finished": finished}
    ended = counted(stage(times=times), stage(state="Failed", times=times))
    assert ended == {"stages_finished_total{outcome=Failed}{type=train}": 1}


def test_usage_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "flavor_word", Words(most=2))
    before = {"usage": {"gpuSecondsByFlavor": {"H100": 10}, "promptTokens": 5}}
    after = {
        "usage": {
            "gpuSecondsByFlavor": {"H100": 25, "L4": 2},
            "wastedGPUSeconds": 7,
            "promptTokens": 5,
            "completionTokens": 11,
            "bytesStaged": 13,
        }
    }
    assert counted(before, after) == {
        "gpu_seconds_total{flavor=H100}": 15,
        "gpu_seconds_total{flavor=L4}": 2,
        "gpu_seconds_wasted_total": 7,
        "teacher_tokens_total{direction=Completion}": 11,
        "staged_bytes_total": 13,
    }


def test_flavors_beyond_the_first_few_share_one_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "flavor_word", Words(most=1))
    used = {"usage": {"gpuSecondsByFlavor": {"H100": 1, "L4": 2, "A10": 3}}}
    assert counted(None, used) == {"gpu_seconds_total{flavor=H100}": 1, "gpu_seconds_total{flavor=Other}": 5}


def test_a_job_that_ends_counts_once_by_its_reason() -> None:
    def ended(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
        condition = {"type": kind, "status": status, "reason": reason, "message": message}
        return {
            "conditions": [{**condition, "lastTransitionTime": "2025-01-01T00:00:00Z"}],
            "startTime": "2025-01-01T00:00:00Z",
            "completionTime": "2025-01-01T00:10:00Z",
        }

    running, failed = ended("Failed", "False", "Running"), ended("Failed", "True", "GateFailed")
    assert counted(running, failed) == {
        "jobs_finished_total{reason=GateFailed}{result=Failed}": 1,
        "job_duration_seconds_count{result=Failed}": 1,
        "job_duration_seconds_sum{result=Failed}": 600,
    }
    assert counted(failed, ended("Failed", "True", "GateFailed", "said otherwise")) == {}
    assert counted(running, ended("Ready", "True", "Succeeded")) == {}


def test_words_that_no_list_names_share_one_series() -> None:
    before, after = (
        stage(type="nonsense"),
        stage(type="nonsense", attempt=1, failures=1, lastFailure={"class": "tutor-7"}),
    )
    assert counted(before, after) == {
        "attempts_total{type=Other}": 1,
        "attempt_failures_total{class=Other}{type=Other}": 1,
    }


def test_an_open_list_has_an_end() -> None:
    word = Words(most=2)
    assert [word(name) for name in ("a", "b", "c", "a", None, "")] == ["a", "b", "Other", "a", "Other", "Other"]


WORDS = st.text(max_size=8)
STATUSES = st.builds(
    lambda kind, state, attempt, failure, phase, flavor: JobStatus.model_validate(
        {
            **stage(type=kind, state=state, attempt=attempt, failures=attempt, lastFailure={"class": failure}),
            "phase": phase,
            "usage": {"gpuSecondsByFlavor": {flavor: attempt}},
            "conditions": [{"type": "Failed", "status": "True", "reason": failure, "lastTransitionTime": phase}],
        }
    ),
    *(WORDS, WORDS, st.integers(0, 9), WORDS, WORDS, WORDS),
)


@settings(deadline=None)  # reading a registry that worlds of virtual time have filled takes longer
@given(st.none() | STATUSES, STATUSES)
def test_no_status_makes_a_series_outside_the_lists_or_takes_anything_back(
    before: JobStatus | None, after: JobStatus
) -> None:
    was = samples()
    observe_transition(before, after)
    now = samples()
    assert all(value >= was.get(name, 0) for name, value in now.items())
    types = {value for _, labels in now for key, value in labels if key == "type"}
    assert types <= {*metrics.BODIES, "ingest", "plan", "teacher", "Other"}
    reasons = {value for _, labels in now for key, value in labels if key in ("reason", "class")}
    assert len(reasons - {r.value for r in metrics.Reason} - {c.name for c in metrics.ExitClass}) <= 1


def test_the_gauge_of_phases_follows_the_newest_word_about_each_job() -> None:
    phases = metrics.Phases()

    def gauge(phase: str) -> float:
        return metrics.REGISTRY.get_sample_value("kubedistill_jobs", {"phase": phase}) or 0.0

    was = {phase: gauge(phase) for phase in (*metrics.PHASES, "Other")}
    phases.saw("team-a", "tutor", None)
    phases.saw("team-a", "tutor", None)
    phases.saw("team-b", "tutor", "Running")
    phases.saw("team-b", "third", "Dreaming")
    assert {phase: gauge(phase) - count for phase, count in was.items() if gauge(phase) != count} == {
        "Pending": 1,
        "Running": 1,
        "Other": 1,
    }
    phases.saw("team-a", "tutor", "Succeeded")
    phases.gone("team-b", "tutor")
    phases.gone("team-b", "tutor")
    assert gauge("Running") == was["Running"]
    assert gauge("Succeeded") == was["Succeeded"] + 1
    phases.clear()
    assert {phase: gauge(phase) for phase in was} == was


def test_what_the_operator_does_is_timed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "code_word", Words(most=2))  # whatever others used up of it, and left in gauges
    metrics.queue_depth(0)
    metrics.leading(False)
    was = samples()
    metrics.queue_depth(3)
    metrics.leading(True)
    metrics.taken_up(0.1)
    metrics.reconciled(0.2)
    metrics.reconciled(0.2, ReconcileOutcome.Conflict)
    metrics.reacted(0.3)
    metrics.api_request("GET", 200)
    metrics.api_request("Weird", 0)
    added = {
        name + str(dict(labels)): value - (was.get((name, labels), 0) if name.endswith(("_count", "_total")) else 0)
        for (name, labels), value in samples().items()
        if value != was.get((name, labels), 0) and not name.endswith("_sum")
    }
    assert added == {
        "kubedistill_queue_depth{}": 3,
        "kubedistill_leading{}": 1,
        "kubedistill_queue_wait_seconds_count{}": 1,
        "kubedistill_reconcile_duration_seconds_count{'outcome': 'Done'}": 1,
        "kubedistill_reconcile_duration_seconds_count{'outcome': 'Conflict'}": 1,
        "kubedistill_reaction_seconds_count{}": 1,
        "kubedistill_api_requests_total{'code': '200', 'verb': 'get'}": 1,
        "kubedistill_api_requests_total{'code': '0', 'verb': 'Other'}": 1,
    }
    metrics.leading(False)
    assert metrics.REGISTRY.get_sample_value("kubedistill_leading") == 0


def test_they_are_served_as_prometheus_reads_them() -> None:
    async def main() -> str:
        app = web.Application()
        metrics.add_routes(app)
        async with TestServer(app) as server, TestClient(server) as client:
            answer = await client.get("/metrics")
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain")
            return await answer.text()

    text = asyncio.run(main())
    assert 'kubedistill_jobs{phase="Running"}' in text
    assert "process_resident_memory_bytes" in text
    assert "_created" not in text
