"""Random orders of events in the operators' world: for a while everything goes wrong that can, then nothing does."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from kd_operator.cluster.errors import Denied
from operator_nodes import End, Script
from operator_referee import Refereed, Violation
from operator_server import DONE_THEN_ERROR, LOST_ANSWER, NAMESPACE, NOT_DONE, Fault
from operator_world import Job, Operator

from kd_runtime.api.labels import RETRY_ANNOTATION

FAULTS = (NOT_DONE, DONE_THEN_ERROR, LOST_ANSWER, Fault(Denied, done=False))
CODES = (*[0] * 12, 69, 74, 75, 78, 80, 143)
PARTS = ("plan", "dataset", "logits", "student")
PATIENT = {"backoffLimit": 50, "disruptionLimit": 500}
"""A failure policy by which no job fails for what goes wrong here."""
ROUGH = {
    "step": 50,
    "hear": 10,
    "nodes": 22,
    "time": 8,
    "crash": 2,
    "fault": 2,
    "node": 1.5,
    "suspend": 1,
    "child": 2,
    "pod": 1,
    "edit": 1,
    "stranger": 0.5,
}
"""How often what happens next: mostly, a job is disturbed."""
CROWDED = {
    "step": 70,
    "hear": 15,
    "nodes": 12,
    "time": 4,
    "crash": 0.7,
    "fault": 1,
    "suspend": 0.5,
    "child": 0.5,
    "edit": 5,
}
"""The same: mostly, operators get in each other's way."""


@dataclass
class Schedule:
    """Events, one after the other, of a kind that is drawn by its weight."""

    seed: int
    weights: dict[str, float]
    operators: int = 2
    world: Refereed = field(default_factory=Refereed)
    strangers: dict[str, str] = field(default_factory=dict)
    """Job -> a batch Job of somebody else that has the name of one of its children."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        for number in range(1, self.operators):
            self.world.operators.append(Operator(self.world, f"operator-{number}"))
        for operator in self.world.operators:
            operator.stepwise = True

    @property
    def jobs(self) -> list[Job]:
        """Every job of the world."""
        return [self.world.job(one["metadata"]["name"]) for one in self.world.server.every("DistillationJob")]

    def disturb(self, steps: int) -> None:
        """Everything goes wrong that can, ``steps`` times. Raises Violation."""
        self.world.late = True
        self.world.server.pick = self.chance.choice
        kinds, weights = list(self.weights), list(self.weights.values())
        for _ in range(steps):
            self.events[self.chance.choices(kinds, weights)[0]](self.chance.choice(self.jobs))
            self.world.check()

    def calm(self) -> None:
        """Nothing goes wrong any more, and every job comes to its end. Raises Violation."""
        world = self.world
        world.late = world.nodes.lingering = False
        world.nodes.scripts.clear()
        world.nodes.regain()
        for operator in world.operators:
            operator.access.faults.clear()
            operator.crash()
        for job in self.jobs:
            job.edit(suspend=False)
        for job in self.jobs:
            self._come_to_its_end(job)
        world.wait(3600 * 3)
        world.check()
        if any(job.pods() or job.children("Deployment") for job in self.jobs):
            raise Violation("something is left at the end")

    def _come_to_its_end(self, job: Job) -> None:
        end = self.world.ending(job)
        if end == "NameConflict":
            self._make_room(job)
            end = self.world.ending(job)
        if end not in ("Succeeded", "ResultLost"):
            raise Violation(f"ends with {end}: {job.condition('Failed')[2]}")

    # ---- what happens --------------------------------------------------------------------------------------------------

    @cached_property
    def events(self) -> dict[str, Callable[[Job], object]]:
        """By kind, what happens to a job or around it."""
        return {
            "step": lambda job: self._operator().step(),
            "hear": lambda job: self._operator().hear(),
            "crash": lambda job: self._operator().crash(),
            "fault": lambda job: self._operator().access.faults.append(self.chance.choice(FAULTS)),
            "nodes": self._nodes_go_on,
            "time": self._time_passes,
            "node": self._a_node_falls_silent_or_comes_back,
            "suspend": lambda job: job.edit(suspend=not job.raw["spec"].get("suspend", False)),
            "edit": lambda job: job.annotate("note", str(self.chance.random())),
            "child": self._a_child_is_deleted,
            "pod": self._a_pod_is_deleted,
            "stranger": self._a_stranger_comes_or_goes,
        }

    def _operator(self) -> Operator:
        return self.chance.choice(self.world.operators)

    def _time_passes(self, job: Job) -> None:
        self.world.server.now += timedelta(seconds=self.chance.choice([1, 10, 61, 200]))

    def _nodes_go_on(self, job: Job) -> None:
        """Pods that are deleted take their time."""
        self.world.nodes.lingering = self.chance.random() < 0.85
        self.world.nodes.step()

    def _a_node_falls_silent_or_comes_back(self, job: Job) -> None:
        nodes = self.world.nodes
        if nodes.lost_nodes:
            nodes.regain()
        else:
            nodes.lose()

    def _a_child_is_deleted(self, job: Job) -> None:
        at_work = job.children("Deployment") + [f"Job/{job.child(pod.part, pod.attempt)}" for pod in job.pods()]
        kind, _, name = self.chance.choice(at_work).partition("/") if at_work else ("", "", "")
        if (kind, name) in self.world.server.objects:
            self.world.server.delete(kind, name)

    def _a_pod_is_deleted(self, job: Job) -> None:
        pods = [pod for pod in job.pods() if not pod.leaving]
        if pods:
            self.world.server.delete("Pod", self.chance.choice(pods).name)

    def _a_stranger_comes_or_goes(self, job: Job) -> None:
        if job.name in self.strangers or job.end is not None:
            self._make_room(job)
            return
        part = self.chance.choice(PARTS)
        name = job.child(part, job.run(part).attempt + 1)
        if ("Job", name) not in self.world.server.objects:
            self.world.server.create({"kind": "Job", "spec": {}, "metadata": {"name": name, "namespace": NAMESPACE}})
            self.strangers[job.name] = name

    def _make_room(self, job: Job) -> None:
        """The stranger goes, and a job that failed by it is asked to go on."""
        stranger = self.strangers.pop(job.name, None)
        if stranger is not None:
            self.world.server.delete("Job", stranger)
        if job.end == "NameConflict":
            job.annotate(RETRY_ANNOTATION, f"plan/{self.world.server.versions}")

    def scripts(self) -> dict[str, Script]:
        """What becomes of the pods of each part: drawn once for each pod."""
        drawn: dict[tuple[str, int, int], End] = {}

        def of(part: str) -> Script:
            def end(attempt: int, index: int) -> End:
                key = (part, attempt, index)
                if key not in drawn:
                    code, seconds = self.chance.choice(CODES), self.chance.uniform(1, 60)
                    drawn[key] = End(code=code, seconds=seconds, result=self.chance.random() > 0.1)
                return drawn[key]

            return end

        return {part: of(part) for part in PARTS}
