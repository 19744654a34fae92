"""An API server in memory, of one namespace, under virtual time; and an operator's access to it, which can be held up and fail.

It stands for the fast tests of `decide` alone: what the real one does is tested in tests/cluster.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from kd_operator.cluster.errors import ApiError, Conflict, NotFound, ServerError, Unreachable
from kd_operator.status.states import stamp

from kd_runtime.api.labels import UID_LABEL
from kd_runtime.api.status import JobStatus

Object = dict[str, Any]
NAMESPACE = "team"
CHILDREN = ("Job", "Deployment", "Pod")
"""Kinds that the operator watches; a change of one wakes its job."""
LISTED_LATE = ("DistillationJob", "Deployment")
"""Kinds of which the operator takes any list that is new enough."""


@dataclass
class Server:
    """Objects by kind and name. None is ever changed in place, so whoever read one keeps what it was."""

    now: datetime
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    versions: int = 0
    changed: list[Callable[[Object], None]] = field(default_factory=list)
    """Told of every object that was made, changed or is gone: the watches."""
    refuses: Callable[[Object], ApiError | None] = lambda manifest: None
    """Why an object may not be made: quotas, webhooks."""
    past: dict[str, list[tuple[int, list[Object]]]] = field(default_factory=dict)
    """By kind: every list that there was, oldest first, each with the version from which on it was so."""
    pick: Callable[[list[list[Object]]], list[Object]] = lambda lists: lists[-1]
    """Which of the lists that are new enough is told, oldest first: an API server may tell any."""

    def __post_init__(self) -> None:
        self.past = {kind: [(0, [])] for kind in LISTED_LATE}

    def read(self, kind: str, name: str) -> Object:
        """An object. Raises NotFound."""
        found = self.objects.get((kind, name))
        if found is None:
            raise NotFound(404, "NotFound", f"{kind} {name}")
        return found

    def every(self, kind: str, **labels: str) -> list[Object]:
        """Objects of a kind, oldest first."""
        return [o for (k, _), o in self.objects.items() if k == kind]

    def listed(self, kind: str, at_least: int) -> list[Object]:
        """Objects of a kind as they are; or, with ``at_least``, as they were at some moment since that version."""
        if not at_least:
            return self.every(kind)
        begin = bisect_right(self.past[kind], at_least, key=itemgetter(0)) - 1
        return self.pick([found for _, found in self.past[kind][begin:]])

    def owned(self, kind: str, uid: str) -> list[Object]:
        """Objects that have ``uid`` for a controller."""
        return [one for one in self.every(kind) if owner_uid(one) == uid]

    def create(self, manifest: Object) -> Object:
        """Make an object. Raises Conflict where its name is taken."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        refusal = self.refuses(manifest)
        if refusal is not None:
            raise refusal
        if (kind, metadata["name"]) in self.objects:
            raise Conflict(409, "AlreadyExists", f"{kind} {metadata['name']}")
        made = {
            "uid": hashlib.sha256(f"{kind}{metadata['name']}{self.versions}".encode()).hexdigest()[:36],
            "creationTimestamp": stamp(self.now),
            "generation": 1,
        }
        return self.put({**manifest, "metadata": {**made, **metadata}})

    def put(self, one: Object) -> Object:
        """Have ``one`` be what its kind and name stand for; watches are told if that is anything new."""
        key = (one["kind"], one["metadata"]["name"])
        if self.objects.get(key) == one:
            return one
        self.versions += 1
        self.objects[key] = {**one, "metadata": {**one["metadata"], "resourceVersion": str(self.versions)}}
        self._tell(self.objects[key])
        return self.objects[key]

    def change(self, one: Object, *, metadata: Object | None = None, **parts: Any) -> Object:
        """Change parts of an object as it is now, whatever ``one`` has become since it was read."""
        now = self.read(one["kind"], one["metadata"]["name"])
        return self.put({**now, **parts, "metadata": {**now["metadata"], **(metadata or {})}})

    def put_status(self, job: Object, status: Object) -> Object:
        """Write a status. Raises Conflict, NotFound, as for a PUT with resourceVersion; ValueError for what no CRD takes."""
        now = self.read("DistillationJob", job["metadata"]["name"])
        if now["metadata"]["uid"] != job["metadata"]["uid"]:
            raise Conflict(409, "Conflict", "another uid")
        if now["metadata"]["resourceVersion"] != job["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", "the object has been modified")
        JobStatus.model_validate(status)
        return self.put({**now, "status": status})

    def delete(self, kind: str, name: str, *, uid: str | None = None, grace_seconds: int | None = None) -> None:
        """Delete an object, what it owns after it (`collect`). Raises NotFound; Conflict where the uid is another."""
        there = self.read(kind, name)
        if uid is not None and there["metadata"]["uid"] != uid:
            raise Conflict(409, "Conflict", "another uid")
        if kind == "Pod" and grace_seconds != 0 and ends_slowly(there):
            if "deletionTimestamp" not in there["metadata"]:
                grace = there["spec"].get("terminationGracePeriodSeconds", 30)
                self.change(there, metadata={"deletionTimestamp": stamp(self.now + timedelta(seconds=grace))})
            return
        if kind == "Pod" and self._held_by_job(there):
            self.change(there, metadata={"deletionGracePeriodSeconds": 0})
            return
        del self.objects[kind, name]
        self.versions += 1
        self._tell({**there, "metadata": {**there["metadata"], "resourceVersion": str(self.versions)}})

    def _held_by_job(self, pod: Object) -> bool:
        """True where its Job's finalizer keeps a pod that has not ended, even one that is deleted for good."""
        jobs = {job["metadata"]["uid"] for job in self.every("Job")}
        return ends_slowly(pod) and owner_uid(pod) in jobs

    def collect(self) -> bool:
        """The garbage collector: delete what is owned by nothing that is there. True where there was any."""
        uids = {one["metadata"]["uid"] for one in self.objects.values()}
        orphans = [
            one
            for one in list(self.objects.values())
            if owner_uid(one) is not None
            and owner_uid(one) not in uids
            and (
                "deletionTimestamp" not in one["metadata"]
                or "deletionGracePeriodSeconds" in one["metadata"]
                or not ends_slowly(one)
            )
        ]
        for one in orphans:
            self.delete(
                one["kind"], one["metadata"]["name"], grace_seconds=one["metadata"].get("deletionGracePeriodSeconds")
            )
        return bool(orphans)

    def _tell(self, one: Object) -> None:
        if one["kind"] in LISTED_LATE:
            self.past[one["kind"]].append((self.versions, self.every(one["kind"])))
        for told in self.changed:
            told(one)


