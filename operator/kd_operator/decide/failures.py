"""How an attempt ended: one verdict from its pods' endings (contract 7; pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from kd_operator.children.context import Component
from kd_operator.observed import Ending, MainChild, PodSeen
from kd_operator.status.states import stamp
from kd_runtime.api.failures import GANG_ORDER, ExitClass, exit_class
from kd_runtime.api.poison import TIMES
from kd_runtime.api.reasons import Reason
from kd_runtime.api.result import PlanResult, StageResult
from kd_runtime.api.status import Failure

OUT_OF_MEMORY = "OOMKilled"
OUTGROWN = ("exceeds the limit", "exceeds the total limit", "exceeded its local ephemeral storage limit")
"""What a kubelet says of a pod that wrote more than its own limits allow, as opposed to one whose node ran short."""
DISRUPTED_REASONS = frozenset({"Evicted", "NodeLost", "Shutdown", "Terminated", "NodeAffinity", "Preempting"})
"""status.reason of pods that were taken from their node, where the condition DisruptionTarget is missing."""

REASONS = {
    ExitClass.BadSettings: Reason.BadSettings,
    ExitClass.BadData: Reason.BadData,
    ExitClass.GateUnmet: Reason.GateFailed,
    ExitClass.TeacherUnreachable: Reason.TeacherUnreachable,
    ExitClass.Bug: Reason.Bug,
    ExitClass.AcceleratorOutOfMemory: Reason.AcceleratorOutOfMemory,
    ExitClass.HostOutOfMemory: Reason.HostOutOfMemory,
    ExitClass.Storage: Reason.StorageUnavailable,
    ExitClass.Denied: Reason.Denied,
}
CONSEQUENCES = (ExitClass.Drained, ExitClass.Killed, ExitClass.PeerLost)
"""What pods of a gang end with because another one of it is not there."""
_STAGE_MEMORY = "the stage's resources.memory"
_MEMORY: dict[str, str] = {
    Component.Plan: "the memory of the runtime's spec.pod.plan.resources",
    Component.Teacher: "the memory of the runtime's spec.pod.teacher.resources",
}
"""By component, what sets a pod's memory where no stage does."""
DISRUPTION_TARGET = "DisruptionTarget"
DISRUPTION = "Disruption"
"""What a disruption is called where others have an exit class."""


class Kind(Enum):
    """What follows from the end of an attempt."""

    Final = "no retry can help"
    Retry = "tried again, and counted"
    Free = "tried again, free of charge"
    Lost = "its result is gone: looked up again"


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended, and what follows."""

    kind: Kind
    reason: Reason
    message: str
    """One sentence, with the child's name and the exit code."""
    failure: Failure
    position: str = ""
    """Where: `step 12`, `unit 3`."""
    times: int = 1
    """How often in a row it came within this attempt: workers are tried again by their own Job."""
    at_once: bool = False
    """Of a free end: the next attempt needs no pause, however many came before. It drained, or its pod was taken from its node on
    purpose; of all else a sick node may be the cause."""

    @property
    def class_name(self) -> str:
        """The exit class, or Disruption."""
        return self.failure.class_ or DISRUPTION


def pod_class(pod: PodSeen) -> ExitClass | None:
    """The class of a pod that has ended; None for a disruption, or where nothing can be read of it."""
    ending = pod.ending
    if ending is not None and ending.reason == OUT_OF_MEMORY:
        return ExitClass.HostOutOfMemory
    if is_disrupted(pod) or ending is None:
        return None
    return exit_class(ending.exit_code)


def is_disrupted(pod: PodSeen) -> bool:
    """True where the pod was taken from its node: evicted, preempted, its node lost; not for what it did itself."""
    return (pod.disrupted or pod.pod_reason in DISRUPTED_REASONS) and not outgrew_scratch(pod)


def outgrew_scratch(pod: PodSeen) -> bool:
    """True where its node ended the pod because it wrote more than its own volumes may hold."""
    return pod.pod_reason == "Evicted" and any(said in pod.pod_message for said in OUTGROWN)


