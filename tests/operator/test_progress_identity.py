"""A token leads to the stage of the job that its pod belongs to, or to a refusal that says why."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kd_operator import names
from kd_operator.progress.identity import LONGEST_TOKEN, Refusal, Sender, claimed_job, identify
from operator_progress import OTHER_UID, POD_UID, UID, World, accepted, owned_by, token

from kd_runtime.api.labels import UID_LABEL

SENDER = Sender("team-a", "tutor", UID, POD_UID, "workers", "answers", 2, 1)


def identified(world: World, bearer: str | None = None) -> Sender | Refusal:
    return asyncio.run(identify(world, bearer or token()))


def test_a_pod_of_the_job_is_recognised_with_its_stage_attempt_and_index() -> None:
    world = World()
    assert identified(world) == SENDER
    assert world.asked == ["create TokenReview", "get Pod", "get Job", "get DistillationJob"]


def test_a_token_that_names_no_job_costs_the_api_server_nothing() -> None:
    world = World()
    verdict = identified(world, token(audience="https://kubernetes.default.svc"))
    assert isinstance(verdict, Refusal)
    assert verdict.status == 401
    assert not world.asked


@pytest.mark.parametrize(
    ("review", "status", "said"),
    [
        ({"authenticated": False}, 401, "bearer token"),
        (accepted(authenticated="yes"), 401, "bearer token"),
        (accepted(audiences=[names.audience(OTHER_UID)]), 401, "bearer token"),
        (accepted(user={"username": "system:serviceaccount:team-a:default"}), 403, "bound to no pod"),
        (accepted(user={**accepted()["user"], "username": "jane"}), 403, "bound to no pod"),
        ({k: v for k, v in accepted().items() if k != "audiences"}, 401, "bearer token"),
    ],
)
def test_what_the_review_does_not_prove_is_refused(review: dict[str, Any], status: int, said: str) -> None:
    class Answering(World):
        async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
            return {**manifest, "status": review}

    verdict = identified(Answering())
    assert isinstance(verdict, Refusal)
    assert verdict.status == status
    assert said in verdict.reason


BATCH, OURS = "batch/v1", "kubedistill.io/v1alpha1"
POD, JOB, DJ = (
    ("Pod", "team-a", "p"),
    ("Job", "team-a", "tutor-answers-11111-2"),
    ("DistillationJob", "team-a", "tutor"),
)


@pytest.mark.parametrize(
    ("which", "change", "status"),
    [
        (POD, None, 403),
        (POD, {"uid": OTHER_UID}, 403),
        (POD, {"labels": {}}, 403),
        (POD, {"labels": {UID_LABEL: OTHER_UID}}, 403),
        (POD, {"ownerReferences": []}, 403),
        (POD, {"ownerReferences": owned_by("apps/v1", "ReplicaSet", "r", OTHER_UID)}, 403),
        (POD, {"ownerReferences": owned_by("example.com/v1", "Job", JOB[2], OTHER_UID)}, 403),
        (POD, {"ownerReferences": owned_by(BATCH, "Job", JOB[2], OTHER_UID)}, 403),
        (JOB, None, 403),
        (JOB, {"uid": OTHER_UID}, 403),
        (JOB, {"ownerReferences": []}, 403),
        (JOB, {"ownerReferences": owned_by(OURS, "DistillationJob", "tutor", OTHER_UID)}, 403),
        (JOB, {"ownerReferences": owned_by("example.com/v1", "DistillationJob", "tutor", UID)}, 403),
        (JOB, {"ownerReferences": [{**owned_by(OURS, "DistillationJob", "tutor", UID)[0], "controller": False}]}, 403),
        (DJ, None, 404),
        (DJ, {"uid": OTHER_UID}, 404),
    ],
)
def test_a_chain_that_breaks_anywhere_is_refused(
    which: tuple[str, str, str], change: dict[str, Any] | None, status: int
) -> None:
    world = World()
    if change is None:
        del world.objects[which]
    else:
        world.objects[which]["metadata"] |= change
    verdict = identified(world)
    assert isinstance(verdict, Refusal)
    assert verdict.status == status


def test_a_pod_without_an_index_is_the_first() -> None:
    world = World()
    del world.objects[POD]["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
    assert identified(world) == replace(SENDER, index=0)


def test_the_job_that_a_token_claims_is_read_from_its_audience() -> None:
    assert claimed_job(token()) == UID
    assert claimed_job(token(audience=names.audience(UID))) == UID
    assert claimed_job(token(audience=["https://kubernetes.default.svc", names.audience(UID)])) == UID


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "a.b.c",
        "..",
        token() + ".more",
        token(audience=7),
        token(audience={"kubedistill.io/jobs/": 1}),
        token(audience=names.audience("../../etc/passwd")),
        token(audience=names.audience(UID) + "/x"),
        token(audience=["x" * LONGEST_TOKEN, names.audience(UID)]),
        "e30." + "W1tbW1tb" * 400 + ".c",
        "e30.é.c",
        "e30.bnVsbA.c",
    ],
)
def test_what_cannot_be_a_token_of_ours_claims_nothing(garbage: str) -> None:
    assert claimed_job(garbage) is None


@given(st.text())
def test_no_text_makes_the_reader_of_claims_fail(text: str) -> None:
    assert claimed_job(text) is None
    assert claimed_job(f"e30.{text}.c") is None
