"""Any order of events, crashes between any two writes, two operators, failing requests: what must never happen, and always.

A referee looks at every request when it is made. Taking out the claim, the live look, or the wait for Terminating pods turns
these tests red; the look at an owner's uid is taken out in test_decide_mutations.py.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from kd_operator.cluster.errors import Denied
from kd_operator.decide import attempts, stages
from kd_operator.decide.draft import Draft
from kd_operator.metrics import ReconcileOutcome
from kd_operator.worker import Worker
from operator_nodes import GOOD, End, living
from operator_server import DONE_THEN_ERROR, LOST_ANSWER, NOT_DONE, Fault
from operator_world import SHORT, Object, Operator, World

from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, STAGE_LABEL, UID_LABEL

SEEDS = range(25)
STEPS = 220
FAULTS = (NOT_DONE, DONE_THEN_ERROR, LOST_ANSWER, Fault(Denied, done=False))


class Violation(AssertionError):
    """Something happened that never may."""


class Refereed(World):
    """A world in which every creation is looked at, and every pass that ends by a bug."""

    seen: list[str]
    before: dict[str, tuple[str, Object | None]]
    """By operator: its last request, and what it was answered or is about."""

    def __post_init__(self) -> None:
        self.seen, self.before = [], {}
        super().__post_init__()

    def over(self, operator: Operator, outcome: Any) -> None:
        if outcome is ReconcileOutcome.Bug:
            self.seen.append("a pass ended by a bug")

    def check(self) -> None:
        """Raises Violation for what was seen."""
        if self.seen:
            raise Violation("; ".join(self.seen))

    def watched(self, operator: Operator, verb: str, one: Object | None) -> None:
        super().watched(operator, verb, one)
        looked, last = self.before.get(operator.name, ("", None))
        self.before[operator.name] = (verb, one)
        if one is None or verb not in ("POST Job", "POST Deployment"):
            return
        labels = one["metadata"]["labels"]
        name, attempt = labels[STAGE_LABEL], int(labels[ATTEMPT_LABEL])
        job = next((j for j in self.server.every("DistillationJob") if j["metadata"]["uid"] == labels[UID_LABEL]), None)
        if job is None:
            self.seen.append(f"{name}: a child of a job that is gone")
            return
        component = labels[COMPONENT_LABEL]
        if not may_create(job, component, name, attempt):
            # What changes between the last look and the POST that follows it cannot be known.
            if looked != "GET DistillationJob" or last is None or not may_create(last, component, name, attempt):
                self.seen.append(f"{name}: attempt {attempt} is created, which is not claimed, or the job is suspended")
            return
        alive = list(living(self.server, job))
        former = [
            p.name
            for p in alive
            if (p.component == "teacher", p.stage) == (component == "teacher", name) and p.attempt < attempt
        ]
        if former:
            self.seen.append(f"{name}: attempt {attempt} is created beside {former[0]}")
            return
        if component == "trainer" and any(pod.component == "teacher" for pod in alive):
            self.seen.append(f"{name}: training begins beside a teacher")
            return


def may_create(job: Object, component: str, name: str, attempt: int) -> bool:
    """Whether the job, as it is here, has claimed that attempt and is not suspended."""
    return claimed(job, component, name) == attempt and not job["spec"].get("suspend")


def claimed(job: Object, component: str, name: str) -> int:
    """The attempt that the status claims of a part."""
    status = job.get("status", {})
    if component == "plan":
        return int((status.get("plan") or {}).get("attempt", 0))
    runs = status.get("teachers" if component == "teacher" else "stages", [])
    return next((int(run["attempt"]) for run in runs if run["name"] == name), 0)


def disturbed(seed: int) -> Refereed:
    """A world in which, for a while, everything goes wrong that can; then nothing does, and the job ends."""
    chance = random.Random(seed)
    world = Refereed()
    world.operators.append(Operator(world, "two"))
    for operator in world.operators:
        operator.stepwise = True
    codes = [0, 0, 0, 69, 74, 75, 78, 80, 143]
    drawn: dict[tuple[str, int, int], End] = {}
    calm = False

    def script(part: str) -> Callable[[int, int], End]:
        def end(attempt: int, index: int) -> End:
            if calm:
                return GOOD
            key = (part, attempt, index)
            if key not in drawn:
                drawn[key] = End(code=chance.choice(codes), seconds=chance.uniform(1, 60), result=chance.random() > 0.2)
            return drawn[key]

        return end

    for part in ("plan", "dataset", "logits", "student"):
        world.nodes.scripts[part] = script(part)
    policy = {"backoffLimit": 50, "disruptionLimit": 500}
    job = world.apply(stages=SHORT, failurePolicy=policy)
    for _ in range(STEPS):
        disturb(world, job.name, chance)
        world.check()
    calm = True
    world.nodes.lingering = False
    world.nodes.regain()
    for operator in world.operators:
        operator.access.faults.clear()
        operator.crash()
    job.edit(suspend=False)
    end = job.finish()
    if end not in ("Succeeded", "ResultLost"):
        raise Violation(f"ends with {end}: {job.condition('Failed')[2]}")
    world.wait(3600 * 3)
    world.check()
    if job.pods() or job.children("Deployment"):
        raise Violation("something is left at the end")
    return world


def disturb(world: World, name: str, chance: random.Random) -> None:
    """One more thing that happens."""
    drawn = chance.random()
    operator = chance.choice(world.operators)
    job = world.job(name)
    pods = job.pods()
    if drawn < 0.55:
        operator.step()
    elif drawn < 0.80:
        world.nodes.step()
    elif drawn < 0.88:
        world.server.now += seconds(chance.choice([1, 10, 61, 200]))
    elif drawn < 0.91:
        operator.crash()
    elif drawn < 0.94:
        operator.access.faults.append(chance.choice(FAULTS))
    elif drawn < 0.96:
        world.nodes.lingering = not world.nodes.lingering
        if world.nodes.lost_nodes:
            world.nodes.regain()
        elif world.nodes.lingering and chance.random() < 0.5:
            world.nodes.lose()
    elif drawn < 0.975:
        job.edit(suspend=not job.raw["spec"].get("suspend", False))
    elif drawn < 0.985 and (children := job.children("Job", "Deployment")):
        world.server.delete(*chance.choice(children).split("/"))
    elif pods and not (pod := chance.choice(pods)).leaving:
        world.server.delete("Pod", pod.name)


def seconds(number: float) -> Any:
    return timedelta(seconds=number)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_no_attempt_runs_beside_another_and_the_job_ends(seed: int) -> None:
    world = disturbed(seed)
    job = world.job()
    attempts_seen = [[stage.attempt for stage in status.stages] for status in world.statuses if status.stages]
    for before, after in itertools.pairwise(attempts_seen):
        assert all(a <= b for a, b in zip(before, after, strict=True)), "an attempt's number went back"
    written = world.puts
    for operator in world.operators:
        operator.stepwise = False
        operator.start()
    world.settle()
    assert world.puts == written, "a second look at the end decides something"
    assert job.end


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
