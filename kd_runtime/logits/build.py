"""From a teacher's numbers to planes: order, rounding and tail mass, each decided once, here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_runtime.api.failures import DataError
from kd_runtime.logits.check import problems
from kd_runtime.logits.packing import pack_mask, pointers, split_ids
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.quantisation import quantised
from kd_runtime.logits.spec import ShardSpec

TAIL_FLOOR = 2.0**-16
"""Least tail mass where only the head is seen: an engine's float32 head can sum to more than one."""
MAX_RANK = 65_535


@dataclass(frozen=True)
class TeacherRow:
    """What a teacher says of one row of N tokens with P scored ones (logprobs in nats, float32 or wider)."""

    key: bytes
    """16 bytes, the row's key."""
    input_ids: NDArray[Any]
    """[N]"""
    scored: NDArray[np.bool_]
    """[N]; its first entry is false."""
    lab_lp: NDArray[Any]
    """[P]: logprob of each scored token."""
    lab_rank: NDArray[Any]
    """[P]: its rank from 1."""
    top_ids: NDArray[Any] | None = None
    """[P, at least K] in any order, without ids beyond the vocabulary; None for profile Label."""
    top_lp: NDArray[Any] | None = None
    """[P, at least K]"""
    tail_lp: NDArray[Any] | None = None
    """[P]: log of the mass outside the K largest, where whole distributions are seen; None: 1 - the head's sum, at
    least 2^-16."""
    entropy: NDArray[Any] | None = None
    """[P]: nats, where the spec keeps it, at its own temperature."""
    tail_tau: NDArray[Any] | None = None
    """[P, J]: log of the tail's sum of p^(1/T), for the spec's temperatures."""
    draws: NDArray[Any] | None = None
    """[P, M]: ids drawn from the tail with replacement; all -1 where there is no tail."""


def build_planes(spec: ShardSpec, rows: Sequence[TeacherRow]) -> Planes:
    """The planes of ``rows``. DataError where a value is impossible (NaN, a scored first token, a foreign id …)."""
    for row in rows:
        if len(row.key) != 16 or len(row.input_ids) != len(row.scored):
            raise DataError(
                f"logits: row {row.key.hex()} has {len(row.input_ids)} ids and {len(row.scored)} mask entries under "
                f"a key of {len(row.key)} bytes; they must be equally many, and 16"
            )
    arrays: dict[str, NDArray[Any]] = {
        "key": np.frombuffer(b"".join(row.key for row in rows), np.uint8).reshape(len(rows), 16),
        "row_ptr": pointers(np.array([len(row.input_ids) for row in rows])).astype(np.uint32),
        "pos_ptr": pointers(np.array([np.count_nonzero(row.scored) for row in rows])).astype(np.uint32),
        "input_ids": _joined([row.input_ids for row in rows], np.uint32),
        "scored": _joined([pack_mask(np.asarray(row.scored, np.bool_)) for row in rows], np.uint8),
        "lab_lp": _half(_joined([row.lab_lp for row in rows], np.float32)),
        "lab_rank": np.clip(_joined([row.lab_rank for row in rows], np.int64), 0, MAX_RANK).astype(np.uint16),
    }
    if spec.k:
        arrays |= _head_arrays(spec, rows)
    if spec.entropy:
        arrays["ent"] = _half(_given(rows, "entropy", np.float32), largest=np.inf)
    if spec.temperatures:
        arrays["tail_tau"] = _half(_given(rows, "tail_tau", np.float32, (len(spec.temperatures),)), largest=np.inf)
    if spec.m:
        arrays |= _draw_arrays(spec, _given(rows, "draws", np.int64, (spec.m,)))
    planes = Planes(spec, arrays)
    refuse_problems("logits", planes)
    return planes


def refuse_problems(where: str, planes: Planes) -> None:
    """DataError with the first thing that is wrong with ``planes``."""
    for problem in problems(planes):
        raise DataError(f"{where}: {problem}")


