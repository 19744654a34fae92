"""Teachers: one is there for just as long as the stages that ask it, and its GPUs are free before anything else starts (pure)."""

from __future__ import annotations

from collections.abc import Sequence

from kd_operator.children.build import teacher as teacher_children
from kd_operator.children.build import teacher_url
from kd_operator.children.context import Component
from kd_operator.decide.attempts import CREATED_LOOK_SECONDS
from kd_operator.decide.draft import TEACHER_PREFIX, Draft
from kd_operator.decide.failures import Kind, Verdict, disruption, is_disrupted, of_pod
from kd_operator.decide.pending import pending_trouble
from kd_operator.decide.strays import silent_node
from kd_operator.observed import MainChild, PodSeen
from kd_operator.status.conditions import Said
from kd_operator.status.states import AT_WORK, State, stamp
from kd_runtime.api.failures import ExitClass
from kd_runtime.api.reasons import Reason
from kd_runtime.api.status import Failure, TeacherStatus

DEADLINE_MARGIN_SECONDS = 60
CRASHES = 3
"""A teacher whose container was started so often anew without ever answering is given up, however it ended."""


def hosted_name(d: Draft, stage: str) -> str | None:
    """The teacher that the job itself serves and that ``stage`` asks; None where it asks none, or an external one."""
    asked = d.context.asked_teacher(stage)
    return asked[0] if asked is not None and asked[1].hosted is not None else None


def serves_any(d: Draft) -> bool:
    """True where the job has a teacher of its own to run."""
    return any(teacher.hosted is not None for teacher in d.job.spec.named_teachers().values())


def release(d: Draft, keep: str | None = None) -> bool:
    """Delete every teacher but ``keep``; True once none of their pods is left."""
    gone = True
    for child in d.own:
        if child.component == Component.Teacher and child.stage != keep:
            d.remove(child)
            gone = False
    for teacher in d.status.teachers:
        if teacher.name != keep and teacher.state in (*AT_WORK, State.Draining):
            d.set(
                TEACHER_PREFIX + teacher.name,
                state=State.Waiting,
                child_uid=None,
                ready=0,
                url=None,
                reason=Reason.TeacherStopped,
                message=None,
            )
    left = [pod for pod in d.seen.pods if pod.component == Component.Teacher and pod.stage != keep and pod.alive]
    if left:
        d.doing(Reason.Queued, f"pod {left[0].name} of a teacher that is not asked any more is still ending")
    return gone and not left


def ready(d: Draft, name: str) -> Verdict | bool | None:
    """True where the teacher answers, False while it does not yet; a Verdict where it cannot."""
    part = TEACHER_PREFIX + name
    teacher = d.teacher(name)
    if teacher.state not in AT_WORK:
        _claim(d, part, teacher)
        return False
    child = d.child(part, teacher.attempt)
    if teacher.child_uid is None:
        if child is None:
            d.create.extend(teacher_children(d.context, name, teacher.attempt))
            d.doing(Reason.TeacherStarting, f"teacher {name}: attempt {teacher.attempt} begins")
            d.look(CREATED_LOOK_SECONDS)
            return False
        d.set(part, child_uid=child.uid, state=State.Starting, desired=child.desired)
    elif child is None or child.uid != teacher.child_uid:
        return _gone(d, part, teacher)
    return _watch(d, part, name, child)


def claim(d: Draft, name: str) -> None:
    """Claim a teacher with the stage that was just claimed and asks it, in one status; one that is at work is kept."""
    if d.teacher(name).state not in AT_WORK:
        _claim(d, TEACHER_PREFIX + name, d.teacher(name))


def _claim(d: Draft, part: str, teacher: TeacherStatus) -> None:
    left = d.left(part)
    if left is not None:
        d.doing(Reason.TeacherStarting, f"{left} of an earlier attempt is still there")
        d.look(CREATED_LOOK_SECONDS)
        return
    attempt = teacher.attempt + 1
    d.set(
        part, attempt=attempt, state=State.Queued, child_uid=None, ready=0, reason=Reason.TeacherStarting, message=None
    )
    d.doing(Reason.TeacherStarting, f"teacher {teacher.name}: attempt {attempt} begins")
    d.look(0.0)


def _gone(d: Draft, part: str, teacher: TeacherStatus) -> Verdict:
    """The Deployment was deleted by someone else: whoever asks this attempt of the teacher has the address of no other."""
    deployment = d.name_of(part, teacher.attempt)
    said = f"Deployment {deployment} was deleted by somebody else"
    d.set(part, state=State.Waiting, child_uid=None, ready=0, url=None, message=said)
    d.remove_service(deployment)
    return disruption(None, f"teacher {teacher.name}: {said}")


