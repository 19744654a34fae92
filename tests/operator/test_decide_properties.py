"""Any order of events, crashes between any two writes, two operators, failing requests: what must never happen, and always.

A referee looks at every creation when it is asked for. Each guard that is taken out turns a test red, though a job that nothing
disturbs ends as well without it.
"""

from __future__ import annotations

from collections.abc import Callable

import operator_guards as guards
import pytest
from operator_referee import Violation
from operator_schedule import PATIENT, Schedule
from operator_world import SHORT, World

SEEDS = range(25)
STEPS = 600
BEGINNINGS = (
    ("plan", "Queued"),
    ("plan", "Running"),
    ("dataset", "Queued"),
    ("dataset", "Running"),
    ("logits", "Queued"),
    ("teacher/teacher", "Starting"),
    ("logits", "Running"),
    ("student", "Queued"),
    ("student", "Running"),
)
"""Where a job is when things begin to go wrong."""


def disturbed(seed: int) -> World:
    """A job of which, from some moment of its life on, everything goes wrong that can; then nothing does, and it ends."""
    schedule = Schedule(seed)
    job = schedule.world.apply(stages=SHORT, failurePolicy=PATIENT)
    job.reach(*BEGINNINGS[seed % len(BEGINNINGS)])
    schedule.world.nodes.scripts |= schedule.scripts()
    schedule.disturb(STEPS)
    schedule.calm()
    return schedule.world


def decides_nothing_more(world: World) -> bool:
    """Whether operators that begin anew write no status."""
    written = world.puts
    for operator in world.operators:
        operator.stepwise = False
        operator.start()
    world.settle()
    return world.puts == written


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_no_attempt_runs_beside_another_and_the_job_ends(seed: int) -> None:
    world = disturbed(seed)
    assert decides_nothing_more(world)
    assert world.job().end


@pytest.mark.parametrize(
    ("taken_out", "said"),
    [
        (guards.no_claim, "is created, which is not claimed"),
        (guards.no_live_look, "is created, although the job is suspended"),
        (guards.no_look_at_the_owner, "its name belongs to a stranger"),
        (guards.no_wait_for_the_terminating, "which is of an earlier one"),
        (guards.no_wait_for_the_teacher, "training begins beside a teacher"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_without_a_guard_a_job_ends_as_well_and_the_referee_says_what_went_wrong_on_the_way(
    monkeypatch: pytest.MonkeyPatch, taken_out: Callable[[pytest.MonkeyPatch], None], said: str
) -> None:
    taken_out(monkeypatch)
    assert World().apply(stages=SHORT).finish() == "Succeeded"
    with pytest.raises(Violation, match=said):
        for seed in SEEDS:
            disturbed(seed)
