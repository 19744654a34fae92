"""Two guards of the operator, each at the one moment for which it is there; and that without it the moment ends badly.

In whatever order things happen, all of them are taken out in test_decide_properties.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from operator_guards import no_live_look, no_look_at_the_owner
from operator_nodes import FOREVER
from operator_world import Job, World


def about_to_create(world: World, job: Job, part: str) -> None:
    """Go on until the operator has decided to create the main child of ``part``, and has not asked for anything since."""
    operator = world.operators[0]
    operator.stepwise = True
    name = f"Job/{job.child(part, 1)}"
    world.until(
        lambda: (
            operator.task is not None
            and operator.decided
            and any(f"Job/{c.manifest['metadata']['name']}" == name for c in operator.decided[-1][1].create)
        )
    )
    assert name not in job.children("Job")


def suspended_in_between() -> bool:
    """Whether a job that is suspended after a child was decided on, and before it is created, stays without it."""
    world = World()
    job = world.apply()
    about_to_create(world, job, "dataset")
    job.edit(suspend=True)
    world.operators[0].finish()
    return f"Job/{job.child('dataset', 1)}" not in job.children("Job")


def replaced_in_between() -> bool:
    """Whether a job that is deleted and created anew under its name gets no child of the former."""
    world = World()
    job = world.apply()
    former = job.uid
    about_to_create(world, job, "dataset")
    job.delete()
    world.server.collect()
    world.apply()
    world.operators[0].finish()
    return not world.server.owned("Job", former)


def another_attempt_in_between() -> bool:
    """Whether an attempt that is over by the time that its child would be created gets none."""
    world = World()
    job = world.apply()
    about_to_create(world, job, "dataset")
    raw = job.raw
    stages = [{**s, "attempt": 2} if s["name"] == "dataset" else s for s in raw["status"]["stages"]]
    world.server.change(raw, status={**raw["status"], "stages": stages})
    world.operators[0].finish()
    return f"Job/{job.child('dataset', 1)}" not in job.children("Job")


LIVE_LOOK = [suspended_in_between, replaced_in_between, another_attempt_in_between]


def name_is_taken(foreign: dict[str, Any]) -> str | None:
    """How a job ends whose child's name belongs to something else, and that thing is left alone."""
    world = World()
    world.nodes.scripts["plan"] = lambda attempt, index: FOREVER
    job = world.apply()
    there = world.server.create(
        {"kind": "Job", "spec": {}, "metadata": {"name": job.child("plan", 1), "namespace": "team", **foreign}}
    )
    world.wait(600)
    assert world.server.read("Job", job.child("plan", 1))["metadata"]["uid"] == there["metadata"]["uid"]
    return job.end


@pytest.mark.parametrize("moment", LIVE_LOOK)
def test_a_last_look_keeps_a_child_from_a_job_that_has_changed(moment: Callable[[], bool]) -> None:
    assert moment()


@pytest.mark.parametrize("moment", LIVE_LOOK)
def test_without_the_last_look_it_is_created(monkeypatch: pytest.MonkeyPatch, moment: Callable[[], bool]) -> None:
    no_live_look(monkeypatch)
    assert not moment()


def test_a_child_s_name_that_belongs_to_something_else_is_a_conflict() -> None:
    assert name_is_taken({}) == "NameConflict"


def test_without_a_look_at_the_owner_the_job_waits_for_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    no_look_at_the_owner(monkeypatch)
    assert name_is_taken({}) is None
