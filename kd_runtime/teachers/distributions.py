"""What only a whole distribution gives beside its head: tail mass at other temperatures, entropy, draws from the tail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kd_runtime.logits.spec import ShardSpec


def beyond_head(
    lp: Tensor, inside: Tensor, spec: ShardSpec, uniforms: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[Any]]:
    """The fields tail_tau [p, J], entropy [p] and draws [p, M] of a TeacherRow, as far as ``spec`` asks for them.

    From logprobs ``lp`` [p, V], the mask of the head ``inside`` [p, V] and ``uniforms`` [p, M] in [0, 1). Sums are in
    fp64. Profile Unbiased takes entropy and draws at its one temperature.
    """
    fields: dict[str, Tensor] = {}
    if spec.temperatures:
        fields["tail_tau"] = _tail_tau(lp, inside, spec.temperatures)
    if spec.entropy:
        fields["entropy"] = _entropy(lp, spec.own_temperature)
    if spec.m:
        fields["draws"] = _draws(lp, inside, spec.own_temperature, uniforms)
    return {name: value.cpu().numpy() for name, value in fields.items()}


def uniforms_of_row(key: bytes, positions: int, draws: int, seed: int) -> npt.NDArray[np.float64]:
    """[positions, draws] in [0, 1), decided by the row's key, the position's number and ``seed`` alone."""
    bits = np.random.Philox(key=int.from_bytes(key, "little") ^ seed)
    return np.random.Generator(bits).random((positions, draws))


def _tail_tau(lp: Tensor, inside: Tensor, temperatures: Sequence[float]) -> Tensor:
    tail = lp.double().masked_fill(inside, -torch.inf)
    return torch.stack([(tail / t).logsumexp(1) for t in temperatures], 1)


def _entropy(lp: Tensor, temperature: float) -> Tensor:
    tempered = (lp.double() / temperature).log_softmax(1)
    return -(tempered.exp() * tempered.clamp(min=-1e4)).sum(1)


def _draws(lp: Tensor, inside: Tensor, temperature: float, uniforms: npt.NDArray[Any]) -> Tensor:
    """By inverting the tail's cumulative mass; all -1 where there is no tail."""
    tail = (lp.double() / temperature).masked_fill(inside, -torch.inf)
    largest = tail.amax(1, keepdim=True)
    cumulative = (tail - largest.clamp(min=-1e300)).exp().cumsum(1)
    total = cumulative[:, -1:]
    at = torch.from_numpy(uniforms).to(total) * total
    at = torch.minimum(at, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, at, right=True)  # a step of no mass is never the first one above
    return torch.where(total > 0, drawn, -1)
