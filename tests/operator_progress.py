"""An API server in memory that knows tokens, pods and their owners; and tokens that claim what they like."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Any

from kd_operator import names
from kd_operator.cluster.errors import NotFound

from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, STAGE_LABEL, UID_LABEL

UID = "11111111-2222-3333-4444-555555555555"
OTHER_UID = "99999999-2222-3333-4444-555555555555"
POD_UID = "aaaaaaaa-2222-3333-4444-555555555555"
JOB_UID = "bbbbbbbb-2222-3333-4444-555555555555"


def token(audience: Any = None, salt: str = "") -> str:
    """Shaped like a token of the API server; its signature says only which one it is."""
    claims = {"aud": [names.audience(UID)] if audience is None else audience, "exp": 4102444800}
    parts = (json.dumps({"alg": "RS256"}), json.dumps(claims), f"signed{salt}")
    return ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts)


def owned_by(api_version: str, kind: str, name: str, uid: str) -> list[dict[str, Any]]:
    return [{"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": True}]


def pod() -> dict[str, Any]:
    labels = {
        UID_LABEL: UID,
        STAGE_LABEL: "answers",
        ATTEMPT_LABEL: "2",
        COMPONENT_LABEL: "workers",
        "batch.kubernetes.io/job-completion-index": "1",
    }
    owners = owned_by("batch/v1", "Job", "tutor-answers-11111-2", JOB_UID)
    return {
        "metadata": {"name": "p", "namespace": "team-a", "uid": POD_UID, "labels": labels, "ownerReferences": owners}
    }


def job() -> dict[str, Any]:
    owners = owned_by("kubedistill.io/v1alpha1", "DistillationJob", "tutor", UID)
    return {
        "metadata": {"name": "tutor-answers-11111-2", "namespace": "team-a", "uid": JOB_UID, "ownerReferences": owners}
    }


def accepted(**changes: Any) -> dict[str, Any]:
    """The status of a TokenReview of the token of `pod`."""
    user = {
        "username": "system:serviceaccount:team-a:default",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["p"],
            "authentication.kubernetes.io/pod-uid": [POD_UID],
        },
    }
    return {"authenticated": True, "audiences": [names.audience(UID)], "user": user, **changes}


@dataclass
class World:
    """What `kd_operator.progress.identity.Cluster` asks for. ``reviews`` says what a token is; others are forged."""

    reviews: dict[str, dict[str, Any]] = field(default_factory=lambda: {token(): accepted()})
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(
        default_factory=lambda: {
            ("Pod", "team-a", "p"): pod(),
            ("Job", "team-a", "tutor-answers-11111-2"): job(),
            ("DistillationJob", "team-a", "tutor"): {"metadata": {"name": "tutor", "uid": UID}},
        }
    )
    asked: list[str] = field(default_factory=list)
    broken: Exception | None = None
    gate: asyncio.Event | None = None
    """Every review waits for it."""

    async def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any]:
        self.asked.append(f"get {kind}")
        if self.broken:
            raise self.broken
        try:
            return self.objects[kind, namespace or "", name]
        except KeyError:
            raise NotFound(404, "NotFound", name) from None

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(f"create {manifest['kind']}")
        if self.gate:
            await self.gate.wait()
        if self.broken:
            raise self.broken
        spec = manifest["spec"]
        status = self.reviews.get(spec["token"], {"authenticated": False})
        known = set(status.get("audiences", ())) & set(spec["audiences"])
        return {**manifest, "status": status if known else {"authenticated": False}}
