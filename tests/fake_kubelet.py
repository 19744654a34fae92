"""What a simulated cluster lacks: a kubelet that ends pods with the results that real ones would have, and a store that knows them.

Pods begin by `kit up --kwok`; the runtime's annotations (`ANNOTATIONS`) keep kwok from ending them. `WholeKubelet` needs no kwok.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kd_operator import names

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, JOB_LABEL, STAGE_LABEL, UID_LABEL
from kd_runtime.api.model import GROUP, VERSION
from kd_runtime.api.result import PlannedState, PlanResult, StageResult

Object = dict[str, Any]

ANNOTATIONS = {"kit/run-for": "86400s"}
"""Of every pod: kwok lets it run until this kubelet ends it."""
PODS = {component: {"annotations": ANNOTATIONS} for component in ("plan", "workers", "trainer", "tools")}
"""`spec.pod` of a runtime for this kubelet."""
INDEX = "batch.kubernetes.io/job-completion-index"


class Api:
    """The API server in raw requests, with watches."""

    def __init__(self, kubeconfig: Path):
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server = cluster["server"]
        self._headers = {"Authorization": f"Bearer {user['token']}"}
        self._trust = ssl.create_default_context(cafile=cluster["certificate-authority"])

    async def __aenter__(self) -> Api:
        connector = aiohttp.TCPConnector(ssl=self._trust, limit=0)
        self.session = aiohttp.ClientSession(connector=connector, headers=self._headers, trust_env=False)
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.session.close()

    async def ask(self, method: str, path: str, body: Object | None = None) -> tuple[int, Object]:
        """One request; PATCH is a merge."""
        headers = {"Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json"}
        data = None if body is None else json.dumps(body)
        async with self.session.request(method, self.server + path, data=data, headers=headers) as answer:
            return answer.status, await answer.json()

    async def watch(
        self, path: str, labels: str = "", seconds: int = 7200, opened: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Object]:
        """Every event from now on, the objects that are there first; without end, and without a gap: the server ends a
        watch after ``seconds``, or where it is read too slowly, and it is gone on with from the last version.

        ``opened`` is called each time that the server has begun to tell: until the first, versions may be missed.
        """
        query, version = f"watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&labelSelector={labels}", 0
        while True:
            since = f"&resourceVersion={version}" if version else ""
            async with await self._stream(f"{self.server}{path}?{query}{since}") as answer:
                opened()
                async for event in _events(answer):
                    if event["type"] == "ERROR":
                        raise RuntimeError(f"watch of {path}: {event['object']}")
                    version = max(version, int(event["object"]["metadata"]["resourceVersion"]))
                    if event["type"] != "BOOKMARK":
                        yield event

    async def _stream(self, url: str) -> aiohttp.ClientResponse:
        """The answer to a watch; a kind whose CRD has only just come is not served at once."""
        timeout = aiohttp.ClientTimeout(total=None)
        for _ in range(100):
            answer = await self.session.get(url, timeout=timeout, read_bufsize=2**22)
            if answer.status == 200:
                return answer
            answer.release()
            await asyncio.sleep(0.1)
        raise RuntimeError(f"{url}: {answer.status}")


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[Object]:
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)


BEAT_SECONDS = 15.0


async def heartbeats(api: Api) -> None:
    """Renew the Leases of all nodes until cancelled, as their kubelets do.

    Without them the node controller takes all simulated nodes for lost every 50 s, taints them and marks their pods.
    """
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    known: set[str] = set()
    while True:
        _, nodes = await api.ask("GET", "/api/v1/nodes")
        for node in nodes["items"]:
            name, uid = node["metadata"]["name"], node["metadata"]["uid"]
            owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
            renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": renewed}
            lease = {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec}
            if name in known:
                await api.ask("PATCH", f"{path}/{name}", {"spec": spec})
            else:
                await api.ask("POST", path, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease})
                known.add(name)
            await asyncio.sleep(BEAT_SECONDS / len(nodes["items"]) / 2 if len(known) == len(nodes["items"]) else 0.0)
        await asyncio.sleep(BEAT_SECONDS / 2)


def digest(*words: str) -> str:
    """64 hex digits."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


