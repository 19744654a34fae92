"""Pairs that a teacher stage rejected: which they are, and asking them again (contract 4)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from kd_runtime.api.failures import SettingsError
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import read_manifest, retire
from kd_runtime.artifacts.rejects import Reject, read_failed_rejects, read_rejects
from kd_runtime.artifacts.rows import rows_of
from kd_runtime.artifacts.store import Store
from kd_runtime.artifacts.units import Pair, UnitStore
from kd_runtime.artifacts.writer import new_writer_id
from kd_runtime.planning.plan import Plan


@dataclass(frozen=True)
class Retry:
    """What `retry` brought about."""

    asked: int
    """Pairs that the next run asks again."""
    others: int
    """Rejected rows of the stage that are no question of asking: their answer is there, and cannot be a row."""


def stage_rejects(plan: Plan, store: Store, cache: Cache, name: str) -> list[Reject]:
    """What a stage rejected: of its artifact, else (it failed, or is under way) of the units that are committed, or of what
    a failed ingest left.

    Raises:
        KeyError: the plan has no such stage. StorageError, TransientError.
    """
    stage = plan.stage(name)
    manifest = read_manifest(store, stage.key)
    if manifest is not None:
        return read_rejects(store, manifest)
    if stage.asking_key is None:
        return read_failed_rejects(store, stage.key)
    covered = UnitStore(store, stage.asking_key, new_writer_id()).covered()
    return [ref.reject for p in _pairs(plan, store, cache, name) if (ref := covered.get(p)) is not None and ref.reject]


def retry(plan: Plan, store: Store, cache: Cache, name: str) -> Retry:
    """Have the next run ask the rejected pairs of stage ``name`` once more; its manifest moves to history/.

    Typed twice before that run, it changes nothing the second time.

    Raises:
        SettingsError: the plan has no such stage, or it asks no teacher.
    """
    asking_key = _asking_key(plan, name)
    units = UnitStore(store, asking_key, new_writer_id())
    rejected = [Pair(r.row, r.sample) for r in stage_rejects(plan, store, cache, name)]
    covered = units.covered()
    again = [pair for pair in rejected if pair in covered and not covered[pair].done]
    opened = [pair for pair in rejected if pair not in covered]  # by a retry that did not come to move the manifest
    if again:
        units.request_retry(again, secrets.token_hex(16))
    if again or opened:
        retire(store, plan.stage(name).key)
    asked = len(again) + len(opened)
    return Retry(asked, len(rejected) - asked)


def _asking_key(plan: Plan, name: str) -> str:
    asking = [stage.name for stage in plan.stages if stage.asking_key]
    for stage in plan.stages:
        if stage.name == name and stage.asking_key:
            return stage.asking_key
    stages = f"those that do are {', '.join(asking)}" if asking else "no stage of this job does"
    raise SettingsError(f"--stage {name}: is no stage that asks a teacher; {stages}")


def _pairs(plan: Plan, store: Store, cache: Cache, name: str) -> Iterable[Pair]:
    """The pairs of a teacher stage, in order; none where the rows that it reads are not there."""
    rows = read_manifest(store, plan.stage(plan.stage(name).inputs["rows"]).key)
    if rows is None:
        return []
    body = plan.settings(name).generate
    samples = body.samples_per_prompt if body is not None else 1
    return [Pair(key, sample) for key in rows_of(cache, store, rows).keys for sample in range(samples)]
