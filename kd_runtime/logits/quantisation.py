"""Profile Compact: a head's logprobs as the first one, the distance to the last, and a byte each in between."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 255
"""What the last entry's byte is, where it differs from the first."""
HALF = float(np.finfo(np.float16).eps) / 2
"""How far rounding to f16 takes a number, at most, in parts of it."""
FLOAT_NOISE = 2e-6
"""Of logprobs that are formed twice in float32."""


def quantised(lp: NDArray[Any]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Planes top_s [P, 2] and top_q [P, K] of logprobs [P, K] that never rise: (first, first - last), and
    round(255 (first - lp) / (first - last)) from values that are not rounded yet."""
    wide = np.minimum(lp.astype(np.float64), 0)
    distance = wide[:, :1] - wide
    span = distance[:, -1:]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scales = np.concatenate([wide[:, :1], span], 1).astype(np.float16)
        steps = np.clip(np.rint(STEPS * distance / span), 0, STEPS)
    flat = scales[:, 1:] == 0
    return scales, np.where(flat, 0, steps).astype(np.uint8)


def dequantised(scales: NDArray[np.float16], steps: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logprobs [P, K] from the planes, not normalised."""
    wide = scales.astype(np.float32)
    lp: NDArray[np.float32] = wide[:, :1] - wide[:, 1:] * (steps.astype(np.float32) / np.float32(STEPS))
    return lp


def rounding(top_lp: NDArray[Any], moved: NDArray[Any], compact: bool) -> NDArray[np.float32]:
    """[P]: with `HALF` of the entry itself, how far any of a position's logprobs may be from what the teacher gave, nats.

    ``top_lp`` [P, K] as stored, over the temperature; ``moved`` [P] is what normalising took from each. Its own effect
    on the entries is not in it: the mean of all entries' errors.
    """
    first, span = np.abs(top_lp[:, 0]), top_lp[:, 0] - top_lp[:, -1]
    bound: NDArray[np.float32] = HALF * np.abs(moved) + FLOAT_NOISE
    if compact:
        bound += HALF * first + span * (0.5 / STEPS + HALF)
    return bound
