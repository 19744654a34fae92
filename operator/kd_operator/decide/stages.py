"""The stages of a plan, one after the other: found, or run until their artifact is there (pure)."""

from __future__ import annotations

from kd_operator.children.build import stage as stage_children
from kd_operator.decide import teachers
from kd_operator.decide.attempts import Over, Part, advance, count_waste, end_attempt, look_up_again, sum_attempts
from kd_operator.decide.draft import Draft
from kd_operator.decide.failures import Verdict, lost
from kd_operator.decide.peers import peer_ahead, peer_at_work
from kd_operator.observed import PeerSeen
from kd_operator.status.conditions import Said
from kd_operator.status.states import AT_WORK, State, stamp
from kd_runtime.api.labels import RECONCILE_ANNOTATION
from kd_runtime.api.reasons import Reason
from kd_runtime.api.result import StageResult
from kd_runtime.api.status import Metric, RowCounts, StageStatus, StageTimes, Usage
from kd_runtime.api.wiring import DATASET

PEER_LOOK_SECONDS = 30.0
MAX_METRICS = 32


def advance_stage(d: Draft, stage: StageStatus) -> None:
    """One step of the first stage that is not settled."""
    name = stage.name
    asked = teachers.hosted_name(d, name)
    if stage.state not in AT_WORK and not teachers.release(d, keep=asked):
        return  # the GPUs of a teacher that is not asked any more are not free yet
    if asked is not None and stage.state in AT_WORK and stage.child_uid is not None and not d.concluding():
        verdict = teachers.ready(d, asked)
        if isinstance(verdict, Verdict):
            _end(d, name, verdict)
            return
    part = Part(
        name,
        lambda attempt: stage_children(
            d.context, name, attempt, teacher_attempt=d.teacher(asked).attempt if asked else 0
        ),
        timeout_seconds=_timeout(d, name),
        may_claim=lambda: _may_claim(d, name),
        may_create=lambda: _may_create(d, name, asked),
    )
    over = advance(d, part)
    if over is not None:
        _conclude(d, name, over)
    elif asked is not None and stage.state not in AT_WORK and d.stage(name).state == State.Queued:
        teachers.claim(d, asked)


def _timeout(d: Draft, name: str) -> int | None:
    stage = d.context.stage(name)
    return stage.timeout_seconds if stage is not None else None


def _may_claim(d: Draft, name: str) -> bool:
    """False where a peer makes this artifact; once it has, the plan is looked up again and finds it."""
    peer = peer_at_work(d, d.stage(name).key)
    if peer is None:
        return True
    d.set(name, state=State.Waiting)  # of a stage that was to be tried again too: an older peer may wait for that one
    _wait_for(d, name, peer)
    return False


def _may_create(d: Draft, name: str, asked: str | None) -> bool:
    stage = d.stage(name)
    peer, ahead = peer_at_work(d, stage.key), peer_ahead(d, stage.key)
    if ahead is not None:  # both claimed at the same moment: one withdraws, uncounted
        d.set(name, state=State.Waiting)
    if peer is not None:
        _wait_for(d, name, ahead or peer)
        return False
    if stage.reason == Reason.WaitingForPeer:
        d.set(name, reason=Reason.Queued, message=f"attempt {stage.attempt} is claimed")
    if asked is None:
        return teachers.release(d)
    verdict = teachers.ready(d, asked)
    if isinstance(verdict, Verdict):
        _end(d, name, verdict)
        return False
    return verdict is True


def _wait_for(d: Draft, name: str, peer: PeerSeen) -> None:
    message = f"{name}: job {peer.name} is making the same artifact, which will be found"
    if peer.disabled:
        message = (
            f"{name}: pods of job {peer.name} are making the same artifact, but nobody looks after them "
            f"({RECONCILE_ANNOTATION}: disabled); remove that annotation, or delete them or the job"
        )
        d.facts.trouble = Said(Reason.WaitingForPeer, message)
    teachers.release(d)  # a peer may take days: no GPU is held for that
    d.set(name, reason=Reason.WaitingForPeer, message=message)
    d.doing(Reason.WaitingForPeer, message)
    d.waits_for_peers = True
    d.look(PEER_LOOK_SECONDS)


