"""What lives of one job right now, read from the API server: no cache has a part in what is decided on.

Only what can never change is kept for a while, the ConfigMap above all: when it is deleted, that is seen later.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from kd_operator.cluster.client import Cluster
from kd_operator.cluster.errors import NotFound, Refused
from kd_operator.cluster.nodes import Nodes
from kd_operator.cluster.reading import (
    controller_uid,
    is_silenced,
    main_child,
    peer_seen,
    pod_seen,
    stages_alive,
    time_of,
)
from kd_operator.names import config_name, network_name
from kd_operator.observed import JobSeen, MainChild, Observed, PeerSeen, PodSeen, RuntimeSeen, version_of
from kd_operator.specs import LiveRuntime, Parsed, Specs, is_default
from kd_operator.status.states import AT_WORK
from kd_runtime.api.labels import UID_LABEL
from kd_runtime.api.status import JobStatus, StageProgress, StageStatus

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a job."""

UNFINISHED = "status.completionTime=,spec.suspend!=true"
"""Which jobs the API server lists as peers; where it cannot choose by fields, it lists all."""
FIXED_SECONDS = 30.0
"""How long what is fixed of a job is not read again. Nothing watches it: it would be missed no sooner."""
MOST_FIXED = 4096


class Progress(Protocol):
    """What pods last posted, by the uid of their job: `kd_operator.progress.board.Board`."""

    def stage_progress(self, uid: str) -> dict[str, StageProgress]:
        """By stage: what its pods last posted, put together."""

    def checkpoints(self, uid: str) -> dict[str, str]:
        """By stage: where its newest checkpoint lies in the store."""

    def progress_due(self, uid: str, now: datetime) -> bool:
        """False within 60 s of the last status that was written for progress alone."""

    def wrote(self, uid: str, now: datetime) -> None:
        """A status was written that tells of progress."""

    def forget(self, uid: str) -> None:
        """The job is idle, over or gone."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """What only the operator itself makes and deletes, and the runtime that is compared with what was at the start."""

    read: datetime
    config: Object | None
    network: Object | None
    live: LiveRuntime
    services: frozenset[str] | None
    """None: they are changing, and are to be listed anew."""


class Observer:
    """Reads everything that `decide` decides on."""

    def __init__(self, cluster: Cluster, progress: Progress) -> None:
        self.cluster, self.progress = cluster, progress
        self.specs, self.peers, self.nodes = Specs(), Peers(cluster), Nodes(cluster)
        self._fixed: OrderedDict[str, Fixed] = OrderedDict()
        self._told: dict[Key, int] = {}
        """Of which version a watch told last of a job's Deployments."""
        cluster.when_restored.append(self._told.clear)
        self._uids: dict[Key, str] = {}
        """Of the jobs of which anything may be kept: one that is gone has told of its uid before."""

    def forget(self, key: Key) -> None:
        """The job is idle, over or gone: nothing is kept of it."""
        self._told.pop(key, None)
        uid = self._uids.pop(key, None)
        if uid is not None:
            self.specs.forget(uid)
            self.progress.forget(uid)
            self._fixed.pop(uid, None)

    def told_of_deployment(self, key: Key, version: str) -> None:
        """A watch told of a Deployment of the job: what is looked at is at least as new."""
        self._told[key] = max(self._told.get(key, 0), version_of(version))

    def changes_services(self, uid: str) -> None:
        """A Service of the job is about to be created or deleted."""
        if uid in self._fixed:
            self._fixed[uid] = replace(self._fixed[uid], services=None)

    async def observe(
        self, key: Key, now: datetime, *, conflicts: Iterable[str] = ()
    ) -> tuple[Observed, Object] | None:
        """Everything that lives of a job, and the job's object; None where it is gone.

        Raises:
            ApiError: something could not be read.
        """
        namespace, name = key
        raw = await absent(self.cluster.get("DistillationJob", name, namespace))
        if raw is None:
            self.forget(key)
            return None
        uid = raw["metadata"]["uid"]
        if self._uids.get(key) != uid:  # another job of that name
            self.forget(key)
            self._uids[key] = uid
        status = JobStatus.model_validate(raw.get("status", {}))
        suspended, mine = bool(raw["spec"].get("suspend")), f"{UID_LABEL}={uid}"
        version = version_of(raw["metadata"]["resourceVersion"])
        fixed, (jobs, deployments, pods, peers) = await asyncio.gather(
            self._made_by_us(raw, status, now),
            asyncio.gather(
                self.cluster.find("Job", namespace, labels=mine),
                self._deployments(key, mine) if needs_deployments(status) else _nothing(),
                self.cluster.find("Pod", namespace, labels=mine),
                self.peers.of(namespace, version) if needs_peers(status, suspended) else _none(),
            ),
        )
        children = (*_children(jobs, "Job"), *_children(deployments, "Deployment"))
        if peers is None and not suspended and goes_on(status, children):
            peers = await self.peers.of(namespace, version)
        config, network, live = fixed.config, fixed.network, fixed.live
        runtime, parsed = self.specs.runtime(config if _owned(config, uid) else None, live)
        if runtime is not None:
            parsed = self.specs.job(raw, runtime, await self._namespace_labels(namespace, runtime))
        foreign = _foreign(uid, ConfigMap=config, NetworkPolicy=network)
        observed = Observed(
            job=job_seen(raw, status, parsed),
            runtime=runtime,
            children=children,
            pods=await self._pods(pods, runtime, now),
            services=fixed.services or frozenset(),
            config=_owned(config, uid),
            network=_owned(network, uid),
            conflicts=tuple(sorted({*conflicts, *foreign})),
            peers=_others(peers, uid),
            progress=self.progress.stage_progress(uid),
            checkpoints=self.progress.checkpoints(uid),
            progress_due=self.progress.progress_due(uid, now),
        )
        return observed, raw

    async def claimed(self, observed: Observed, written: Object) -> Observed:
        """What was observed a moment ago, with the status that was ``written`` since, and the peers as they are now.

        The write would have failed if anything else of the job had changed. Peers may have claimed the same meanwhile: those
        that did before this write are in any list that is as new as it. Of children nothing is missed, as theirs are names
        that can be created once.
        """
        status, metadata = JobStatus.model_validate(written["status"]), written["metadata"]
        namespace, version = observed.job.namespace, version_of(metadata["resourceVersion"])
        peers = await self.peers.of(namespace, version) if needs_peers(status, observed.job.suspend) else None
        job = replace(observed.job, status=status, resource_version=metadata["resourceVersion"], document=written)
        return replace(observed, job=job, peers=_others(peers, observed.job.uid))

    async def _made_by_us(self, raw: Object, status: JobStatus, now: datetime) -> Fixed:
        """ConfigMap, NetworkPolicy, Services, the live runtime; as they were a moment ago where the first two are the job's."""
        metadata = raw["metadata"]
        name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
        held = self._fixed.get(uid)
        if held is not None and 0.0 <= (now - held.read).total_seconds() < FIXED_SECONDS:
            if held.services is None:
                held = replace(held, services=await self._services(namespace, uid, status))
                self._fixed[uid] = held
            return held
        config, network, services, live = await asyncio.gather(
            absent(self.cluster.get("ConfigMap", config_name(name, uid), namespace)),
            absent(self.cluster.get("NetworkPolicy", network_name(name, uid), namespace)),
            self._services(namespace, uid, status),
            self._live_runtime(raw, status),
        )
        fixed = Fixed(now, config, network, live, services)
        self._fixed.pop(uid, None)
        if _owned(config, uid) and _owned(network, uid):
            self._fixed[uid] = fixed
            if len(self._fixed) > MOST_FIXED:
                self._fixed.popitem(last=False)
        return fixed

    async def _deployments(self, key: Key, mine: str) -> list[Object]:
        """The job's Deployments, at least as new as what a watch told of. One that was made since can be made only once, and
        what is to be deleted is deleted by its uid."""
        found = await self.cluster.find("Deployment", key[0], labels=mine, at_least=self._told.get(key, 0))
        for deployment in found:  # no later list, maybe of another API server, may be older than this one
            self.told_of_deployment(key, deployment["metadata"]["resourceVersion"])
        return found

    async def _services(self, namespace: str, uid: str, status: JobStatus) -> frozenset[str]:
        if not needs_services(status):
            return frozenset()
        found = await self.cluster.find("Service", namespace, labels=f"{UID_LABEL}={uid}")
        return frozenset(service["metadata"]["name"] for service in found)

    async def _live_runtime(self, raw: Object, status: JobStatus) -> LiveRuntime:
        """The runtime that the job began with, or else names; where it names none, those annotated as the default."""
        began = status.runtime.name if status.runtime else None
        name = began or raw["spec"].get("runtimeRef", {}).get("name")
        if name is None:
            every = await self.cluster.find("ClusterDistillationRuntime")
            return LiveRuntime(None, [runtime for runtime in every if is_default(runtime)])
        found = await absent(self.cluster.get("ClusterDistillationRuntime", name))
        return LiveRuntime(name, [] if found is None else [found])

    async def _namespace_labels(self, namespace: str, runtime: RuntimeSeen) -> dict[str, str] | None:
        if runtime.runtime.spec.allowed.namespaces is None:
            return None
        found = await absent(self.cluster.get("Namespace", namespace))
        return dict(found["metadata"].get("labels", {})) if found is not None else {}

    async def _pods(self, raw: list[Object], runtime: RuntimeSeen | None, now: datetime) -> tuple[PodSeen, ...]:
        """The pods, each with how its node is: as it is now where that can hold a deletion up, or a pod looks as if its node
        had fallen silent; else as it was a moment ago."""
        leaving = {_node(pod) for pod in raw if "deletionTimestamp" in pod["metadata"] or is_silenced(pod)} - {""}
        alive = {_node(pod) for pod in raw if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")} - {""}
        nodes = await self.nodes.of(leaving | alive, leaving, now)
        gpus = runtime.runtime.spec.gpu_resource_name if runtime else "nvidia.com/gpu"
        seen = []
        for pod in raw:
            node = nodes.get(_node(pod))
            ready, since = (node.ready, node.since) if node is not None else (True, None)
            product = self.nodes.gpu_product(_node(pod))
            seen.append(pod_seen(pod, gpus, node_ready=ready, node_since=since, gpu_product=product))
        return tuple(seen)


class Peers:
    """The jobs of a namespace that may claim a stage. Who asks while a list is under way waits for the next one.

    That one is as new as what all of them have seen or written, and many jobs cost one list at a time.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.narrows = cluster, True
        self._next: dict[str, asyncio.Task[list[PeerSeen]]] = {}
        self._running: dict[str, asyncio.Task[list[PeerSeen]]] = {}
        self._wanted: dict[str, int] = {}
        self._told = 0
        cluster.when_restored.append(self._forget)

    async def of(self, namespace: str, version: int) -> list[PeerSeen]:
        """What is listed from now on, at least as new as the ``version`` of a job."""
        self._wanted[namespace] = max(version, self._told, self._wanted.get(namespace, 0))
        if namespace not in self._next:
            self._next[namespace] = asyncio.create_task(self._listed(namespace), name=f"peers in {namespace}")
        return await asyncio.shield(self._next[namespace])

    def told(self, version: str) -> None:
        """A watch told of a job: what is listed from now on is at least as new."""
        self._told = max(self._told, version_of(version))

    def _forget(self) -> None:
        self._told = 0

    async def _listed(self, namespace: str) -> list[PeerSeen]:
        if namespace in self._running:
            await asyncio.wait({self._running[namespace]})
        self._running[namespace] = self._next.pop(namespace)
        wanted = self._wanted.pop(namespace)
        try:
            seen = [await self._seen(namespace, one) for one in await self._unfinished(namespace, wanted)]
            return [peer for peer in seen if peer is not None]
        finally:
            del self._running[namespace]

    async def _seen(self, namespace: str, raw: Object) -> PeerSeen | None:
        """A peer. Of one that is not reconciled only what really is at work holds anything up."""
        peer = peer_seen(raw)
        if peer is None or not peer.disabled or not peer.claimed:
            return peer
        mine = f"{UID_LABEL}={peer.uid}"
        jobs, pods = await asyncio.gather(
            self.cluster.find("Job", namespace, labels=mine), self.cluster.find("Pod", namespace, labels=mine)
        )
        return peer_seen(raw, stages_alive(jobs, pods))

    async def _unfinished(self, namespace: str, version: int) -> list[Object]:
        if self.narrows:
            try:
                return await self.cluster.find("DistillationJob", namespace, fields=UNFINISHED, at_least=version)
            except Refused:  # the CRD has no selectable fields: an old one, or an old API server
                self.narrows = False
        return await self.cluster.find("DistillationJob", namespace, at_least=version)


def job_seen(raw: Object, status: JobStatus, parsed: Parsed) -> JobSeen:
    """A job of the API server, with its status and spec as they were parsed."""
    metadata = raw["metadata"]
    created = time_of(metadata["creationTimestamp"])
    assert created is not None
    return JobSeen(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
        created=created,
        deleting="deletionTimestamp" in metadata,
        suspend=bool(raw["spec"].get("suspend")),
        annotations=dict(metadata.get("annotations", {})),
        labels=dict(metadata.get("labels", {})),
        status=status,
        document=raw,
        spec=parsed.spec,
        errors=parsed.errors,
        refusal=parsed.refusal,
    )


def needs_services(status: JobStatus) -> bool:
    """Whether the job may have Services: teachers and trainers alone do."""
    trainers = (stage for stage in status.stages if stage.type == "train")
    return any(run.attempt for run in (*status.teachers, *trainers))


def needs_deployments(status: JobStatus) -> bool:
    """Whether the job may have Deployments: its teachers alone are, from their first claim on."""
    return any(run.attempt for run in status.teachers)


def needs_peers(status: JobStatus, suspended: bool = False) -> bool:
    """Whether another job may hold up the stage whose turn it is: it is about to be claimed, or was without a child yet."""
    turn = next((stage for stage in status.stages if stage.state not in ("Succeeded", "Skipped")), None)
    return turn is not None and turn.key is not None and not suspended and not _under_way(turn)


def goes_on(status: JobStatus, children: Iterable[MainChild]) -> bool:
    """Whether the plan or a stage that is at work is complete by now: the next one may be claimed at once."""
    at_work = {run.child_uid for run in (status.plan, *status.stages) if run is not None and run.state in AT_WORK}
    return any(child.complete and child.uid in at_work for child in children)


def _under_way(stage: StageStatus) -> bool:
    return stage.state in ("Running", "Draining") or (stage.state == "Starting" and stage.child_uid is not None)


async def absent(read: Awaitable[Object]) -> Object | None:
    """What is read, or None where it is not there."""
    try:
        return await read
    except NotFound:
        return None


async def _nothing() -> list[Object]:
    return []


async def _none() -> None:
    return None


def _others(peers: list[PeerSeen] | None, uid: str) -> tuple[PeerSeen, ...] | None:
    return None if peers is None else tuple(peer for peer in peers if peer.uid != uid)


def _node(pod: Object) -> str:
    return str(pod["spec"].get("nodeName") or "")


def _children(raw: list[Object], kind: str) -> tuple[MainChild, ...]:
    return tuple(main_child(child, kind) for child in raw)


def _owned(raw: Object | None, uid: str) -> bool:
    return raw is not None and controller_uid(raw) == uid


def _foreign(uid: str, **found: Object | None) -> list[str]:
    return [f"{kind}/{raw['metadata']['name']}" for kind, raw in found.items() if raw and not _owned(raw, uid)]