def owner_uid(one: Object) -> str | None:
    """Of its controller."""
    return next((owner["uid"] for owner in one["metadata"].get("ownerReferences", ()) if owner["controller"]), None)


def ends_slowly(pod: Object) -> bool:
    """True for a pod whose node must end it first."""
    ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    return pod["kind"] == "Pod" and "nodeName" in pod["spec"] and not ended


@dataclass(frozen=True)
class Fault:
    """How the next write fails."""

    error: type[ApiError]
    done: bool
    """Whether it is done all the same."""


NOT_DONE, DONE_THEN_ERROR, LOST_ANSWER = Fault(ServerError, False), Fault(ServerError, True), Fault(Unreachable, True)


@dataclass
class Access:
    """What the operator has for a `Cluster`. Before each write, and around each read of a job, it waits for its turn."""

    server: Server
    turn: Callable[[], Awaitable[None]]
    watched: Callable[[str, Object | None], None]
    """Told of each request when it is made: `GET DistillationJob`, `POST Job`, …"""
    faults: deque[Fault] = field(default_factory=deque)
    when_restored: list[Callable[[], None]] = field(default_factory=list)

    async def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        if kind == "DistillationJob":
            await self.turn()
        found = self.server.objects.get((kind, name))
        self.watched(f"GET {kind}", found)
        if kind == "DistillationJob":
            await self.turn()  # what is listed next may be newer than this
        if found is None:
            raise NotFound(404, "NotFound", f"{kind} {name}")
        return found

    async def find(
        self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "", at_least: int = 0
    ) -> list[Object]:
        _, _, uid = labels.partition("=")
        found = self.server.listed(kind, at_least)
        return [one for one in found if not uid or one["metadata"].get("labels", {}).get(UID_LABEL) == uid]

    async def create(self, manifest: Object) -> Object:
        return await self._write("POST", manifest, lambda: self.server.create(manifest))

    async def put_status(self, job: Object, status: Object) -> Object:
        return await self._write("PUT", {**job, "status": status}, lambda: self.server.put_status(job, status))

    async def delete(
        self, kind: str, name: str, namespace: str | None, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        there = self.server.objects.get((kind, name), {"kind": kind, "metadata": {"name": name}})
        await self._write("DELETE", there, lambda: self.server.delete(kind, name, uid=uid, grace_seconds=grace_seconds))

    async def _write(self, verb: str, one: Object, do: Callable[[], Any]) -> Any:
        await self.turn()
        self.watched(f"{verb} {one['kind']}", one)
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and not fault.done:
            raise fault.error(500, "InternalError", f"{verb} was not done")
        answer = do()
        if fault is not None:
            raise fault.error(500, "InternalError", f"{verb} was done")
        return answer


def pods_of(server: Server, job: Object) -> Iterator[Object]:
    """Every pod of a DistillationJob."""
    for pod in server.every("Pod"):
        if pod["metadata"].get("labels", {}).get(UID_LABEL) == job["metadata"]["uid"]:
            yield pod
