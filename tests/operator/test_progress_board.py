"""What pods post becomes one line a stage: shares add up, a gang speaks with one voice, what is old is forgotten."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kd_operator.progress.board import EXPIRY_SECONDS, Board
from kd_operator.progress.identity import Sender
from kd_operator.progress.report import Report
from operator_progress import OTHER_UID, POD_UID, UID

WORKER = Sender("team-a", "tutor", UID, POD_UID, "workers", "answers", 1, 0)
TRAINER = replace(WORKER, component="trainer", stage="student")
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    return Board(clock)


def report(completed: int, total: int = 100, unit: str = "rows", **more: Any) -> Report:
    return Report(stage="answers", completed=completed, total=total, unit=unit, **more)


def test_workers_shares_add_up(board: Board) -> None:
    board.post(WORKER, report(10, tokens_per_second=5.0))
    board.post(replace(WORKER, index=1), report(30, 60, tokens_per_second=7.5))
    progress = board.stage_progress(UID)["answers"]
    assert (progress.completed, progress.total, progress.unit, progress.percent) == (40, 160, "rows", 25)
    assert progress.tokens_per_second == 12.5
    assert progress.eta_seconds is None, "one post tells no speed"


def test_the_slowest_worker_says_how_long_it_takes(board: Board, clock: Clock) -> None:
    fast, slow = WORKER, replace(WORKER, index=1)
    for sender in (fast, slow):
        board.post(sender, report(0))
    clock.now += 10
    board.post(fast, report(50))
    board.post(slow, report(10))
    assert board.stage_progress(UID)["answers"].eta_seconds == 90
    board.post(slow, report(100))
    clock.now += 10
    board.post(fast, report(100))
    done = board.stage_progress(UID)["answers"]
    assert (done.percent, done.eta_seconds) == (100, None)


def test_a_gang_speaks_through_its_first(board: Board, clock: Clock) -> None:
    """Each of its pods reports the steps and the tokens of all."""
    for index in (1, 0):
        sender = replace(TRAINER, index=index)
        board.post(sender, report(0, 40, "steps", loss=3.0 + index, tokens_per_second=100.0))
    clock.now += 10
    for index in (0, 1):
        sender = replace(TRAINER, index=index)
        board.post(sender, report(20, 40, "steps", loss=2.0 + index, tokens_per_second=100.0))
    progress = board.stage_progress(UID)["student"]
    assert (progress.completed, progress.total, progress.percent) == (20, 40, 50)
    assert (progress.tokens_per_second, progress.loss, progress.eta_seconds) == (100.0, 2.0, 10)


def test_the_loss_is_the_first_pods_or_none(board: Board) -> None:
    board.post(replace(TRAINER, index=1), report(1, loss=1.0))
    assert board.stage_progress(UID)["student"].loss is None


def test_a_report_without_a_total_leaves_what_was_known(board: Board) -> None:
    board.post(TRAINER, report(20, 40, "steps", loss=2.0))
    board.post(TRAINER, report(0, 0, "steps"))
    progress = board.stage_progress(UID)["student"]
    assert (progress.completed, progress.total, progress.loss) == (20, 40, 2.0)


def test_a_new_attempt_begins_anew_and_an_old_one_is_not_heard_any_more(board: Board) -> None:
    board.post(WORKER, report(90))
    board.post(replace(WORKER, index=1), report(90))
    board.post(replace(WORKER, attempt=2), report(95))
    board.post(WORKER, report(99))
    progress = board.stage_progress(UID)["answers"]
    assert (progress.completed, progress.total) == (95, 100)


def test_a_restarted_worker_that_counts_from_zero_has_no_negative_speed(board: Board, clock: Clock) -> None:
    board.post(WORKER, report(50))
    clock.now += 10
    board.post(WORKER, report(5))
    assert board.stage_progress(UID)["answers"].eta_seconds is None


def test_a_worker_that_ended_counts_for_what_it_did_but_adds_no_speed(board: Board, clock: Clock) -> None:
    board.post(WORKER, report(100, tokens_per_second=50.0))
    clock.now += 300
    board.post(replace(WORKER, index=1), report(10, tokens_per_second=5.0))
    progress = board.stage_progress(UID)["answers"]
    assert (progress.completed, progress.total, progress.tokens_per_second) == (110, 200, 5.0)


def test_a_stage_that_is_silent_for_long_is_forgotten(board: Board, clock: Clock) -> None:
    board.post(WORKER, report(10))
    clock.now += EXPIRY_SECONDS / 2
    board.post(TRAINER, report(1))
    clock.now += EXPIRY_SECONDS / 2
    assert set(board.stage_progress(UID)) == {"student"}


def test_jobs_are_apart_and_forgotten_when_they_end(board: Board) -> None:
    board.post(WORKER, report(10))
    assert board.stage_progress(OTHER_UID) == {}
    board.forget(UID)
    assert board.stage_progress(UID) == {}


def test_the_jobs_heard_longest_ago_go_when_the_board_is_full(clock: Clock) -> None:
    board = Board(clock, most_jobs=3)
    for number in range(10):
        board.post(replace(WORKER, uid=str(number)), report(1))
    assert len(board) == 3
    assert board.stage_progress("9") and not board.stage_progress("6")


def test_silent_jobs_go_when_another_is_heard(board: Board, clock: Clock) -> None:
    for number in range(10):
        board.post(replace(WORKER, uid=str(number)), report(1))
    clock.now += EXPIRY_SECONDS
    board.post(WORKER, report(1))
    assert len(board) == 1


def test_a_status_for_progress_alone_is_due_once_a_minute(board: Board) -> None:
    assert board.progress_due(UID, NOON)
    board.wrote(UID, NOON)
    assert not board.progress_due(UID, NOON + timedelta(seconds=59))
    assert board.progress_due(UID, NOON + timedelta(seconds=60))
    assert board.progress_due(OTHER_UID, NOON)


REPORTS = st.builds(
    Report,
    stage=st.just("answers"),
    completed=st.integers(0, 2**53 - 1),
    total=st.integers(0, 2**53 - 1),
    unit=st.text(max_size=64),
    tokens_per_second=st.floats(0, 1e12),
    loss=st.none() | st.floats(-1e12, 1e12),
)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.floats(0, 100), REPORTS), max_size=20))
def test_whatever_is_posted_makes_a_status_that_the_api_takes(posts: list[tuple[int, int, float, Report]]) -> None:
    clock = Clock()
    board = Board(clock)
    for index, attempt, pause, one in posts:
        clock.now += pause
        board.post(replace(WORKER, index=index, attempt=attempt), one)
    for progress in board.stage_progress(UID).values():
        assert 0 <= progress.percent <= 100
        assert type(progress).model_validate_json(progress.model_dump_json()) == progress
        assert progress.eta_seconds is None or progress.eta_seconds < 2**53