def _watch(d: Draft, part: str, name: str, child: MainChild) -> Verdict | bool:
    pods = d.pods_of(child)
    answers = child.ready > 0 and not child.deleting
    d.set(part, ready=child.ready, desired=child.desired)
    if not answers:
        verdict = _given_up(d, name, child, pods)
        if verdict is not None:
            return verdict
    service_gone = child.name not in d.seen.services
    if service_gone and not child.deleting:  # somebody deleted it: workers could not find the teacher any more
        d.create.extend(c for c in teacher_children(d.context, name, child.attempt) if c.manifest["kind"] == "Service")
    if answers:
        url = teacher_url(d.context, name, child.attempt)
        d.set(part, state=State.Running, url=url, reason=Reason.TeacherReady, message=None)
        return True
    said = f"{child.ready} of {child.desired} replicas of Deployment {child.name} answer"
    trouble = pending_trouble(pods, child, d.now) or silent_node(pods)
    d.facts.trouble = trouble or d.facts.trouble
    if d.teacher(name).state != State.Running:
        why = trouble or Said(Reason.TeacherStarting, said)
        d.set(part, state=State.Starting, reason=why.reason, message=why.message)
    d.doing(Reason.TeacherStarting, said)
    return d.teacher(name).state == State.Running


def _given_up(d: Draft, name: str, child: MainChild, pods: list[PodSeen]) -> Verdict | None:
    """Why a teacher that does not answer never will: what its container says, or the time that it took."""
    answered = d.teacher(name).state == State.Running  # once: workers wait for it up to outageTimeoutSeconds
    for pod in pods:
        # how a run ended that another has followed is old news of a teacher that answered since
        ending = pod.ending or (None if answered and pod.started is not None else pod.last_ending)
        if ending is None:
            continue
        verdict = of_pod(pod, ending)
        said = f"teacher {name}: {verdict.message}"
        if verdict.kind is Kind.Final:
            return Verdict(Kind.Final, verdict.reason, said, verdict.failure)
        if pod.restarts >= CRASHES and not answered:
            return Verdict(Kind.Retry, Reason.TeacherUnreachable, said, verdict.failure)
    limit = d.context.hosted_teacher(name).startup_timeout_seconds
    if answered or not d.past(_begun(pods), limit + DEADLINE_MARGIN_SECONDS):
        return None
    return Verdict(
        Kind.Retry,
        Reason.TeacherUnreachable,
        f"teacher {name}: Deployment {child.name} did not answer within {limit} s of its first container's start "
        "(startupTimeoutSeconds); raise it, or see its log",
        Failure(class_=ExitClass.TeacherUnreachable.name),
    )


def taken_away(d: Draft, name: str) -> Verdict | None:
    """Where a teacher that answered does not any more because its pods were taken from their nodes: what that is for the stage
    that asks it. None where it ended by itself, or answers."""
    teacher = d.teacher(name)
    child = d.child(TEACHER_PREFIX + name, teacher.attempt)
    if teacher.state != State.Running or child is None or child.ready:
        return None
    pods = d.pods_of(child)
    gone = next((pod for pod in pods if is_disrupted(pod)), None)
    fresh = [pod for pod in pods if pod.deleted_at is None and pod.phase == "Pending" and pod.started is None]
    if gone is None and not any(pod.restarts == 0 and pod.last_ending is None for pod in fresh):
        return None  # a container that ends is started again in its own pod
    named = gone or fresh[0]
    said = f"teacher {name}: its pods were taken from their nodes, and pod {named.name} is all there is of it"
    return disruption(named, said)


def held_seconds(d: Draft, name: str) -> float:
    """GPUs times seconds that this attempt of a teacher has had nodes for, however often its containers were started anew."""
    pods = d.pods(TEACHER_PREFIX + name, d.teacher(name).attempt)
    return sum(pod.gpus * (d.now - pod.scheduled).total_seconds() for pod in pods if pod.scheduled is not None)


def _begun(pods: Sequence[PodSeen]) -> str | None:
    """When the first container began to load the teacher; None while all pods wait, for a node or an image: that is no startup."""
    there = [pod for pod in pods if pod.phase not in ("Succeeded", "Failed") and pod.deleted_at is None]
    runs = [run for pod in there for run in (pod, pod.last_ending) if run is not None]
    started = [run.started for run in runs if run.started is not None]
    return stamp(min(started)) if started else None
