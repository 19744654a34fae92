"""The working copy of one pass: the new status as it grows, what is to be created and deleted, and when to look again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from kd_operator.children.context import ChildContext, Component
from kd_operator.decide.failures import Verdict
from kd_operator.decision import LOOK_AGAIN_SECONDS, Create, Delete, EventNote
from kd_operator.names import PLAN
from kd_operator.observed import MainChild, Observed, PodSeen
from kd_operator.settings import Settings
from kd_operator.status.conditions import Facts, Said, current_stage
from kd_operator.status.states import State, moment, stamp
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.reasons import REMEDIES, Reason
from kd_runtime.api.runtime import ClusterDistillationRuntime
from kd_runtime.api.status import JobStatus, PlanStatus, RunStatus, StageStatus, TeacherStatus

TEACHER_PREFIX = "teacher/"
MESSAGE_LENGTH = 1024


@dataclass
class Draft:
    """One pass over one job. A part is the plan, a stage, or ``teacher/<name>``."""

    seen: Observed
    now: datetime
    settings: Settings
    status: JobStatus
    facts: Facts = field(default_factory=Facts)
    create: list[Create] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    events: list[EventNote] = field(default_factory=list)
    look_after: float = LOOK_AGAIN_SECONDS
    waits_for_peers: bool = False

    # ---- the job -------------------------------------------------------------------------------------------------------

    @property
    def job(self) -> DistillationJob:
        """The job with its defaults. Only where it was accepted."""
        assert self.seen.job.spec is not None
        return self.seen.job.spec

    @property
    def runtime(self) -> ClusterDistillationRuntime:
        """Its runtime. Only where there is one."""
        assert self.seen.runtime is not None
        return self.seen.runtime.runtime

    @cached_property
    def context(self) -> ChildContext:
        """What children are built from."""
        job = self.seen.job
        plan = self.status.plan.digest if self.status.plan else None
        return ChildContext(self.job, job.namespace, job.uid, self.runtime, self.settings, plan)

    # ---- parts ---------------------------------------------------------------------------------------------------------

    def run(self, part: str) -> RunStatus:
        """The status of a part; an empty one where it has none yet."""
        if part == PLAN:
            return self.status.plan or PlanStatus()
        if part.startswith(TEACHER_PREFIX):
            return self.teacher(part.removeprefix(TEACHER_PREFIX))
        return self.stage(part)

    def stage(self, name: str) -> StageStatus:
        """The status of a stage; an empty one where it has none yet."""
        return next((s for s in self.status.stages if s.name == name), StageStatus(name=name))

    def teacher(self, name: str) -> TeacherStatus:
        """The status of a teacher; an empty one where it has none yet."""
        return next((t for t in self.status.teachers if t.name == name), TeacherStatus(name=name))

    def set(self, part: str, **changes: Any) -> None:
        """Change the status of a part."""
        if "message" in changes and changes["message"] is not None:
            changes["message"] = changes["message"][:MESSAGE_LENGTH]
        run = self.run(part).model_copy(update=changes)
        if part == PLAN:
            self.update(plan=run)
        elif part.startswith(TEACHER_PREFIX):
            self.update(teachers=_replaced(self.status.teachers, run))
        else:
            self.update(stages=_replaced(self.status.stages, run))

    def update(self, **changes: Any) -> None:
        """Change the status of the job."""
        self.status = self.status.model_copy(update=changes)

    def parts(self) -> list[str]:
        """Every part that the status knows."""
        plan = [PLAN] if self.status.plan else []
        teachers = [TEACHER_PREFIX + teacher.name for teacher in self.status.teachers]
        return [*plan, *(stage.name for stage in self.status.stages), *teachers]

    # ---- what lives ----------------------------------------------------------------------------------------------------

    @property
    def own(self) -> list[MainChild]:
        """Main children that the job owns: what others made and labelled alike is none of ours."""
        return [child for child in self.seen.children if child.owner_uid == self.seen.job.uid]

    def children(self, part: str) -> list[MainChild]:
        """Main children of a part, of whichever attempt."""
        return [child for child in self.own if part_of(child) == part]

    def child(self, part: str, attempt: int) -> MainChild | None:
        """The main child of one attempt, by its name: a copy under another name is a stray."""
        name = self.name_of(part, attempt)
        return next((child for child in self.children(part) if child.name == name), None)

    def name_of(self, part: str, attempt: int) -> str:
        """What the main child of an attempt is called."""
        return self.context.child_name(part.removeprefix(TEACHER_PREFIX), attempt)

    def pods(self, part: str, attempt: int | None = None) -> list[PodSeen]:
        """Pods of a part, of one attempt or of all."""
        return [pod for pod in self.seen.pods if part_of(pod) == part and (attempt is None or pod.attempt == attempt)]

    def pods_of(self, child: MainChild) -> list[PodSeen]:
        """Pods that a main child made: of a Deployment, by its ReplicaSets. Of no others an ending or a result counts."""
        replicas = f"{child.name}-"
        return [
            pod
            for pod in self.pods(part_of(child), child.attempt)
            if pod.owner_uid == child.uid or (child.kind == "Deployment" and pod.owner_name.startswith(replicas))
        ]

    def alive(self, part: str) -> list[PodSeen]:
        """Pods of a part that may hold a GPU or write."""
        return [pod for pod in self.pods(part) if pod.alive]

    def left(self, part: str) -> str | None:
        """What is still there of earlier attempts of a part that may hold a GPU, or start what will; None: nothing."""
        pods, children = self.alive(part), [child for child in self.children(part) if not ended(child)]
        if pods:
            return f"pod {pods[0].name}"
        return f"{children[0].kind} {children[0].name}" if children else None

    def concluding(self) -> bool:
        """Whether all that was to run has done its work, which is only not said yet."""
        stage = current_stage(self.status)
        if stage is None:
            return bool(self.status.stages)
        child = self.child(stage.name, stage.attempt)
        return child is not None and child.uid == stage.child_uid and child.complete

    # ---- what is to be done --------------------------------------------------------------------------------------------

    def look(self, seconds: float) -> None:
        """Look again after so many seconds at the latest."""
        self.look_after = min(self.look_after, max(0.0, seconds))

    def look_at(self, when: datetime) -> None:
        """Look again at that moment at the latest."""
        self.look((when - self.now).total_seconds() + 0.1)

    def remove(self, child: MainChild) -> None:
        """Delete a main child with its pods, and the Service of its attempt."""
        if not child.deleting:
            self.delete.append(Delete(child.kind, child.name, child.uid))
        self.remove_service(child.name)

    def remove_service(self, name: str) -> None:
        """Delete the Service of an attempt, where there is one."""
        if name in self.seen.services:
            self.delete.append(Delete("Service", name))

    def doing(self, reason: Reason, message: str) -> None:
        """What the job is at."""
        self.facts.doing = Said(reason, message[:MESSAGE_LENGTH])

    def fail(self, reason: Reason, message: str, part: str | None = None, verdict: Verdict | None = None) -> None:
        """The job has failed: nothing of it may run on. What to do about it is said with it."""
        told = remedy(reason, verdict.reason if verdict else None)
        self.facts.failed = Said(reason, f"{shortened(message, MESSAGE_LENGTH - len(told) - 2)}. {told}")
        self.update(completion_time=stamp(self.now))
        if part is not None:
            failure = {"last_failure": verdict.failure} if verdict else {}
            self.set(part, state=State.Failed, reason=reason, message=message, next_attempt_time=None, **failure)

    # ---- time ----------------------------------------------------------------------------------------------------------

    def waits_until(self, text: str | None) -> bool:
        """True before that moment; it is looked at again then."""
        if text is None or moment(text) <= self.now:
            return False
        self.look_at(moment(text))
        return True

    def past(self, since: str | None, seconds: int | None) -> bool:
        """True where ``seconds`` have gone by ``since`` then; else it is looked at again when they will have."""
        if since is None or seconds is None:
            return False
        left = seconds - (self.now - moment(since)).total_seconds()
        if left > 0:
            self.look(left + 0.1)
        return left <= 0

    def jitter(self, part: str, attempt: int) -> float:
        """Between 0 and 1, the same each time for an attempt of a job: many jobs do not come back at the same moment."""
        drawn = hashlib.sha256(f"{self.seen.job.uid}/{part}/{attempt}".encode()).digest()
        return int.from_bytes(drawn[:4], "big") / 2**32


def remedy(reason: Reason, cause: Reason | None = None) -> str:
    """What to do about a failure for ``reason``, to which a last attempt led that ended for ``cause``."""
    if reason is not Reason.RetriesExhausted or cause in (None, Reason.Backoff):
        return REMEDIES[reason]
    return f"{REMEDIES[cause]} {REMEDIES[reason]}"


def shortened(text: str, length: int) -> str:
    """So much of a text that what follows it is not cut off."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def part_of(child: MainChild | PodSeen) -> str:
    """Which part a child belongs to."""
    return TEACHER_PREFIX + child.stage if child.component == Component.Teacher else child.stage


def ended(child: MainChild) -> bool:
    """True for a Job that is over."""
    return child.complete or child.failed


def _replaced(runs: tuple[Any, ...], run: Any) -> tuple[Any, ...]:
    if any(other.name == run.name for other in runs):
        return tuple(run if other.name == run.name else other for other in runs)
    return (*runs, run)
