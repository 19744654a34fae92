"""What changes from step to step: pure functions of the step's number, so that resuming needs no scheduler's state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kd_runtime.api.job import Objective, ScheduleName
from kd_runtime.api.train import Ramp


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleName, warmup_ratio: float) -> float:
    """The rate of ``step`` (from 0) of ``steps``.

    It rises linearly over the first ``warmup_ratio`` of the steps, is ``peak`` at the warm-up's last step, and then
    falls to (nearly) 0 as half a cosine or a line, or stays.
    """
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (steps - step) / max(steps - warmup, 1)
    if schedule is ScheduleName.Constant:
        return peak
    if schedule is ScheduleName.Linear:
        return peak * left
    return peak * 0.5 * (1 - math.cos(math.pi * left))


@dataclass(frozen=True)
class Moment:
    """What of the objective changes from step to step."""

    alpha: float
    temperature: float
    beta: float


def moment(objective: Objective, step: int, steps: int, temperatures: Sequence[float]) -> Moment:
    """The objective's numbers at ``step`` (from 0) of ``steps``; a temperature is the nearest of ``temperatures``.

    Of two that are equally near, the lower one.
    """

    def at(ramp: Ramp | None, constant: float) -> float:
        if ramp is None:
            return constant
        return ramp.start + (ramp.end - ramp.start) * step / max(steps - 1, 1)

    wanted = at(objective.temperature_schedule, objective.temperature)
    if objective.temperature_schedule is not None:
        wanted = min(sorted(temperatures), key=lambda each: abs(each - wanted))
    alpha, beta = at(objective.alpha_schedule, objective.alpha), at(objective.beta_schedule, objective.beta)
    return Moment(alpha, wanted, beta)
