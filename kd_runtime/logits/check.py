"""What must hold of a shard's planes; looked at before writing, on what a teacher sent, and by verify."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_runtime.logits.packing import bitmap_bytes, pointers
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.quantisation import STEPS
from kd_runtime.logits.spec import Plane

DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "F16": np.dtype("<f2"),
}
"""numpy's dtype of each dtype name of a header."""


def problems(planes: Planes) -> list[str]:
    """Everything that is wrong, a sentence each; empty if the planes are sound."""
    shapes = list(_shape_problems(planes))
    if shapes:
        return shapes
    structure = list(_structure_problems(planes))
    if structure:
        return structure
    return list(_value_problems(planes))


def expected_length(plane: Plane, planes: Planes) -> int:
    """How long a plane's first axis must be."""
    rows = len(planes["key"])
    if plane.axis == "bitmap":
        return int(bitmap_bytes(np.diff(planes["row_ptr"].astype(np.int64))).sum())
    return {
        "row": rows,
        "pointer": rows + 1,
        "token": int(planes["row_ptr"][-1]),
        "position": int(planes["pos_ptr"][-1]),
    }[plane.axis]


def _shape_problems(planes: Planes) -> Iterator[str]:
    table = planes.spec.planes()
    names = {plane.name for plane in table}
    if names != set(planes.arrays):
        yield f"planes are {sorted(planes.arrays)}, profile {planes.spec.profile} has {sorted(names)}"
        return
    for plane in table:
        array = planes[plane.name]
        width = () if plane.width is None else (plane.width,)
        if array.dtype != DTYPES[plane.dtype] or array.shape[1:] != width or array.ndim != len(width) + 1:
            wanted = f"{DTYPES[plane.dtype]} [*{''.join(f', {n}' for n in width)}]"
            yield f"plane {plane.name} is {array.dtype} {list(array.shape)}, it should be {wanted}"
            return
    for name in ("row_ptr", "pos_ptr"):
        pointer = planes[name].astype(np.int64)
        if len(pointer) != planes.rows + 1 or pointer[0] or (np.diff(pointer) < 0).any():
            yield f"plane {name} is not {planes.rows + 1} offsets that start at 0 and never fall"
            return
    for plane in table:
        expected = expected_length(plane, planes)
        if len(planes[plane.name]) != expected:
            yield f"plane {plane.name} has {len(planes[plane.name])} entries, the offsets say {expected}"


def _structure_problems(planes: Planes) -> Iterator[str]:
    lengths = np.diff(planes["row_ptr"].astype(np.int64))
    scored = np.diff(planes["pos_ptr"].astype(np.int64))
    if (lengths == 0).any():
        yield f"row {np.flatnonzero(lengths == 0)[0]} has no tokens; leave it out"
        return
    sizes = bitmap_bytes(lengths)
    starts = pointers(sizes)[:-1]
    bits = np.unpackbits(planes["scored"][:, None], axis=1, bitorder="little")
    counts = np.add.reduceat(bits.sum(1, dtype=np.int64), starts) if len(starts) else lengths
    for row in np.flatnonzero(counts != scored)[:1]:
        yield f"row {row} has {counts[row]} scored tokens and {scored[row]} positions"
    for row in np.flatnonzero(bits[starts, 0])[:1] if len(starts) else ():
        yield f"token 0 of row {row} is scored, but nothing predicts it; take it out of the mask"
    last = starts + sizes - 1
    spare = np.arange(8)[None, :] >= (lengths - 8 * (sizes - 1))[:, None]
    for row in np.flatnonzero((bits[last] * spare).any(1))[:1] if len(starts) else ():
        yield f"the scored bitmap of row {row} has bits beyond its {lengths[row]} tokens"
    if len(np.unique(planes["key"].view("S16"))) != planes.rows:
        yield "two rows have the same key; equal rows are stored once"


