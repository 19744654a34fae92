"""The learning rate of each step: a pure function of the step's number, so that resuming needs no scheduler's state."""

from __future__ import annotations

import math

from kd_runtime.api.job import ScheduleName


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