def scratch_full(pod: PodSeen) -> Verdict:
    """The verdict over an attempt of which a pod did."""
    said = f"pod {pod.name} was ended by {_node(pod)}: {pod.pod_message.strip()}"
    return Verdict(Kind.Retry, Reason.ScratchFull, said, failure_of(pod, ExitClass.Transient.name, pod.ending))


def being_taken(pods: Sequence[PodSeen]) -> PodSeen | None:
    """A pod that is on its way out because its node is lost, drained or wanted for others: nothing calls that off."""
    return next((pod for pod in pods if pod.deleted_at is not None and is_disrupted(pod)), None)


def final_ending(pods: Sequence[PodSeen], *, broken: bool = False) -> PodSeen | None:
    """The pod whose class ends the attempt at once, whatever the others do; None where there is none.

    In a gang of which a pod was taken away, the others' classes are a consequence, but for memory (contract 7's order).
    ``broken``: one was, as is known of one that may be gone since.
    """
    ended = [(pod, pod_class(pod)) for pod in pods if pod.ending is not None]
    final = [(pod, kind) for pod, kind in ended if kind is not None and kind.final]
    if broken or any(pod.component == Component.Trainer and is_disrupted(pod) for pod in pods):
        final = [(pod, kind) for pod, kind in final if kind is ExitClass.HostOutOfMemory]
    return min(final, key=lambda one: GANG_ORDER.index(one[1]))[0] if final else None


def freely(failure: Failure | None) -> bool:
    """Whether what a status keeps of an attempt's end is of one that was, or may have been, free of charge."""
    names = (DISRUPTION, *(kind.name for kind in CONSEQUENCES))
    return failure is not None and failure.class_ in names


def was_free(pod: PodSeen) -> bool:
    """True for a pod that ended in a way that its own Job does not count: it starts another in its place."""
    return is_disrupted(pod) or pod_class(pod) in (ExitClass.Drained, ExitClass.Killed)


def counted(pods: Sequence[PodSeen]) -> list[PodSeen]:
    """The pods whose failure their own Job counts, in the order in which they ended."""
    failed = [pod for pod in pods if pod.ending is not None and pod.ending.exit_code and not was_free(pod)]
    return sorted(failed, key=_ended)


def poison(pods: Sequence[PodSeen]) -> Verdict | None:
    """The verdict over workers of which one failed alike at one place three times in a row; None where none did.

    What the others fail at meanwhile has no part in it: they take other units.
    """
    failed = [(pod, _place(pod)) for pod in counted(pods)]
    for pod, place in reversed(failed):
        workers = {other.index for other, there in failed if there == place}
        row = [there for other, there in failed if other.index in workers]
        if place[1] and row[-TIMES:] == [place] * TIMES:
            return replace(of_pod(pod), times=TIMES)
    return None


def _ended(pod: PodSeen) -> str:
    return stamp(pod.ending.finished) if pod.ending is not None and pod.ending.finished is not None else ""


def _place(pod: PodSeen) -> tuple[ExitClass | None, str]:
    return pod_class(pod), result_sentence(pod.ending)[1] if pod.ending is not None else ""


def verdict(
    pods: Sequence[PodSeen], child: MainChild, *, peer_lost_before: bool = False, taken_before: Failure | None = None
) -> Verdict:
    """The verdict over a gang, or over the workers of a stage: the highest class of its pods (contract 7's order).

    ``peer_lost_before``: the attempt before ended with 78 as well, so that this one counts. ``taken_before``: a pod of this one
    that was seen on its way from its node; it may be gone since, and its ending with it.
    """
    failed = [pod for pod in pods if pod.phase == "Failed" or (pod.ending and pod.ending.exit_code != 0)]
    readable = [pod for pod in failed if pod.ending is not None]
    out_of_memory = [pod for pod in readable if pod_class(pod) is ExitClass.HostOutOfMemory]
    if out_of_memory:
        return of_pod(out_of_memory[0])
    taken, stayed = [pod for pod in failed if is_disrupted(pod)], [pod for pod in readable if not is_disrupted(pod)]
    # An evicted worker was replaced: what the others end with is their own.
    if child.component == Component.Workers and stayed:
        readable = stayed
    elif taken:
        return disruption(taken[0], f"pod {taken[0].name} was taken from {_node(taken[0])} ({_taken(taken[0])})")
    elif taken_before is not None:
        node = f"node {taken_before.node}" if taken_before.node else "its node"
        said = f"pod {taken_before.pod} was taken from {node} ({taken_before.reason or DISRUPTION_TARGET})"
        return Verdict(Kind.Free, Reason.Disrupted, said, taken_before, at_once=True)
    refused = [pod for pod in failed if pod.ending is None and pod.pod_reason]
    if refused and all(pod_class(pod) in CONSEQUENCES for pod in readable):
        return disruption(
            refused[0], f"pod {refused[0].name} was not let start on {_node(refused[0])} ({_taken(refused[0])})"
        )
    if not readable:
        said = f" ({child.failed_message})" if child.failed_message else ""
        return disruption(
            None, f"{child.name} has failed and none of its pods is left: they were deleted, or their nodes lost{said}"
        )
    worst = min(readable, key=lambda pod: GANG_ORDER.index(pod_class(pod) or ExitClass.Transient))
    return of_pod(worst, peer_lost_before=peer_lost_before)


