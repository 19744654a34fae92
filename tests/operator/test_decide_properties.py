"""Any order of events, crashes between any two writes, several operators, failing requests, late watches, old lists: what must
never happen, and always.

A referee looks at every creation when it is asked for. Each guard that is taken out turns a test red, though a job that nothing
disturbs ends as well without it.
"""

from __future__ import annotations

from collections.abc import Callable

import operator_guards as guards
import pytest
from operator_nodes import FOREVER, GOOD, digest, stage_keys
from operator_referee import Violation
from operator_schedule import CROWDED, PATIENT, ROUGH, Schedule
from operator_world import LOGITS, SHORT, World

SEEDS, PEER_SEEDS = range(25), range(10)
STEPS, PEER_STEPS = 600, 240
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
    schedule = Schedule(seed, ROUGH)
    job = schedule.world.apply(stages=SHORT, failurePolicy=PATIENT)
    job.reach(*BEGINNINGS[seed % len(BEGINNINGS)])
    schedule.world.nodes.scripts |= schedule.scripts()
    schedule.disturb(STEPS)
    schedule.calm()
    return schedule.world


def crowded(seed: int) -> World:
    """Three jobs that would make the same, and are about to; then operators get in each other's way, until nothing does."""
    schedule = Schedule(seed, CROWDED, operators=3)
    world, jobs = schedule.world, [schedule.world.apply(name, stages=[LOGITS]) for name in ("ada", "bea", "cid")]
    world.nodes.scripts["plan"] = lambda attempt, index: FOREVER
    world.until(lambda: all(job.run("plan").state == "Running" for job in jobs))
    if seed % 2:
        found = stage_keys(jobs[0].raw)["dataset"]
        world.nodes.store[found] = digest("manifest", found)
    for pod in (pod for job in jobs for pod in job.pods()):
        world.nodes.finish(pod, GOOD)
    world.nodes.scripts.clear()
    schedule.disturb(PEER_STEPS)
    schedule.calm()
    return world


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


@pytest.mark.parametrize("seed", PEER_SEEDS)
def test_whatever_happens_no_two_jobs_make_the_same_at_once_and_all_of_them_end(seed: int) -> None:
    world = crowded(seed)
    assert decides_nothing_more(world)
    assert [world.job(name).end for name in ("ada", "bea", "cid")] == ["Succeeded"] * 3


@pytest.mark.parametrize(
    ("taken_out", "schedules", "said"),
    [
        (guards.no_claim, disturbed, "is created, which is not claimed"),
        (guards.no_live_look, disturbed, "is created, although the job is suspended"),
        (guards.no_look_at_the_owner, disturbed, "its name belongs to a stranger"),
        (guards.no_wait_for_the_terminating, disturbed, "which is of an earlier one"),
        (guards.no_wait_for_the_teacher, disturbed, "training begins beside a teacher"),
        (guards.no_second_look_at_peers, crowded, "which makes the same"),
        (guards.any_list_of_peers, crowded, "which makes the same"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_without_a_guard_a_job_ends_as_well_and_the_referee_says_what_went_wrong_on_the_way(
    monkeypatch: pytest.MonkeyPatch,
    taken_out: Callable[[pytest.MonkeyPatch], None],
    schedules: Callable[[int], World],
    said: str,
) -> None:
    taken_out(monkeypatch)
    assert World().apply(stages=SHORT).finish() == "Succeeded"
    with pytest.raises(Violation, match=said):
        for seed in SEEDS:
            schedules(seed)