@dataclass
class Store:
    """Which artifacts are there. Jobs share nothing unless ``salts`` gives two of them the same."""

    committed: dict[str, str] = field(default_factory=dict)
    """Key -> sha256 of the manifest."""
    salts: dict[tuple[str, str], str] = field(default_factory=dict)
    """(namespace, job) -> what its keys are made of, instead of its uid."""
    own: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    """(namespace, job) -> stages whose keys are made of its uid all the same."""
    asked: dict[str, int] = field(default_factory=dict)
    """Key -> how often it was committed: more than once is work that was done twice."""

    def key(self, job: Object, stage: str) -> str:
        """The key of a stage of a DistillationJob."""
        metadata = job["metadata"]
        name = (metadata["namespace"], metadata["name"])
        shares = stage not in self.own.get(name, frozenset())
        return digest(self.salts.get(name, metadata["uid"]) if shares else metadata["uid"], stage)

    def commit(self, key: str) -> str:
        """The stage's manifest is written."""
        self.asked[key] = self.asked.get(key, 0) + 1
        return self.committed.setdefault(key, digest("manifest", key))

    def plan(self, job: Object) -> PlanResult:
        """What the plan pod of a job finds."""
        found = []
        for name in stages_of(job):
            key = self.key(job, name)
            manifest = self.committed.get(key)
            found.append(PlannedState(name=name, key=key, state="Found" if manifest else "ToDo", manifest=manifest))
        return PlanResult(
            exit_class=ExitClass.Done,
            digest=digest("plan", job["metadata"]["uid"]),
            estimate="as good as nothing",
            stages=tuple(found),
        )


def stages_of(job: Object) -> dict[str, Object]:
    """Name -> manifest of the stages of a DistillationJob, `dataset` first."""
    return {"dataset": {}, **{stage["name"]: stage for stage in job["spec"]["stages"]}}


@dataclass(frozen=True)
class End:
    """How a pod ends. ``message`` None: with the result that belongs to its exit code."""

    code: int = 0
    after: float = 0.0
    message: str | None = None
    reason: str = ""
    commits: bool = True
    """A stage's pod that ends well has written the manifest."""
    disrupted: bool = False
    before: Callable[[], None] | None = None
    """Called just before."""


@dataclass(frozen=True)
class PodMet:
    """A pod that runs, as a script sees it."""

    job: Object
    part: str
    attempt: int
    index: int
    component: str
    raw: Object


Script = Callable[[PodMet], "End | asyncio.Future[End] | None"]
"""How a pod ends; a future: once it is set; None: not by this kubelet."""


