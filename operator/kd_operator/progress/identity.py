"""Who posts: from a bearer token to the pod it is bound to, and from the pod to the DistillationJob that owns it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic_core import from_json

from kd_operator import names
from kd_operator.cluster.errors import NotFound
from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, STAGE_LABEL, UID_LABEL
from kd_runtime.api.model import GROUP

Object = dict[str, Any]

JOB = "DistillationJob"
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
LONGEST_TOKEN = 4096
_TOKEN = re.compile(r"[\w-]+\.([\w-]+)\.[\w-]+", re.ASCII)
_AUDIENCE = re.compile(re.escape(names.audience("")) + r"([0-9a-f-]{36})")
_USER = re.compile(r"system:serviceaccount:([^:]+):[^:]+")


class Cluster(Protocol):
    """What is asked of the API server: `kd_operator.cluster.client.Cluster` does it."""

    async def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        """The object as it is now; NotFound where there is none."""

    async def create(self, manifest: Object) -> Object:
        """Create an object; what the server made of it."""


@dataclass(frozen=True)
class Sender:
    """A pod that was shown to belong to a job's stage."""

    namespace: str
    job: str
    uid: str
    """Of the DistillationJob."""
    pod_uid: str
    component: str
    stage: str
    attempt: int
    index: int


@dataclass(frozen=True)
class Refusal:
    """Why a token is not accepted: the HTTP status and a sentence."""

    status: int
    reason: str


UNAUTHENTICATED = Refusal(401, "the bearer token is not one that the API server issued for a job of this operator")


def claimed_job(token: str) -> str | None:
    """The uid of the job that a token *claims* to be for. Nothing is verified: it only says what to ask the API server.

    What cannot be a token of ours gives None, at a cost that its length bounds.
    """
    parts = _TOKEN.fullmatch(token) if len(token) <= LONGEST_TOKEN else None
    if parts is None:
        return None
    try:
        claims = from_json(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return None
    audiences = claims.get("aud") if isinstance(claims, dict) else None
    for audience in audiences if isinstance(audiences, list) else [audiences]:
        match = _AUDIENCE.fullmatch(audience) if isinstance(audience, str) else None
        if match:
            return match[1]
    return None


async def identify(cluster: Cluster, token: str) -> Sender | Refusal:
    """Whose pod ``token`` is bound to. Four requests: TokenReview, pod, its Job, the DistillationJob.

    Raises ApiError where the API server does not answer: that is no verdict.
    """
    uid = claimed_job(token)
    if uid is None:
        return UNAUTHENTICATED
    bound = _bound_pod(await cluster.create(_token_review(token, uid)), uid)
    if isinstance(bound, Refusal):
        return bound
    pod = await _live(cluster, "Pod", bound.name, bound.namespace)
    if pod is None or pod["metadata"]["uid"] != bound.uid:
        return Refusal(403, f"pod {bound.namespace}/{bound.name} is gone")
    labels: dict[str, str] = pod["metadata"].get("labels", {})
    if labels.get(UID_LABEL) != uid:
        return Refusal(403, f"pod {bound.namespace}/{bound.name} is no pod of the job that its token is for")
    owner = await _owning_job(cluster, pod)
    if owner is None or owner.get("uid") != uid:
        return Refusal(403, f"pod {bound.namespace}/{bound.name} is not owned by the job that its token is for")
    job = await _live(cluster, JOB, owner["name"], bound.namespace)
    if job is None or job["metadata"]["uid"] != uid:
        return Refusal(404, f"DistillationJob {bound.namespace}/{owner['name']} is gone")
    return Sender(
        namespace=bound.namespace,
        job=owner["name"],
        uid=uid,
        pod_uid=bound.uid,
        component=labels.get(COMPONENT_LABEL, ""),
        stage=labels.get(STAGE_LABEL, ""),
        attempt=_number(labels.get(ATTEMPT_LABEL)),
        index=_number(labels.get(INDEX_LABEL)),
    )


@dataclass(frozen=True)
class _BoundPod:
    namespace: str
    name: str
    uid: str


def _token_review(token: str, uid: str) -> Object:
    spec = {"token": token, "audiences": [names.audience(uid)]}
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": spec}


async def _live(cluster: Cluster, kind: str, name: str, namespace: str) -> Object | None:
    try:
        return await cluster.get(kind, name, namespace)
    except NotFound:
        return None


def _bound_pod(review: Object, uid: str) -> _BoundPod | Refusal:
    """The pod that a reviewed token is bound to. A server that knows no audiences returns none: that is no proof."""
    status = review.get("status", {})
    if status.get("authenticated") is not True or names.audience(uid) not in status.get("audiences", ()):
        return UNAUTHENTICATED
    user = status.get("user", {})
    account = _USER.fullmatch(user.get("username", ""))
    extra = user.get("extra") or {}
    name, pod_uid = (next(iter(extra.get(key) or ()), None) for key in (POD_NAME, POD_UID))
    if account is None or name is None or pod_uid is None:
        return Refusal(403, "the token is bound to no pod; use the one that is projected into the pod")
    return _BoundPod(account[1], name, pod_uid)


async def _owning_job(cluster: Cluster, pod: Object) -> Object | None:
    """The reference to the DistillationJob that controls the pod's Job, live; None where the chain breaks.

    Pods of a Deployment (teachers) are not followed: they report nothing, and the operator may not read ReplicaSets.
    """
    reference = _controller(pod, "batch", "Job")
    if reference is None:
        return None
    job = await _live(cluster, "Job", reference["name"], pod["metadata"]["namespace"])
    if job is None or job["metadata"]["uid"] != reference["uid"]:
        return None
    return _controller(job, GROUP, JOB)


def _controller(child: Object, group: str, kind: str) -> Object | None:
    for reference in child["metadata"].get("ownerReferences", ()):
        if reference.get("controller") and reference["kind"] == kind:
            return reference if reference["apiVersion"].split("/")[0] == group else None
    return None


def _number(label: str | None) -> int:
    return int(label) if label and label.isascii() and label.isdigit() else 0
