"""What training reads of one row: its scored positions and the teacher's distribution there, normalised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowTargets:
    """The targets of a row's P scored positions; token ``positions[i]`` pairs with the student's logits one before."""

    key: bytes
    input_ids: NDArray[np.uint32]
    """[N]: the ids that the teacher saw."""
    positions: NDArray[np.int64]
    """[P]: indices of the scored tokens."""
    top_ids: NDArray[np.int32] | None
    """[P, K], by descending logprob; None for profile Label."""
    top_lp: NDArray[np.float32] | None
    """[P, K]: nats, normalised with ``tail_lp`` over K+1."""
    tail_lp: NDArray[np.float32] | None
    """[P]: log of the mass outside the head, normalised likewise."""
    lab_lp: NDArray[np.float32]
    """[P]: logprob of the label as the teacher gave it."""
    lab_rank: NDArray[np.uint16]
    """[P]: rank of the label from 1, saturating at 65,535."""
    rounding: NDArray[np.float32] | None = None
    """[P]: with 2^-11 of the entry itself, how far each may be from the teacher's by what storing rounds, nats."""
    entropy: NDArray[np.float32] | None = None
    """[P]: the teacher's, nats; at T = 1, for profile Unbiased at the temperature of its capture."""
    draw_ids: NDArray[np.int32] | None = None
    """[P, M]: distinct ids drawn from the tail, -1 where there are fewer; profile Unbiased at its own temperature."""
    draw_counts: NDArray[np.uint8] | None = None
    """[P, M]: how often each was drawn."""

    @property
    def label_ids(self) -> NDArray[np.int32]:
        """[P]: ids of the scored tokens."""
        return self.input_ids[self.positions].astype(np.int32)

    def with_draws(self) -> RowTargets:
        """Profile Unbiased: the draws appended to the head, each with its share of the tail's mass, and no tail left.

        The targets sum to 1, and their mean over the draws is the teacher's whole distribution. Without draws, self.
        """
        if self.draw_ids is None or self.draw_counts is None or self.top_ids is None:
            return self
        assert self.top_lp is not None and self.tail_lp is not None
        counts = self.draw_counts.astype(np.float32)
        total = counts.sum(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            lp = self.tail_lp[:, None] + np.log(counts / total)
        lp = np.where(counts > 0, lp, -np.inf).astype(np.float32)
        return replace(
            self,
            top_ids=np.concatenate([self.top_ids, self.draw_ids], 1),
            top_lp=np.concatenate([self.top_lp, lp], 1),
            tail_lp=np.where(total[:, 0] > 0, -np.inf, self.tail_lp).astype(np.float32),
        )


def normalise(top_lp: NDArray[Any], tail_lp: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Head [P, K] and tail [P] minus log-sum-exp over K+1, in float32: entries rounded to f16 do not sum to one."""
    top, tail = top_lp.astype(np.float32), tail_lp.astype(np.float32)
    largest = np.maximum(top[:, 0], tail)
    total = largest + np.log(np.exp(top - largest[:, None]).sum(1, dtype=np.float32) + np.exp(tail - largest))
    return top - total[:, None], tail - total