class Kubelet:
    """Ends the pods of batch Jobs as the job's script says; well, where it has none."""

    def __init__(self, api: Api, store: Store | None = None):
        self.api, self.store = api, store or Store()
        self.scripts: dict[tuple[str, str], Script] = {}
        self.default: Script = lambda pod: End()
        self.failures: list[BaseException] = []
        self._jobs: dict[str, Object] = {}
        self._met: set[str] = set()
        self._leaving: set[str] = set()
        """Pods that are being deleted, or are gone: kwok ends them, and they make nothing any more."""
        self._done: dict[tuple[str, str], set[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Watch pods until cancelled."""
        async for event in self.api.watch("/api/v1/pods", UID_LABEL):
            self.saw(event["type"], event["object"])

    def saw(self, kind: str, pod: Object) -> None:
        """An event of a pod."""
        metadata = pod["metadata"]
        if kind == "DELETED" or "deletionTimestamp" in metadata:
            self._leaving.add(metadata["uid"])
            return
        labels = metadata["labels"]
        if pod.get("status", {}).get("phase") != "Running":
            return
        if labels[COMPONENT_LABEL] == "teacher":
            if any(c["type"] == "Ready" and c["status"] != "True" for c in pod["status"]["conditions"]):
                self._start(self._ready(pod))
        elif metadata["uid"] not in self._met:
            self._met.add(metadata["uid"])
            self._start(self._end(pod))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    async def _ready(self, pod: Object) -> None:
        """Where a node was late with a heartbeat its pods are marked, and kwok never takes that back."""
        conditions = [{**c, "status": "True"} if c["type"] == "Ready" else c for c in pod["status"]["conditions"]]
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/status"
        change = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"conditions": conditions}}
        await self.api.ask("PATCH", path, change)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.failures.append(failure)

    async def _end(self, pod: Object) -> None:
        job = await self._job(pod)
        if job is None:
            return
        labels = pod["metadata"]["labels"]
        met = PodMet(
            job=job,
            part=labels[STAGE_LABEL],
            attempt=int(labels[ATTEMPT_LABEL]),
            index=int(labels.get(INDEX, 0)),
            component=labels[COMPONENT_LABEL],
            raw=pod,
        )
        found = self.store.committed.get(self.store.key(job, met.part))  # a stage looks before it begins
        script = self.scripts.get((pod["metadata"]["namespace"], labels[JOB_LABEL]), self.default)
        said = script(met)
        end = await said if isinstance(said, asyncio.Future) else said
        if end is None:
            return
        await asyncio.sleep(end.after)
        if end.before is not None:
            end.before()
        if pod["metadata"]["uid"] in self._leaving:
            return
        result = self._result(met, end, found)  # what was made is there even where the result is not what it should be
        await self._write(pod, end, result if end.message is None else end.message)

    async def _job(self, pod: Object) -> Object | None:
        metadata = pod["metadata"]
        uid, name = metadata["labels"][UID_LABEL], metadata["labels"][JOB_LABEL]
        if uid not in self._jobs:
            path = f"/apis/{GROUP}/{VERSION}/namespaces/{metadata['namespace']}/distillationjobs/{name}"
            status, found = await self.api.ask("GET", path)
            if status != 200 or found["metadata"]["uid"] != uid:
                return None
            self._jobs[uid] = {k: found[k] for k in ("metadata", "spec")}
        return self._jobs[uid]

    def _result(self, pod: PodMet, end: End, found: str | None) -> str:
        if pod.part == names.PLAN:
            if end.code == 0:
                return self.store.plan(pod.job).encoded().decode()
            return PlanResult(exit_class=ExitClass(end.code), message="as the test says").encoded().decode()
        if end.code != 0:
            return StageResult(exit_class=ExitClass(end.code), message="as the test says").encoded().decode()
        key = self.store.key(pod.job, pod.part)
        manifest = found or (self.store.commit(key) if end.commits and self._last(pod, key) else None)
        counts = {"in": 100, "done": 98, "rejected": 2, "out": 98}
        return StageResult(exit_class=ExitClass.Done, manifest_sha256=manifest, counts=counts).encoded().decode()

    def _last(self, pod: PodMet, key: str) -> bool:
        """Whether the other workers of the stage have ended: the last one writes the manifest; of a gang, the first."""
        if pod.component != "workers":
            return pod.index == 0
        done = self._done.setdefault((pod.job["metadata"]["uid"], key), set())
        done.add(pod.index)
        return len(done) >= stages_of(pod.job)[pod.part].get("workers", 1)

    async def _write(self, pod: Object, end: End, message: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        terminated = {
            "exitCode": end.code,
            "reason": end.reason or ("Error" if end.code else "Completed"),
            "message": message[:4096],
            "startedAt": pod["status"].get("startTime", now),
            "finishedAt": now,
        }
        container = {
            **pod["status"]["containerStatuses"][0],
            "ready": False,
            "started": False,
            "state": {"terminated": terminated},
        }
        conditions = [
            {**c, "status": "False"} if c["type"] in ("Ready", "ContainersReady") else c
            for c in pod["status"]["conditions"]
        ]
        if end.disrupted:
            conditions.append({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"})
        status = {
            "phase": "Failed" if end.code else "Succeeded",
            "conditions": conditions,
            "containerStatuses": [container],
        }
        await self._patched(pod, status)

    async def _patched(self, pod: Object, status: Object) -> None:
        """Write a pod's status, unless it is gone."""
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        code, answer = await self.api.ask("PATCH", path, {"metadata": {"uid": metadata["uid"]}, "status": status})
        if code not in (200, 404, 409):  # 404, 409: it was deleted meanwhile
            raise RuntimeError(f"pod {metadata['name']}: {code} {answer.get('message')}")


class WholeKubelet(Kubelet):
    """Begins pods too, and takes away those that are deleted, as kwok does: which, with ten thousand pods, takes more than a core
    for minutes once half an hour is over."""

    def __init__(self, api: Api, store: Store | None = None):
        super().__init__(api, store)
        self._begun: set[str] = set()
        self._numbers = itertools.count()
        """Of pods, for their addresses."""

    def saw(self, kind: str, pod: Object) -> None:
        """An event of a pod."""
        uid, phase = pod["metadata"]["uid"], pod.get("status", {}).get("phase")
        leaves = uid in self._leaving
        super().saw(kind, pod)
        if kind == "DELETED":
            self._begun.discard(uid)
        elif "deletionTimestamp" in pod["metadata"]:
            if not leaves:
                self._start(self._take_away(pod))
        elif phase == "Pending" and pod["spec"].get("nodeName") and uid not in self._begun:
            self._begun.add(uid)
            self._start(self._begin(pod))

    async def _begin(self, pod: Object) -> None:
        number, now = next(self._numbers), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        running = {"ready": True, "started": True, "restartCount": 0, "state": {"running": {"startedAt": now}}}
        met = [
            {"type": t, "status": "True", "lastTransitionTime": now}
            for t in ("Initialized", "Ready", "ContainersReady")
        ]
        status = {
            "phase": "Running",
            "startTime": now,
            "podIP": f"10.{100 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}",
            "conditions": [*pod["status"].get("conditions", ()), *met],
            "containerStatuses": [
                {"name": container["name"], "image": container["image"], "imageID": "", **running}
                for container in pod["spec"]["containers"]
            ],
        }
        await self._patched(pod, status)

    async def _take_away(self, pod: Object) -> None:
        """A pod that is deleted while it runs fails first, as on a real node."""
        if pod["status"].get("containerStatuses") and pod["status"]["phase"] == "Running":
            await self._write(pod, End(code=143), "")
        metadata = pod["metadata"]
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        code, answer = await self.api.ask("DELETE", path, options)
        if code not in (200, 404, 409):
            raise RuntimeError(f"pod {metadata['name']}: {code} {answer.get('message')}")
