"""A referee of the operators' world: it looks at every creation when it is asked for, and keeps what never may happen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kd_operator.cluster.reading import CLAIMED
from kd_operator.metrics import ReconcileOutcome
from kd_operator.status.states import AT_WORK
from operator_nodes import Pod, holds, living
from operator_server import Object, owner_uid
from operator_world import Job, Operator, World

from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, STAGE_LABEL, UID_LABEL

MOST_IN_VAIN = 10
"""So often an operator may ask for a name that a stranger has: what it learns of that is lost with a status that fails."""


class Violation(AssertionError):
    """Something happened that never may."""


@dataclass
class Asked:
    """A batch Job or Deployment that is asked for, by its labels."""

    child: Object

    def __post_init__(self) -> None:
        labels = self.child["metadata"]["labels"]
        self.name: str = self.child["metadata"]["name"]
        self.component: str = labels[COMPONENT_LABEL]
        self.part: str = labels[STAGE_LABEL]
        self.attempt = int(labels[ATTEMPT_LABEL])
        self.uid: str = labels[UID_LABEL]

    def __str__(self) -> str:
        return f"{self.part}: attempt {self.attempt}"

    def forbidden(self, job: Object) -> str | None:
        """Why it may not be created, by the job as it is here; None where it may."""
        run = self._run(job)
        if run.get("attempt") != self.attempt or run.get("state") not in AT_WORK:
            return "which is not claimed"
        return "although the job is suspended" if job["spec"].get("suspend") else None

    def _run(self, job: Object) -> Object:
        status = job.get("status", {})
        if self.component == "plan":
            return status.get("plan") or {}
        runs: list[Object] = status.get("teachers" if self.component == "teacher" else "stages", [])
        return next((run for run in runs if run["name"] == self.part), {})

    def former(self, alive: list[Pod]) -> Pod | None:
        """A pod of an earlier attempt."""
        of_teacher = self.component == "teacher"
        mine = (pod for pod in alive if (pod.component == "teacher", pod.stage) == (of_teacher, self.part))
        return next((pod for pod in mine if pod.attempt < self.attempt), None)


@dataclass
class Refereed(World):
    """A world in which every creation is looked at, and every pass that ends by a bug."""

    seen: list[str] = field(default_factory=list)
    before: dict[str, tuple[str, Object | None]] = field(default_factory=dict)
    """By operator: its last request, and what it was answered or is about."""
    in_vain: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By operator and name: how often it asked for what a stranger has."""
    interrupted: set[str] = field(default_factory=set)
    """Batch Jobs of which the job was suspended meanwhile: nobody waits for those."""
    attempts: dict[tuple[str, str], int] = field(default_factory=dict)
    """By job and stage: the attempt that its status claims."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.server.changed.append(self._job_changed)

    def over(self, operator: Operator, outcome: Any) -> None:
        if outcome is ReconcileOutcome.Bug:
            self.seen.append("a pass ended by a bug")

    def check(self) -> None:
        """Raises Violation for what was seen."""
        if self.seen:
            raise Violation("; ".join(self.seen))

    def ending(self, job: Job) -> str | None:
        """Go on to the job's end, and until all is quiet: how it ended. Raises Violation."""
        self.settle()
        self.until(lambda: self.seen or job.end)
        self.check()
        self.settle()
        self.check()
        return job.end

    def watched(self, operator: Operator, verb: str, one: Object | None) -> None:
        super().watched(operator, verb, one)
        looked, last = self.before.get(operator.name, ("", None))
        self.before[operator.name] = (verb, one)
        if one is None or verb not in ("POST Job", "POST Deployment"):
            return
        asked = Asked(one)
        offence = self._offence(asked, last if looked == "GET DistillationJob" else None)
        if offence is None and self._is_a_strangers(asked):
            self.in_vain[operator.name, asked.name] += 1
            if self.in_vain[operator.name, asked.name] > MOST_IN_VAIN:
                offence = f"{asked} is asked for again and again, though its name belongs to a stranger"
        if offence is not None:
            self.seen.append(offence)

    def _offence(self, asked: Asked, last: Object | None) -> str | None:
        """What is wrong about a creation; ``last``: the job as its operator read it just before."""
        job = next((j for j in self.server.every("DistillationJob") if j["metadata"]["uid"] == asked.uid), None)
        if job is None:
            return f"{asked} is of a job that is gone"
        why = asked.forbidden(job)
        if why is not None:
            # What changes between the last look and the POST that follows it cannot be known.
            known = last is None or asked.forbidden(last) is not None
            return f"{asked} is created, {why}" if known else None
        alive = living(self.server, job)
        former = asked.former(alive)
        if former is not None:
            return f"{asked} is created beside {former.name}, which is of an earlier one"
        if asked.component == "trainer" and any(pod.component == "teacher" for pod in alive):
            return f"{asked}: training begins beside a teacher"
        rival = self._rival(asked, job)
        return f"{asked} is created beside {rival}, which makes the same" if rival is not None else None

    def _rival(self, asked: Asked, job: Object) -> str | None:
        """What is at work for another job on the artifact that ``asked`` would make."""
        key = keys(job, AT_WORK).get(asked.part) if asked.component not in ("plan", "teacher") else None
        if key is None:
            return None
        for other in self.server.every("DistillationJob"):
            if other is job or other["spec"].get("suspend") or holds(other, "Complete", "Failed"):
                continue
            for child in self.server.owned("Job", other["metadata"]["uid"]):
                name, stage = child["metadata"]["name"], child["metadata"]["labels"][STAGE_LABEL]
                at_work = not holds(child, "Complete", "Failed", "FailureTarget") and name not in self.interrupted
                if at_work and keys(other, CLAIMED).get(stage) == key:
                    return str(name)
        return None

    def _is_a_strangers(self, asked: Asked) -> bool:
        there = self.server.objects.get((asked.child["kind"], asked.name))
        return there is not None and owner_uid(there) != asked.uid

    def _job_changed(self, one: Object) -> None:
        if one["kind"] != "DistillationJob":
            return
        self._count_attempts(one)
        if one["spec"].get("suspend"):
            self.interrupted |= {job["metadata"]["name"] for job in self.server.owned("Job", one["metadata"]["uid"])}

    def _count_attempts(self, job: Object) -> None:
        for stage in job.get("status", {}).get("stages", ()):
            counted = (job["metadata"]["uid"], stage["name"])
            if stage["attempt"] < self.attempts.get(counted, 0):
                self.seen.append(f"{stage['name']}: attempt {stage['attempt']} follows {self.attempts[counted]}")
            self.attempts[counted] = stage["attempt"]


def keys(job: Object, states: frozenset[str]) -> dict[str, str]:
    """Stage -> key, of the stages that are in one of ``states``."""
    stages = job.get("status", {}).get("stages", ())
    return {stage["name"]: stage["key"] for stage in stages if stage["state"] in states}
