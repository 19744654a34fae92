"""What training reads of one row: its scored positions and the teacher's distribution there, normalised."""

from __future__ import annotations

from dataclasses import dataclass
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

    @property
    def label_ids(self) -> NDArray[np.int32]:
        """[P]: ids of the scored tokens."""
        return self.input_ids[self.positions].astype(np.int32)


def normalise(top_lp: NDArray[Any], tail_lp: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Head [P, K] and tail [P] minus log-sum-exp over K+1, in float32: entries rounded to f16 do not sum to one."""
    top, tail = top_lp.astype(np.float32), tail_lp.astype(np.float32)
    largest = np.maximum(top[:, 0], tail)
    total = largest + np.log(np.exp(top - largest[:, None]).sum(1, dtype=np.float32) + np.exp(tail - largest))
    return top - total[:, None], tail - total
