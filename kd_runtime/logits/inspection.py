"""What ``kd logits inspect``, ``verify`` and ``stats`` say, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_runtime.logits.planes import Planes
from kd_runtime.logits.shard import open_shard, verify_shard
from kd_runtime.logits.spec import ShardSpec

LOW_HEAD_MASS = 0.95
"""A mean head mass below this deserves a warning: much of the teacher is then in the tail bucket."""


@dataclass(frozen=True)
class PlaneInfo:
    """One plane of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    crc32c: str


@dataclass(frozen=True)
class ShardInfo:
    """One file."""

    path: Path
    bytes: int
    spec: ShardSpec
    rows: int
    tokens: int
    positions: int
    planes: tuple[PlaneInfo, ...]
    metadata: dict[str, str]
    bytes_per_position: float
    """Bytes of the planes of scored positions, a position."""
    file_bytes_per_position: float
    """Bytes of the whole file, a position."""


@dataclass(frozen=True)
class Verification:
    """Whether a file is sound."""

    path: Path
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems


@dataclass(frozen=True)
class LogitsStats:
    """Figures over all scored positions of some files; those of the head are None for profile Label."""

    shards: int
    bytes: int
    rows: int
    tokens: int
    positions: int
    label_perplexity: float
    """exp of the teacher's mean negative logprob of the labels."""
    label_top1: float
    """Share of labels that are the teacher's first choice."""
    label_in_head: float | None
    """Share of labels whose rank is within K."""
    head_mass: float | None
    """Mean mass of the K entries."""
    head_mass_p05: float | None
    """Fifth percentile of it."""
    defect: float | None
    """Largest distance from 1 of head and tail as stored: what the reader's normalisation takes out."""
    entropy: float | None = None
    """The teacher's mean entropy in nats, where it was captured."""

    @property
    def low_head_mass(self) -> bool:
        """True if K is small for this teacher."""
        return self.head_mass is not None and self.head_mass < LOW_HEAD_MASS


def inspect(path: Path) -> ShardInfo:
    """What a file holds; its header is verified, its planes are not read."""
    with open_shard(path, verify=False) as shard:
        planes = shard.planes
        infos = tuple(
            PlaneInfo(p.name, p.dtype, planes[p.name].shape, planes[p.name].nbytes, shard.container.checksums[p.name])
            for p in shard.spec.planes()
        )
        axes = {plane.name: plane.axis for plane in shard.spec.planes()}
        size = path.stat().st_size
        scored = sum(info.bytes for info in infos if axes[info.name] == "position")
        positions = max(planes.positions, 1)
        return ShardInfo(
            path=path,
            bytes=size,
            spec=shard.spec,
            rows=planes.rows,
            tokens=planes.tokens,
            positions=planes.positions,
            planes=infos,
            metadata=dict(shard.metadata),
            bytes_per_position=scored / positions,
            file_bytes_per_position=size / positions,
        )


def verify(paths: Sequence[Path]) -> list[Verification]:
    """Read every byte of every file and say what is wrong with each."""
    return [Verification(path, tuple(verify_shard(path))) for path in paths]


def stats(paths: Sequence[Path]) -> LogitsStats:
    """Figures over all positions of sound files of one spec. DataError where a file is damaged or of another spec."""
    spec: ShardSpec | None = None
    size = rows = tokens = 0
    figures: list[dict[str, NDArray[Any]]] = []
    for path in paths:
        with open_shard(path, expect=spec) as shard:
            spec = shard.spec
            size, rows, tokens = size + path.stat().st_size, rows + shard.planes.rows, tokens + shard.planes.tokens
            figures.append(_figures(shard.planes))
    joined = {name: np.concatenate([part[name] for part in figures]) for name in (figures[0] if figures else {})}
    head = joined if spec is not None and spec.k and len(joined["mass"]) else None
    return LogitsStats(
        shards=len(paths),
        bytes=size,
        rows=rows,
        tokens=tokens,
        positions=len(joined.get("rank", ())),
        label_perplexity=float(np.exp(-_mean(joined.get("label", np.empty(0))))),
        label_top1=_mean(joined.get("rank", np.empty(0)) == 1),
        label_in_head=_mean(joined["rank"] <= spec.k) if head and spec else None,
        head_mass=_mean(joined["mass"]) if head else None,
        head_mass_p05=float(np.quantile(joined["mass"], 0.05)) if head else None,
        defect=float(np.abs(joined["mass"] + joined["tail"] - 1).max()) if head else None,
        entropy=_mean(joined["entropy"]) if len(joined.get("entropy", ())) else None,
    )


def _figures(planes: Planes) -> dict[str, NDArray[Any]]:
    """Small arrays [P] of what the statistics need."""
    figures = {"label": planes["lab_lp"].astype(np.float32), "rank": np.array(planes["lab_rank"])}
    if planes.spec.entropy:
        figures["entropy"] = planes["ent"].astype(np.float32)
    if planes.spec.k:
        figures["mass"] = np.exp(planes.top_lp()).sum(1)
        figures["tail"] = np.exp(planes["tail_lp"].astype(np.float32))
    return figures


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")
