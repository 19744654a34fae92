"""Small shards of random but plausible targets."""

from __future__ import annotations

import numpy as np

from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.spec import ShardSpec


def teacher_row(spec: ShardSpec, tokens: int, generator: np.random.Generator, key: bytes | None = None) -> TeacherRow:
    """A row whose teacher has Zipf-like distributions over distinct random ids."""
    scored = generator.random(tokens) < 0.6
    scored[0] = False
    positions = int(scored.sum())
    top_ids = distinct_ids(spec, positions, generator) if spec.k else None
    lp = np.log(generator.dirichlet(1 / np.arange(1, spec.k + 3), positions) + 1e-7) if spec.k else None
    return TeacherRow(
        key=generator.bytes(16) if key is None else key,
        input_ids=generator.integers(0, spec.vocab, tokens),
        scored=scored,
        lab_lp=-generator.gamma(1.0, 2.0, positions),
        lab_rank=generator.integers(1, 100_000, positions),
        top_ids=top_ids,
        top_lp=None if lp is None else lp[:, : spec.k],
        entropy=generator.random(positions) * np.log(spec.vocab) if spec.entropy else None,
        tail_tau=generator.normal(size=(positions, len(spec.temperatures))) if spec.temperatures else None,
        draws=tail_ids(spec, top_ids, generator) if spec.m else None,
    )


def distinct_ids(spec: ShardSpec, positions: int, generator: np.random.Generator) -> np.ndarray:
    """[positions, k] ids, none twice in a position, from the whole vocabulary."""
    steps = generator.integers(1, max(2, spec.vocab // spec.k + 1), (positions, spec.k))
    return (np.cumsum(steps, 1) + generator.integers(0, spec.vocab, (positions, 1))) % spec.vocab


def tail_ids(spec: ShardSpec, top_ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """[positions, m] ids outside the head, some of them twice."""
    near = (top_ids[:, :1] + generator.integers(0, 3 * spec.k, (len(top_ids), spec.m))) % spec.vocab
    taken = (near[:, :, None] == top_ids[:, None, :]).any(2)
    free = np.array([np.setdiff1d(np.arange(spec.k + 1), ids % spec.vocab)[0] for ids in top_ids], np.int64)
    return np.where(taken, free.reshape(-1, 1), near)


def planes(spec: ShardSpec, lengths: tuple[int, ...] = (5, 17, 8), seed: int = 0) -> Planes:
    """Planes with a row of each length."""
    generator = np.random.default_rng(seed)
    return build_planes(spec, [teacher_row(spec, tokens, generator) for tokens in lengths])
