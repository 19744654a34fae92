"""That all ranks begin alike: each node read the inputs and looked for a checkpoint by itself, and may have seen another store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from kd_runtime.api.failures import TransientError
from kd_runtime.training.task import RankTask


def agree(task: RankTask) -> None:
    """Compare what all ranks were told to begin with. All ranks call it at once, their devices set.

    Raises:
        TransientError: they differ; the nodes of the next attempt look again.
    """
    starts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(starts, task.start)
    said = difference(starts)
    if said is not None:
        raise TransientError(f"train: {said}: the nodes saw different things in the store; to be tried again")


def difference(starts: Sequence[Mapping[str, Any]]) -> str | None:
    """How the first rank's start differs from that of the first rank that begins otherwise; None where all are alike."""
    first = starts[0]
    for rank, start in enumerate(starts):
        names = [name for name in {**first, **start} if first.get(name) != start.get(name)]
        if names:
            facts = ", ".join(f"{name} {first.get(name)} and {start.get(name)}" for name in names)
            return f"ranks 0 and {rank} begin with {facts}"
    return None