def ordered_head(ids: NDArray[Any], lp: NDArray[Any], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The ``k`` most probable of each position, by descending logprob, ties by lower id."""
    wrong = np.flatnonzero((lp[:, 1:] >= lp[:, :-1]).any(1))  # engines sort already, but leave the order of ties open
    if len(wrong):
        order = np.lexsort((ids[wrong], -lp[wrong]), axis=1)
        ids, lp = ids.copy(), lp.copy()
        ids[wrong] = np.take_along_axis(ids[wrong], order, 1)
        lp[wrong] = np.take_along_axis(lp[wrong], order, 1)
    return ids[:, :k], lp[:, :k]


def tail_of_head(lp: NDArray[Any]) -> NDArray[np.float64]:
    """log of 1 - the head's sum, in float64, at least log 2^-16; ``lp`` [P, K] as the teacher gave it, not rounded."""
    tail: NDArray[np.float64] = np.log(np.maximum(1 - np.exp(lp.astype(np.float64)).sum(1), TAIL_FLOOR))
    return tail


def _head_arrays(spec: ShardSpec, rows: Sequence[TeacherRow]) -> dict[str, NDArray[Any]]:
    heads = [_head(spec, row) for row in rows]
    ids = _joined([ids for ids, _, _ in heads], np.int64, (spec.k,))
    if (ids < 0).any() or (ids >= spec.vocab).any():
        raise DataError(f"logits: the head holds an id outside 0 to {spec.vocab - 1}; drop padded ids before the top k")
    lp = _joined([lp for _, lp, _ in heads], np.float32, (spec.k,))
    arrays: dict[str, NDArray[Any]] = {"tail_lp": _half(_joined([tail for _, _, tail in heads], np.float32))}
    if spec.profile == "Compact":
        arrays["top_s"], arrays["top_q"] = quantised(lp)
    else:
        arrays["top_lp"] = _half(lp)
    return arrays | _id_arrays("top", ids, spec)


def _draw_arrays(spec: ShardSpec, draws: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Distinct ids, ascending, with their counts; unused entries are id 0 with count 0."""
    if (draws < -1).any() or (draws >= spec.vocab).any():
        raise DataError(f"logits: a draw is an id outside 0 to {spec.vocab - 1}; drop padded ids before drawing")
    ordered = np.sort(draws, 1)
    first = np.concatenate([np.ones((len(draws), 1), np.bool_), ordered[:, 1:] != ordered[:, :-1]], 1)
    slot = first.cumsum(1) - 1
    ids, counts = np.zeros(draws.shape, np.int64), np.zeros(draws.shape, np.uint8)
    lines = np.broadcast_to(np.arange(len(draws))[:, None], draws.shape)
    ids[lines, slot] = np.maximum(ordered, 0)
    np.add.at(counts, (lines, slot), (ordered >= 0).astype(np.uint8))
    return {"rs_cnt": counts} | _id_arrays("rs", ids, spec)


def _id_arrays(name: str, ids: NDArray[np.int64], spec: ShardSpec) -> dict[str, NDArray[Any]]:
    low, high = split_ids(ids, spec.high_bits)
    return {f"{name}_lo": low} | ({f"{name}_hi": high} if spec.high_bits else {})


def _given(rows: Sequence[TeacherRow], name: str, dtype: Any, tail: tuple[int, ...] = ()) -> NDArray[Any]:
    """What every row must have. DataError naming the first that lacks it or has another shape."""
    for row in rows:
        found = getattr(row, name)
        if found is None or found.shape[1:] != tail:
            shape = None if found is None else found.shape
            raise DataError(
                f"logits: row {row.key.hex()} has {name} of shape {shape}, [positions, *{tail}] is expected"
            )
    return _joined([getattr(row, name) for row in rows], dtype, tail)


def _head(spec: ShardSpec, row: TeacherRow) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    if row.top_ids is None or row.top_lp is None or row.top_ids.ndim != 2 or row.top_ids.shape[1] < spec.k:
        shape = None if row.top_ids is None else row.top_ids.shape
        raise DataError(f"logits: row {row.key.hex()} has a head of shape {shape}, {spec.k} entries are expected")
    if np.isnan(row.top_lp).any():
        raise DataError(f"logits: row {row.key.hex()} has NaN among its logprobs; check the teacher's dtype")
    ids, lp = ordered_head(row.top_ids, row.top_lp, spec.k)
    return ids, lp, tail_of_head(lp) if row.tail_lp is None else row.tail_lp


def _half(values: NDArray[np.float32], largest: float = 0.0) -> NDArray[np.float16]:
    """Rounded to f16; what rounding in the engine put above ``largest`` is that. NaN stays, to be refused."""
    with np.errstate(over="ignore"):
        return np.minimum(values, np.float32(largest)).astype(np.float16)


def _joined(parts: Sequence[NDArray[Any]], dtype: Any, tail: tuple[int, ...] = ()) -> NDArray[Any]:
    if not parts:
        return np.empty((0, *tail), dtype)
    joined: NDArray[Any] = np.concatenate([np.asarray(part) for part in parts]).astype(dtype)
    return joined