def of_pod(pod: PodSeen, ending: Ending | None = None, *, peer_lost_before: bool = False) -> Verdict:
    """The verdict over one pod that has ended (or whose container had: ``ending``)."""
    ending = ending or pod.ending
    assert ending is not None
    kind = ExitClass.HostOutOfMemory if ending.reason == OUT_OF_MEMORY else exit_class(ending.exit_code)
    said, position = result_sentence(ending)
    if kind is ExitClass.HostOutOfMemory:
        said = f"was ended for exceeding its memory limit; raise {_MEMORY.get(pod.component, _STAGE_MEMORY)}"
    elif not said:
        said = "left no result; its log may say more"
    how = f"signal {ending.signal}" if ending.signal else f"exit code {ending.exit_code}"
    return Verdict(
        kind=_kind(kind, peer_lost_before),
        reason=REASONS.get(kind, Reason.Backoff),
        message=f"pod {pod.name} ({how}, {kind.name}): {said}",
        failure=failure_of(pod, kind.name, ending),
        position=position,
        at_once=kind is ExitClass.Drained,
    )


def _kind(kind: ExitClass, peer_lost_before: bool) -> Kind:
    if kind.final:
        return Kind.Final
    if kind in (ExitClass.Drained, ExitClass.Killed):
        return Kind.Free
    if kind is ExitClass.PeerLost:
        return Kind.Retry if peer_lost_before else Kind.Free
    return Kind.Retry


def disruption(pod: PodSeen | None, message: str) -> Verdict:
    """The verdict over an attempt that was taken away."""
    failure = failure_of(pod, DISRUPTION, pod.ending) if pod else Failure(class_=DISRUPTION)
    return Verdict(Kind.Free, Reason.Disrupted, message, failure, at_once=pod is not None and pod.disrupted)


def lost(child: str) -> Verdict:
    """The verdict over an attempt that ended without a readable result."""
    message = f"{child}: ended without a result that names its artifact"
    return Verdict(Kind.Lost, Reason.ResultLost, message, Failure(class_="ResultLost"))


def failure_of(pod: PodSeen, class_name: str, ending: Ending | None) -> Failure:
    """How a pod ended, for `lastFailure`."""
    return Failure(
        class_=class_name,
        pod=pod.name,
        container=pod.component,
        exit_code=ending.exit_code if ending else None,
        signal=ending.signal if ending else None,
        reason=(ending.reason if ending else pod.pod_reason or pod.disruption)[:64] or None,
        node=pod.node,
        time=stamp(ending.finished) if ending and ending.finished else None,
    )


def result_sentence(ending: Ending) -> tuple[str, str]:
    """What a result file says, and where it happened; ('', '') where there is none."""
    result = StageResult.parse(ending.message)
    if result is not None:
        return result.message, result.position
    plan = PlanResult.parse(ending.message)
    return (plan.message, "") if plan is not None else ("", "")


def _taken(pod: PodSeen) -> str:
    return ": ".join(said for said in (pod.pod_reason or pod.disruption or DISRUPTION_TARGET, pod.pod_message) if said)


def _node(pod: PodSeen) -> str:
    return f"node {pod.node}" if pod.node else "its node"
