"""The operator's guards, each taken out: what it does then, in a way that does not matter while nothing goes wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kd_operator import worker
from kd_operator.decide import stages, teachers
from kd_operator.decide.draft import Draft
from kd_operator.decision import Decision
from kd_operator.observe import Peers
from kd_operator.worker import Worker
from operator_server import Object

from kd_runtime.api.status import JobStatus


def no_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass writes its status last, after the children of what it claims; whether that is claimed is not compared."""
    carry_out, write, unclaimed = Worker._act, Worker._write_status, worker.unclaimed

    async def not_yet(self: Worker, job: Object, before: JobStatus, status: JobStatus, memory: Any) -> Object:
        return {**job, "status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}

    async def children_first(self: Worker, job: Object, before: JobStatus, decision: Decision, memory: Any) -> Any:
        refusal = await carry_out(self, job, before, replace(decision, status=None), memory)
        await write(self, job, before, decision.status or before, memory)
        return refusal

    monkeypatch.setattr(Worker, "_write_status", not_yet)
    monkeypatch.setattr(Worker, "_act", children_first)
    monkeypatch.setattr(worker, "unclaimed", lambda job, uid, claim: unclaimed(job, uid, replace(claim, part="")))


def no_live_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child is created without a look at what its job is by now."""

    async def blind(self: Worker, job: Object, claim: Any) -> None:
        pass

    monkeypatch.setattr(Worker, "_confirm", blind)


def no_look_at_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has a child's name is taken for it."""

    async def trusting(self: Worker, job: Object, manifest: Object) -> str | None:
        return None

    monkeypatch.setattr(Worker, "_foreign", trusting)


def no_wait_for_the_terminating(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that is being deleted counts as gone."""
    alive = Draft.alive
    monkeypatch.setattr(Draft, "alive", lambda self, part: [p for p in alive(self, part) if p.deleted_at is None])


def no_wait_for_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is not asked any more counts as gone once it is told to go."""
    release = teachers.release

    def hasty(d: Draft, keep: str | None = None) -> bool:
        release(d, keep)
        return True

    monkeypatch.setattr(teachers, "release", hasty)


def no_second_look_at_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has claimed a stage goes on, whoever has claimed it too."""
    may_create = stages._may_create

    def alone(d: Draft, name: str, asked: str | None) -> bool:
        seen, d.seen = d.seen, replace(d.seen, peers=())
        try:
            return may_create(d, name, asked)
        finally:
            d.seen = seen

    monkeypatch.setattr(stages, "_may_create", alone)


def any_list_of_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers are listed as they were at any time."""
    listed = Peers._unfinished
    monkeypatch.setattr(Peers, "_unfinished", lambda self, namespace, version: listed(self, namespace, 1))
