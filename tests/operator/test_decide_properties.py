"""Any order of events, crashes between any two writes, two operators, failing requests: what must never happen, and always.

A referee looks at every creation when it is asked for. Taking out the claim, the live look, or the wait for Terminating pods
turns these tests red; the look at an owner's uid is taken out in test_decide_mutations.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kd_operator.decide import attempts, stages
from kd_operator.decide.draft import Draft
from kd_operator.worker import Worker
from operator_schedule import PATIENT, Schedule
from operator_world import SHORT, Object, World

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


def no_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are created in the very pass that claims their attempt, whatever becomes of the claim."""
    claim = attempts._claim

    def hasty(d: Draft, part: attempts.Part, run: Any) -> None:
        before = d.run(part.name).attempt
        claim(d, part, run)
        if d.run(part.name).attempt > before and (d.status.plan is None or part.name == "plan" or d.status.plan.digest):
            d.create.extend(part.build(d.run(part.name).attempt))
            d.status = d.seen.job.status

    monkeypatch.setattr(attempts, "_claim", hasty)


def no_wait_for_the_terminating(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that is being deleted counts as gone."""
    monkeypatch.setattr(Draft, "alive", lambda self, part: [])
    monkeypatch.setattr(Draft, "left", lambda self, part: None)
    monkeypatch.setattr(stages.teachers, "release", lambda d, keep=None: True)


def no_live_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child is created without a look at what its job is by now."""

    async def blind(self: Worker, job: Object, claim: Any) -> None:
        pass

    monkeypatch.setattr(Worker, "_confirm", blind)


@pytest.mark.parametrize("taken_out", [no_claim, no_live_look, no_wait_for_the_terminating])
def test_without_any_one_of_the_guards_it_goes_wrong(
    monkeypatch: pytest.MonkeyPatch, taken_out: Callable[[pytest.MonkeyPatch], None]
) -> None:
    taken_out(monkeypatch)
    for seed in SEEDS:
        try:
            disturbed(seed)
        except AssertionError:
            return
    pytest.fail("nobody noticed")
