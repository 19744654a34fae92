"""What a shard holds: profile, sizes, and from them the table of its planes (KDL v1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kd_runtime.api.failures import DataError, SettingsError

VERSION = "1"
MAX_K = 256
PROFILES = ("Exact", "Label")
"""The profiles that this version writes and reads."""

Axis = Literal["row", "pointer", "token", "bitmap", "position"]
"""A plane has an entry for each row, row and one more, token, row-aligned bits of tokens, or scored position."""


@dataclass(frozen=True)
class Plane:
    """One plane's name, dtype, what its first axis counts, and the length of its second axis (None: it has none)."""

    name: str
    dtype: str
    axis: Axis
    width: int | None = None


@dataclass(frozen=True)
class ShardSpec:
    """The shape of a shard's targets; two shards belong to one set if and only if their specs are equal.

    ``k`` entries of the head (0 for Label), ``m`` tail draws, ``temperatures`` other than 1 whose tail mass is kept,
    ``vocab`` = the tokenizer's true size V (largest id + 1), ``entropy`` of the teacher kept or not. SettingsError for
    what this version does not write.
    """

    profile: str
    k: int
    m: int = 0
    temperatures: tuple[float, ...] = ()
    vocab: int = 0
    entropy: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "profile", str(self.profile))
        if self.profile not in PROFILES:
            raise SettingsError(f"capture.profile: {self.profile} is not supported; use one of {', '.join(PROFILES)}")
        if self.m or self.temperatures or self.entropy:
            raise SettingsError(
                f"capture: tailDraws {self.m}, temperatures {list(self.temperatures)} and entropy {self.entropy} are "
                f"not supported by profile {self.profile}; leave them out"
            )
        if self.vocab < 1 or self.vocab > 1 << 24:
            raise SettingsError(f"capture: a vocabulary of {self.vocab} is outside 1 to {1 << 24}; check the tokenizer")
        low, high = (1, min(MAX_K, self.vocab)) if self.profile == "Exact" else (0, 0)
        if not low <= self.k <= high:
            raise SettingsError(
                f"capture.topK: {self.k} is outside {low} to {high} of profile {self.profile}; change it"
            )

    @property
    def high_bits(self) -> int:
        """b: how many bits of a token id lie beside its low 16; the smallest of 0, 1, 2, 4, 8 that will do."""
        return next(bits for bits in (0, 1, 2, 4, 8) if self.vocab <= 1 << (16 + bits))

    def planes(self) -> tuple[Plane, ...]:
        """The planes of a shard, in the order of the format's description."""
        return (
            Plane("key", "U8", "row", 16),
            Plane("row_ptr", "U32", "pointer"),
            Plane("pos_ptr", "U32", "pointer"),
            Plane("input_ids", "U32", "token"),
            Plane("scored", "U8", "bitmap"),
            *(self._head_planes() if self.k else ()),
            Plane("lab_lp", "F16", "position"),
            Plane("lab_rank", "U16", "position"),
        )

    def _head_planes(self) -> tuple[Plane, ...]:
        high = math.ceil(self.high_bits * self.k / 8)
        return (
            Plane("top_lo", "U16", "position", self.k),
            *((Plane("top_hi", "U8", "position", high),) if high else ()),
            Plane("top_lp", "F16", "position", self.k),
            Plane("tail_lp", "F16", "position"),
        )

    def metadata(self) -> dict[str, str]:
        """The spec as strings of a file's header."""
        return {
            "profile": self.profile,
            "k": str(self.k),
            "m": str(self.m),
            "temperatures": ",".join(repr(float(t)) for t in self.temperatures),
            "vocab": str(self.vocab),
            "entropy": str(self.entropy).lower(),
        }

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> ShardSpec:
        """The spec that a header names; KeyError or ValueError where it is incomplete."""
        return cls(
            profile=metadata["profile"],
            k=int(metadata["k"]),
            m=int(metadata["m"]),
            temperatures=tuple(float(t) for t in metadata["temperatures"].split(",") if t),
            vocab=int(metadata["vocab"]),
            entropy={"true": True, "false": False}[metadata["entropy"]],
        )


def refuse_differences(where: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """DataError naming both values of the first entry of ``expected`` that ``found`` lacks or has otherwise."""
    for name, value in expected.items():
        if name not in found:
            raise DataError(f"{where}: {name} is not recorded, {value} is expected; capture these rows again")
        if found[name] != value:
            raise DataError(f"{where}: {name} is {found[name]}, {value} is expected; capture these rows again")