def _value_problems(planes: Planes) -> Iterator[str]:
    vocab = planes.spec.vocab
    if planes.tokens and int(planes["input_ids"].max()) >= vocab:
        yield f"input_ids hold {int(planes['input_ids'].max())}, the vocabulary ends at {vocab - 1}"
    yield from _logprob_problems("lab_lp", planes["lab_lp"])
    if planes.positions and not planes["lab_rank"].all():
        yield "lab_rank holds 0; ranks start at 1"
    if planes.spec.entropy:
        yield from _bounded_problems("ent", planes["ent"], 0, np.log(vocab) * 1.01)
    if planes.spec.k:
        yield from _head_problems(planes)
    if planes.spec.m:
        yield from _draw_problems(planes)


def _head_problems(planes: Planes) -> Iterator[str]:
    yield from _logprob_problems("tail_lp", np.where(np.isneginf(planes["tail_lp"]), 0, planes["tail_lp"]))
    if planes.spec.temperatures:
        tau = planes["tail_tau"]
        yield from _bounded_problems("tail_tau", np.where(np.isneginf(tau), 0, tau), -np.inf, np.inf)
    yield from _compact_problems(planes) if planes.spec.profile == "Compact" else _exact_problems(planes)
    ids = planes.top_ids()
    if ids.size and int(ids.max()) >= planes.spec.vocab:
        yield f"top_lo and top_hi hold {int(ids.max())}, the vocabulary ends at {planes.spec.vocab - 1}"
    ordered = np.sort(ids, axis=1)
    for position in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1))[:1]:
        yield f"position {position} has a token id twice in its head"


def _exact_problems(planes: Planes) -> Iterator[str]:
    top_lp = planes["top_lp"]
    yield from _logprob_problems("top_lp", top_lp)
    for position in np.flatnonzero((top_lp[:, 1:] > top_lp[:, :-1]).any(1))[:1]:
        yield f"top_lp of position {position} is not in descending order"


def _compact_problems(planes: Planes) -> Iterator[str]:
    scales, steps = planes["top_s"], planes["top_q"]
    yield from _logprob_problems("top_s", scales[:, 0])
    yield from _bounded_problems("top_s", scales[:, 1], 0, np.inf)
    last = np.where(scales[:, 1] > 0, STEPS, 0)
    wrong = (steps[:, 1:] < steps[:, :-1]).any(1) | (steps[:, 0] != 0) | (steps[:, -1] != last)
    for position in np.flatnonzero(wrong)[:1]:
        yield f"top_q of position {position} does not run from 0 to {last[position]} without falling"


def _draw_problems(planes: Planes) -> Iterator[str]:
    counts, ids = planes["rs_cnt"].astype(np.int64), planes.draw_ids()
    total, used = counts.sum(1), counts > 0
    wrong = (total != planes.spec.m) & ~((total == 0) & np.isneginf(planes["tail_lp"]))
    for position in np.flatnonzero(wrong)[:1]:
        yield f"rs_cnt of position {position} sums to {total[position]}, there are {planes.spec.m} draws"
    if ids.size and int(ids.max()) >= planes.spec.vocab:
        yield f"rs_lo and rs_hi hold {int(ids.max())}, the vocabulary ends at {planes.spec.vocab - 1}"
    misplaced = (used[:, 1:] & (~used[:, :-1] | (ids[:, 1:] <= ids[:, :-1]))).any(1)
    for position in np.flatnonzero(misplaced)[:1]:
        yield f"the draws of position {position} are not distinct ids in ascending order"
    in_head = (ids[:, :, None] == planes.top_ids()[:, None, :]).any((1, 2))
    for position in np.flatnonzero(in_head)[:1]:
        yield f"position {position} has a draw that is in its head"


def _bounded_problems(name: str, values: NDArray[Any], low: float, high: float) -> Iterator[str]:
    bad = ~np.isfinite(values) | (values < low) | (values > high)
    for at in np.argwhere(bad)[:1]:
        yield f"{name} of position {at[0]} is {values[tuple(at)]}, which cannot be"


def _logprob_problems(name: str, values: NDArray[Any]) -> Iterator[str]:
    bad = ~np.isfinite(values) | (values > 0)
    for at in np.argwhere(bad)[:1]:
        yield f"{name} of position {at[0]} is {values[tuple(at)]}, which is no log of a probability"
