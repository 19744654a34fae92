"""Gates: does a score pass, with the confidence that was asked for? (contract 10)"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.job import Gate, GateMetric, GateOp
from kd_runtime.api.result import GateOutcome
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import Manifest, read_manifest
from kd_runtime.artifacts.store import Store
from kd_runtime.evaluation.bootstrap import RESAMPLES, Bootstrap
from kd_runtime.evaluation.scores import Items, Score, Who, change_bootstrap, gap_bootstrap, read_items, score_bootstrap
from kd_runtime.planning.plan import Plan, StageType

ITEMS = "items.jsonl"
"""The per-prompt values of an evaluation, in its artifact."""
NEEDS: dict[GateMetric, tuple[Who, ...]] = {
    GateMetric.value: (Who.Student,),
    GateMetric.change: (Who.Student, Who.Baseline),
    GateMetric.recoveredGap: (Who.Student, Who.Baseline, Who.Teacher),
}


@dataclass(frozen=True)
class Judged:
    """A gate with its outcome."""

    gate: Gate
    outcome: GateOutcome

    def sentence(self) -> str:
        """``recoveredGap of KL: at least 0.5 with 95 % confidence is asked; it is 0.43, its lower bound 0.39``."""
        least = self.gate.op is GateOp.AtLeast
        return (
            f"{self.gate.metric} of {self.gate.of}: {'at least' if least else 'at most'} {self.gate.value:g} "
            f"with {100 * self.gate.confidence:g} % confidence is asked; it "
            f"{self.outcome.measured('lower bound' if least else 'upper bound')}"
        )


def judge_manifest(store: Store, cache: Cache, manifest: Manifest, gates: Sequence[Gate]) -> tuple[Judged, ...]:
    """``gates`` judged for an evaluation that is there: they are no part of its key, so they are judged anew each time.

    Raises:
        SettingsError: a gate's score was not measured.
        StorageError, TransientError: the per-prompt values cannot be read.
    """
    if not gates:
        return ()
    lines = cache.file(store, manifest.object(ITEMS)).read_text(encoding="utf-8").splitlines()
    return judge(gates, read_items(lines))


def unmet_gates(plan: Plan, store: Store, cache: Cache) -> dict[str, str]:
    """Evaluate stage -> its gates that are not reached, of those evaluations that are there and that no publish stage reads
    (publish judges the others itself).

    Raises:
        SettingsError, StorageError, TransientError: as `judge_manifest`.
    """
    read = {name for stage in plan.stages if stage.type is StageType.Publish for name in stage.inputs.values()}
    unmet = {}
    for stage in plan.stages:
        body = plan.settings(stage.name).evaluate if stage.type is StageType.Evaluate else None
        manifest = read_manifest(store, stage.key) if body and body.gates and stage.name not in read else None
        if body is not None and manifest is not None:
            judged = judge_manifest(store, cache, manifest, body.gates)
            said = "; ".join(one.sentence() for one in judged if not one.outcome.passed)
            if said:
                unmet[stage.name] = said
    return unmet


def judge(gates: Iterable[Gate], items: Items, *, resamples: int = RESAMPLES) -> tuple[Judged, ...]:
    """Each gate against the per-prompt values: passed if the one-sided bootstrap bound at its confidence is.

    Raises:
        SettingsError: a gate's score was not measured; the message says what is missing.
    """
    return tuple(Judged(gate, _outcome(gate, _bootstrap(gate, items, resamples))) for gate in gates)


def _bootstrap(gate: Gate, items: Items, resamples: int) -> Bootstrap:
    metric, score = gate.metric, Score(gate.of)
    for who in NEEDS[metric]:
        if not items.has(score, who):
            raise SettingsError(
                f"gate {metric} of {score}: {score} of the {who} was not measured; give the stage the inputs that it needs, "
                "or take the gate out"
            )
    if metric is GateMetric.recoveredGap:
        worst = -math.inf if gate.op is GateOp.AtLeast else math.inf
        return gap_bootstrap(items, score, no_gap=worst, resamples=resamples)
    if metric is GateMetric.change:
        return change_bootstrap(items, score, resamples=resamples)
    return score_bootstrap(items, score, Who.Student, resamples=resamples)


def _outcome(gate: Gate, drawn: Bootstrap) -> GateOutcome:
    least = gate.op is GateOp.AtLeast
    bound = drawn.lower(gate.confidence) if least else drawn.upper(gate.confidence)
    passed = bound >= gate.value if least else bound <= gate.value
    return GateOutcome(
        metric=gate.metric, of=gate.of, value=_finite(drawn.value), bound=_finite(bound), passed=bool(passed)
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
