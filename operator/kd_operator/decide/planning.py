"""The plan of a job: its pod's attempts, and what its result says of every stage (contract 12; pure)."""

from __future__ import annotations

from kd_operator.children.build import plan_job
from kd_operator.decide.attempts import Over, Part, advance, end_attempt
from kd_operator.decide.draft import Draft
from kd_operator.decide.failures import lost
from kd_operator.names import PLAN
from kd_operator.status.states import SETTLED, State, stamp
from kd_runtime.api.reasons import Reason
from kd_runtime.api.result import PlannedState, PlanResult
from kd_runtime.api.status import PlanStatus, StageStatus, StageTimes


def planned(d: Draft) -> bool:
    """True where the plan is looked up and nothing has made that doubtful since; else one step towards it."""
    if d.run(PLAN).state == State.Succeeded:
        return True
    if d.status.plan is None:
        d.update(plan=PlanStatus(state=State.Waiting))
    d.doing(Reason.Planning, "the plan pod looks the plan up")
    over = advance(d, Part(PLAN, lambda attempt: plan_job(d.context, attempt, retry=_retry(d))))
    if over is not None:
        _conclude(d, over)
    return d.run(PLAN).state == State.Succeeded


def _retry(d: Draft) -> str | None:
    return d.status.plan.retry if d.status.plan else None


def _conclude(d: Draft, over: Over) -> None:
    if over.verdict is not None:
        end_attempt(d, PLAN, over.verdict, tries=over.tries)
        return
    results = [PlanResult.parse(pod.ending.message) for pod in over.pods if pod.ending is not None]
    result = next((r for r in results if r is not None and r.digest is not None), None)
    if result is None:
        end_attempt(d, PLAN, lost(over.child))
        return
    d.set(
        PLAN,
        state=State.Succeeded,
        digest=result.digest,
        estimate=result.estimate,
        reason=Reason.Planned,
        message=result.message or None,
        failures=0,
        lost=0,
        repeated=None,
    )
    if d.status.plan is not None and d.status.plan.retry is not None:
        d.update(retry=d.status.plan.retry)
        d.set(PLAN, retry=None)
    for stage in result.stages:
        _apply(d, stage, result.unmet.get(stage.name))
    d.doing(Reason.Planned, result.estimate)
    d.look(0.0)


def _apply(d: Draft, planned: PlannedState, unmet: str | None) -> None:
    """What the look-up says of a stage: one that was made or found may have to run again, its artifact being gone."""
    stage = d.stage(planned.name)
    d.set(planned.name, key=planned.key)
    if planned.state in ("Found", "NotNeeded"):
        d.set(planned.name, **_settled(d, stage, planned))
    elif stage.state in SETTLED or stage.state is None:
        d.set(planned.name, state=State.Waiting, found=False, reason=None, message=None, manifest_sha256=None)
    d.set(planned.name, gates_unmet=(unmet,) if unmet else _kept_gates(stage, planned))


def _settled(d: Draft, stage: StageStatus, planned: PlannedState) -> dict[str, object]:
    if stage.state in SETTLED and stage.manifest_sha256 == planned.manifest:
        return {}
    made = stage.attempt > 0 and planned.state == "Found"
    reason = Reason.Found if planned.state == "Found" else Reason.NotNeeded
    times = stage.times or StageTimes()
    return {
        "state": State.Succeeded if made else State.Skipped,
        "found": planned.state == "Found" and not made,
        "manifest_sha256": planned.manifest,
        "reason": reason,
        "message": "found in the store" if planned.state == "Found" else "not needed: what reads it is found",
        "uri": f"{d.job.spec.artifacts.uri.rstrip('/')}/artifacts/{planned.key}/" if planned.manifest else None,
        "times": times.model_copy(update={"finished": stamp(d.now)}) if made else stage.times,
        "next_attempt_time": None,
        "lost": 0,
    }


def _kept_gates(stage: StageStatus, planned: PlannedState) -> tuple[str, ...]:
    return stage.gates_unmet if stage.manifest_sha256 == planned.manifest and planned.state == "Found" else ()
