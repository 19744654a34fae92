"""What a shard holds: profile, sizes, and from them the table of its planes (KDL v1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kd_runtime.api.failures import DataError, SettingsError

VERSION = "1"
MAX_K = 256
MAX_M = 255
PROFILES = ("Exact", "Compact", "Unbiased", "Label")

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

    ``k`` entries of the head (0 for Label), ``m`` tail draws (Unbiased alone), ``temperatures`` other than 1 whose tail
    mass is kept, ascending, ``vocab`` = the tokenizer's true size V (largest id + 1), ``entropy`` of the teacher kept or
    not (Unbiased always keeps it). SettingsError for what no shard can be.
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
        if self.vocab < 1 or self.vocab > 1 << 24:
            raise SettingsError(f"capture: a vocabulary of {self.vocab} is outside 1 to {1 << 24}; check the tokenizer")
        low, high = (0, 0) if self.profile == "Label" else (1, min(MAX_K, self.vocab))
        if not low <= self.k <= high:
            raise SettingsError(
                f"capture.topK: {self.k} is outside {low} to {high} of profile {self.profile}; change it"
            )
        self._check_temperatures()
        self._check_draws()

    def _check_temperatures(self) -> None:
        at = self.temperatures
        if any(not t > 0 or t == 1 for t in at) or list(at) != sorted(set(at)) or (at and not self.k):
            raise SettingsError(
                f"capture.temperatures: {list(at)} beside 1 must be positive, ascending and of a profile with a head; "
                "change them"
            )

    def _check_draws(self) -> None:
        unbiased = self.profile == "Unbiased"
        low, high = (1, MAX_M) if unbiased else (0, 0)
        if not low <= self.m <= high:
            raise SettingsError(
                f"capture.tailDraws: {self.m} is outside {low} to {high} of profile {self.profile}; change it"
            )
        if unbiased and (not self.entropy or len(self.temperatures) > 1):
            raise SettingsError(
                f"capture: profile Unbiased keeps the entropy, at one temperature; not entropy {self.entropy} and "
                f"temperatures {list(self.temperatures)}"
            )

    @property
    def own_temperature(self) -> float:
        """Where entropy and draws are taken: 1, but for profile Unbiased captured at another."""
        return self.temperatures[0] if self.profile == "Unbiased" and self.temperatures else 1.0

    @property
    def high_bits(self) -> int:
        """b: how many bits of a token id lie beside its low 16; the smallest of 0, 1, 2, 4, 8 that will do."""
        return next(bits for bits in (0, 1, 2, 4, 8) if self.vocab <= 1 << (16 + bits))

    @property
    def known_temperatures(self) -> tuple[float, ...]:
        """Where targets can be had, ascending; of profile Unbiased, where it has draws."""
        return (self.own_temperature,) if self.profile == "Unbiased" else tuple(sorted((1.0, *self.temperatures)))

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
            *((Plane("ent", "F16", "position"),) if self.entropy else ()),
            *(self._draw_planes() if self.m else ()),
            *((Plane("tail_tau", "F16", "position", len(self.temperatures)),) if self.temperatures else ()),
        )

    def _head_planes(self) -> tuple[Plane, ...]:
        values = (
            (Plane("top_s", "F16", "position", 2), Plane("top_q", "U8", "position", self.k))
            if self.profile == "Compact"
            else (Plane("top_lp", "F16", "position", self.k),)
        )
        return (*self._id_planes("top", self.k), *values, Plane("tail_lp", "F16", "position"))

    def _draw_planes(self) -> tuple[Plane, ...]:
        return (*self._id_planes("rs", self.m), Plane("rs_cnt", "U8", "position", self.m))

    def _id_planes(self, name: str, count: int) -> tuple[Plane, ...]:
        high = math.ceil(self.high_bits * count / 8)
        return (
            Plane(f"{name}_lo", "U16", "position", count),
            *((Plane(f"{name}_hi", "U8", "position", high),) if high else ()),
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