def waited_for_peer(d: Draft, stage: StageStatus) -> bool:
    """True where the stage waited and its peer does not make the artifact any more: look the plan up before going on."""
    waiting = stage.state == State.Waiting and stage.reason == Reason.WaitingForPeer
    if not waiting or peer_at_work(d, stage.key) is not None:
        return False
    d.set(stage.name, reason=None, message=None)
    look_up_again(d)
    return True


def _conclude(d: Draft, name: str, over: Over) -> None:
    if over.verdict is not None:
        _end(d, name, over.verdict, over)
        return
    results = [StageResult.parse(pod.ending.message) for pod in over.pods if pod.ending is not None]
    named = next((r for r in results if r is not None and r.manifest_sha256 is not None), None)
    if named is None:
        end_attempt(d, name, lost(over.child))
        return
    _succeed(d, name, over, named)


def _end(d: Draft, name: str, verdict: Verdict, over: Over | None = None) -> None:
    """A failed attempt of a stage; what only its teacher can be blamed for ends the teacher too."""
    blamed, asked = verdict.reason is Reason.TeacherUnreachable, teachers.hosted_name(d, name)
    if blamed and asked is not None:
        verdict = teachers.taken_away(d, asked) or verdict
    end_attempt(d, name, verdict, tries=over.tries if over else 1, replaced=over.replaced if over else 0)
    if blamed and asked is not None and d.teacher(asked).state != State.Running:
        count_waste(d, teachers.held_seconds(d, asked))
    if blamed or d.facts.failed is not None:
        teachers.release(d)


def _succeed(d: Draft, name: str, over: Over, result: StageResult) -> None:
    stage, counts = d.stage(name), result.counts
    d.set(
        name,
        state=State.Succeeded,
        found=False,
        manifest_sha256=result.manifest_sha256,
        uri=f"{d.job.spec.artifacts.uri.rstrip('/')}/artifacts/{stage.key}/",
        times=(stage.times or StageTimes()).model_copy(update={"finished": stamp(d.now)}),
        reason=Reason.Succeeded,
        message=_done(over.child, counts),
        progress=None,
        checkpoint=None,
        lost=0,
        repeated=None,
        disruptions=stage.disruptions + over.replaced,
        rows=_rows(counts),
        metrics=tuple(Metric(name=k, value=v) for k, v in sorted(result.metrics.items())[:MAX_METRICS]),
        gates_unmet=tuple(f"{gate.metric} of {gate.of} {gate.measured()}" for gate in result.gates if not gate.passed),
    )
    sum_attempts(d)
    d.doing(Reason.Running, _done(over.child, counts))
    usage = d.status.usage or Usage()
    read = counts.get("tokens", 0) if stage.type == "capture" else counts.get("promptTokens", 0)
    d.update(
        usage=usage.model_copy(
            update={
                "prompt_tokens": usage.prompt_tokens + read,
                "completion_tokens": usage.completion_tokens + counts.get("completionTokens", 0),
                "bytes_staged": usage.bytes_staged + result.written,
            }
        )
    )
    d.look(0.0)


def _done(child: str, counts: dict[str, int]) -> str:
    said = ", ".join(f"{count:,} {what}" for what, count in list(counts.items())[:4])
    return f"Job {child} made it: {said}" if said else f"Job {child} made it"


def _rows(counts: dict[str, int]) -> RowCounts | None:
    if "in" not in counts and "out" not in counts:
        return None
    return RowCounts(
        in_=counts.get("in", 0),
        done=counts.get("done", 0),
        rejected=counts.get("rejected", 0),
        out=counts.get("out", counts.get("rows", 0)),
    )


def known_stages(d: Draft) -> tuple[StageStatus, ...]:
    """The job's stages as the first status lists them."""
    names = [(DATASET, "ingest"), *((stage.name, stage.type) for stage in d.job.spec.stages)]
    return tuple(StageStatus(name=name, type=kind, state=State.Waiting) for name, kind in names)
