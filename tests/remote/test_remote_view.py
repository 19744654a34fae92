"""A job on the screen, in every state of its life and at every width."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console, RenderableType
from statuses import CASES, Case, case, failed, job

from kd_runtime.api.reasons import REMEDIES, Reason
from kd_runtime.remote.jobs import RemoteJob
from kd_runtime.remote.view import age, explanation, job_view, jobs_table, phase_of

NOW = datetime(2026, 1, 5, 10, 30, 30, tzinfo=UTC)


def screen(view: RenderableType, width: int = 120, encoding: str = "utf-8") -> str:
    """What a terminal of that width shows."""
    console = Console(
        width=width,
        record=True,
        file=io.TextIOWrapper(io.BytesIO(), encoding=encoding),
        force_terminal=True,
        color_system=None,
    )
    console.print(view)
    return console.export_text()


def shown(name: str, width: int = 120, seconds: float = 0.0) -> str:
    return screen(
        job_view(RemoteJob.of(case(name).document()), NOW, NOW - timedelta(seconds=seconds), width=width), width
    )


def row(text: str, stage: str) -> str:
    return next(line for line in text.splitlines() if line.split()[:1] == [stage])


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_every_state_fits_every_terminal(one: Case, width: int) -> None:
    text = screen(job_view(RemoteJob.of(one.document()), NOW, NOW, width=width), width)
    assert "math-tutor" in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 100, 115, 116, 120, 160])
@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_no_word_is_cut_on_a_usual_terminal(one: Case, width: int) -> None:
    job_ = RemoteJob.of(one.document())
    assert "…" not in screen(job_view(job_, NOW, NOW, width=width), width)
    assert "…" not in screen(jobs_table([job_], NOW, width=width), width)


def test_a_running_stage_shows_how_far_how_fast_how_long_and_how_good() -> None:
    line = row(shown("running"), "student")
    for part in ("train", "● Running", "━━━━━━━━", "504/1,200 steps", "8,123", "0.872", "18 min left"):
        assert part in line
    assert line.count("━") < row(shown("running"), "dataset").count("━")


def test_the_time_left_counts_down_between_two_looks() -> None:
    assert "15 min left" in shown("running", seconds=180)
    assert "0 s left" in shown("running", seconds=5000)


def test_what_was_found_and_what_was_lost_is_said() -> None:
    text = shown("running")
    assert "found" in row(text, "logits")
    assert "2,393 rows, 7 rejected" in row(text, "answers")
    assert "12 min" in row(text, "answers")


def test_a_narrow_terminal_keeps_what_matters() -> None:
    line = row(shown("running", width=80), "student")
    for part in ("● Running", "504/1,200 steps", "8,123", "18 min left"):
        assert part in line


def test_the_teacher_has_a_row_while_it_starts() -> None:
    assert "0/2 ready" in row(shown("teacher_starting"), "teacher")


def test_a_pause_says_until_when_and_why() -> None:
    assert "again in 30 s: StorageUnavailable: s3://team-a/kd/: 503 SlowDown" in shown("backoff")


def test_what_the_scheduler_says_is_shown() -> None:
    assert "Insufficient nvidia.com/gpu" in shown("queued")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("backoff", Reason.StorageUnavailable),
        ("suspended", Reason.Suspended),
        ("over_budget", Reason.BudgetExceeded),
        ("failed", Reason.HostOutOfMemory),
        ("refused", Reason.NotAllowed),
        ("runtime_missing", Reason.RuntimeMissing),
    ],
)
def test_where_something_is_to_be_done_it_is_said(name: str, reason: Reason) -> None:
    assert REMEDIES[reason] in shown(name, width=200)


@pytest.mark.parametrize("name", ["first_write", "planning", "queued", "running", "succeeded", "no_status"])
def test_where_nothing_is_to_be_done_nothing_is_said(name: str) -> None:
    assert "what to do" not in shown(name)


def test_before_the_operator_has_looked_the_spec_s_stages_wait() -> None:
    text = shown("no_status")
    assert "not looked at yet" in text
    assert [line.split()[0] for line in text.splitlines() if "Waiting" in line] == [
        "dataset", "answers", "logits", "student", "exam", "release",
    ]  # fmt: skip


def test_a_terminal_without_unicode_gets_none() -> None:
    view = job_view(RemoteJob.of(case("running").document()), NOW, NOW, ascii_only=True)
    console = Console(
        width=120, file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), force_terminal=True, color_system=None
    )
    assert console.options.ascii_only
    console.print(view)  # encoding it as ASCII would fail
    console.file.flush()


def test_a_message_cannot_command_the_terminal_nor_the_markup() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[bold]pod[/bold] [link=https://evil.example]x[/link]"
    text = screen(job_view(RemoteJob.of(job(failed(Reason.Bug, evil))), NOW, NOW, width=200), 200)
    assert "\x1b" not in text
    assert "owned" not in text
    assert "[bold]pod[/bold]" in text


def test_a_word_that_this_version_does_not_know_is_shown_as_it_is() -> None:
    document = case("running").document()
    document["status"]["phase"] = "Dreaming"
    document["status"]["stages"][3]["state"] = "Dreaming"
    document["status"]["stages"][3]["dreams"] = 7
    assert "Dreaming" in screen(job_view(RemoteJob.of(document), NOW, NOW))


def test_all_jobs_of_a_namespace_have_a_row() -> None:
    jobs = [RemoteJob.of(one.document()) for one in CASES]
    for width in (60, 80, 120):
        text = screen(jobs_table(jobs, NOW, width=width), width)
        assert len([line for line in text.splitlines() if line.strip()]) == len(jobs) + 1
    wide = screen(jobs_table(jobs, NOW, width=120), 120)
    assert "HostOutOfMemory" in wide
    assert "18 min left" in wide


def test_a_job_that_is_being_deleted_says_so() -> None:
    assert phase_of(RemoteJob.of(case("deleting").document())) == "Deleting"


def test_the_sentence_is_that_of_the_failure() -> None:
    assert explanation(RemoteJob.of(case("failed").document())).startswith("HostOutOfMemory: pod math-tutor-student")


def test_long_ages_are_days() -> None:
    assert age(timedelta(days=3, hours=5, minutes=59)) == "3 d 5 h"
    assert age(timedelta(hours=47)) == "47 h 00 min"
