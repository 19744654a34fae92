"""A shard's planes in memory: choosing and joining rows, reading a row, and what must hold of the values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.logits.packing import bitmap_bytes, join_ids, pointers, ranges, unpack_mask
from kd_runtime.logits.quantisation import dequantised, rounding
from kd_runtime.logits.spec import ShardSpec, refuse_differences
from kd_runtime.logits.targets import RowTargets, normalise


@dataclass(frozen=True)
class Planes:
    """The arrays of one shard, by plane name; dtypes and shapes are those of ``spec.planes()``."""

    spec: ShardSpec
    arrays: Mapping[str, NDArray[Any]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    @property
    def rows(self) -> int:
        """R."""
        return len(self["key"])

    @property
    def tokens(self) -> int:
        """N, over all rows."""
        return len(self["input_ids"])

    @property
    def positions(self) -> int:
        """P, over all rows."""
        return len(self["lab_lp"])

    @cached_property
    def _bitmap_ptr(self) -> NDArray[np.int64]:
        """[R+1]: byte offsets of the rows' bitmaps in ``scored``."""
        return pointers(bitmap_bytes(np.diff(self["row_ptr"].astype(np.int64))))

    def keys(self) -> Iterator[bytes]:
        """The 16 bytes of each row's key."""
        return (key.tobytes() for key in self["key"])

    def top_ids(self, part: slice = slice(None)) -> NDArray[np.int32]:
        """The head's ids [P, K] of some positions."""
        return self._ids("top", part)

    def top_lp(self, part: slice = slice(None)) -> NDArray[np.float32]:
        """The head's logprobs [P, K] as stored: not normalised."""
        if self.spec.profile != "Compact":
            return self["top_lp"][part].astype(np.float32)
        return dequantised(self["top_s"][part], self["top_q"][part])

    def draw_ids(self, part: slice = slice(None)) -> NDArray[np.int32]:
        """The ids [P, M] that were drawn from the tail; -1 where there are fewer."""
        return np.where(self["rs_cnt"][part] > 0, self._ids("rs", part), -1).astype(np.int32)

    def _ids(self, name: str, part: slice) -> NDArray[np.int32]:
        high = self[f"{name}_hi"][part] if f"{name}_hi" in self.arrays else None
        return join_ids(self[f"{name}_lo"][part], high, self.spec.high_bits)

    def mask(self, row: int) -> NDArray[np.bool_]:
        """[tokens of the row]: which of its tokens are scored."""
        start, stop = (int(at) for at in self["row_ptr"][row : row + 2])
        first = int(self._bitmap_ptr[row])
        return unpack_mask(self["scored"][first : first + (stop - start + 7) // 8], stop - start)

    def row(self, row: int, temperature: float = 1.0) -> RowTargets:
        """The targets of one row, copied, unpacked and normalised, at ``temperature``.

        Raises SettingsError, naming what there is, where the tail's mass at it was not captured.
        """
        tokens = slice(*(int(at) for at in self["row_ptr"][row : row + 2]))
        part = slice(*(int(at) for at in self["pos_ptr"][row : row + 2]))
        head = self.spec.k > 0
        top_lp, tail_lp, rounded = self._head(part, temperature) if head else (None, None, None)
        drawn = self.spec.m and temperature == self.spec.own_temperature
        return RowTargets(
            key=self["key"][row].tobytes(),
            input_ids=np.array(self["input_ids"][tokens]),
            positions=np.flatnonzero(self.mask(row)),
            top_ids=self.top_ids(part) if head else None,
            top_lp=top_lp,
            tail_lp=tail_lp,
            rounding=rounded,
            lab_lp=self["lab_lp"][part].astype(np.float32),
            lab_rank=np.array(self["lab_rank"][part]),
            entropy=self["ent"][part].astype(np.float32) if self.spec.entropy else None,
            draw_ids=self.draw_ids(part) if drawn else None,
            draw_counts=np.array(self["rs_cnt"][part]) if drawn else None,
        )

    def _head(
        self, part: slice, temperature: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Head [P, K] and tail [P] at ``temperature``, normalised over K+1, and what is rounded of them [P]."""
        stored = self.top_lp(part)
        if temperature != 1:
            stored /= np.float32(temperature)
        top, tail = normalise(stored, self._tail(part, temperature))
        return top, tail, rounding(stored, stored[:, 0] - top[:, 0], self.spec.profile == "Compact")

    def _tail(self, part: slice, temperature: float) -> NDArray[np.float16]:
        if temperature == 1:
            return self["tail_lp"][part]
        if temperature not in self.spec.temperatures:
            known = ", ".join(str(t) for t in (1.0, *self.spec.temperatures))
            raise SettingsError(
                f"objective.temperature: {temperature} needs the tail's mass at it, which these logits lack; use one of "
                f"{known}, or capture with it in capture.temperatures"
            )
        return self["tail_tau"][part, self.spec.temperatures.index(temperature)]

    def select(self, rows: Sequence[int] | NDArray[Any]) -> Planes:
        """The planes of ``rows`` alone, in that order."""
        chosen = np.asarray(rows, np.int64).reshape(-1)
        lengths = {name: np.diff(self[name].astype(np.int64)) for name in ("row_ptr", "pos_ptr")}
        index = {
            "row": chosen,
            "token": ranges(self["row_ptr"][chosen], lengths["row_ptr"][chosen]),
            "bitmap": ranges(self._bitmap_ptr[chosen], bitmap_bytes(lengths["row_ptr"][chosen])),
            "position": ranges(self["pos_ptr"][chosen], lengths["pos_ptr"][chosen]),
        }
        return Planes(
            self.spec,
            {
                plane.name: pointers(lengths[plane.name][chosen]).astype(np.uint32)
                if plane.axis == "pointer"
                else self[plane.name][index[plane.axis]]
                for plane in self.spec.planes()
            },
        )


def concatenate(parts: Sequence[Planes]) -> Planes:
    """All rows of ``parts``, pointers re-based; of rows with equal keys the first is kept.

    Raises DataError naming both values where the specs differ, or where there is nothing to join.
    """
    if not parts:
        raise DataError("logits: there are no shards to concatenate; name at least one")
    spec = parts[0].spec
    for part in parts[1:]:
        refuse_differences("logits: a shard to concatenate", spec.metadata(), part.spec.metadata())
    joined = {}
    for plane in spec.planes():
        arrays = [part[plane.name] for part in parts]
        if plane.axis == "pointer":
            joined[plane.name] = pointers(np.concatenate([np.diff(array.astype(np.int64)) for array in arrays]))
        else:
            joined[plane.name] = np.concatenate(arrays)
    limit = 1 << 32
    for name in ("row_ptr", "pos_ptr"):
        if joined[name][-1] >= limit:
            raise DataError(f"logits: {joined[name][-1]} entries exceed a shard's {limit}; concatenate fewer shards")
        joined[name] = joined[name].astype(np.uint32)
    first = np.unique(joined["key"].view("S16")[:, 0], return_index=True)[1]
    planes = Planes(spec, joined)
    return planes if len(first) == planes.rows else planes.select(np.sort(first))
