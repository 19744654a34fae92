"""Events on a job: equal ones are one object that counts, and none is worth failing for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from kd_operator.cluster.client import Cluster
from kd_operator.cluster.errors import ApiError, Conflict
from kd_operator.decision import EventNote

COMPONENT = "kubedistill-operator"
LONGEST_MESSAGE = 1024

log = logging.getLogger(__name__)


class Events:
    """Posts events; ``identity`` is the operator's pod."""

    def __init__(self, cluster: Cluster, identity: str, now: Callable[[], datetime]) -> None:
        self.cluster, self.identity, self.now = cluster, identity, now

    async def post(self, job: dict[str, Any], note: EventNote) -> None:
        """Post an event on ``job`` (an object of the API server), or count it once more; failures are logged."""
        event = event_of(job, note, self.identity, self.now())
        try:
            try:
                await self.cluster.create(event)
            except Conflict:
                await self._count(event)
        except ApiError as error:
            log.warning("event %s on %s/%s is lost: %s", note.reason, *_name(job), error)

    async def _count(self, event: dict[str, Any]) -> None:
        metadata = event["metadata"]
        there = await self.cluster.get("Event", metadata["name"], metadata["namespace"])
        counted = {"count": there.get("count", 1) + 1, "lastTimestamp": event["lastTimestamp"]}
        await self.cluster.replace({**there, "apiVersion": "v1", "kind": "Event", **counted})


def event_of(job: dict[str, Any], note: EventNote, identity: str, now: datetime) -> dict[str, Any]:
    """The event; its name is the digest of what it says, so that saying it again finds it."""
    namespace, name = _name(job)
    uid, message = job["metadata"]["uid"], note.message[:LONGEST_MESSAGE]
    said = hashlib.sha256("\0".join((uid, note.type, note.reason, message)).encode()).hexdigest()[:16]
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.{said}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": job["apiVersion"],
            "kind": job["kind"],
            "namespace": namespace,
            "name": name,
            "uid": uid,
        },
        "type": note.type,
        "reason": note.reason,
        "message": message,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": identity,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }


def _name(job: dict[str, Any]) -> tuple[str, str]:
    return job["metadata"]["namespace"], job["metadata"]["name"]
