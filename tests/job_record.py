"""Everything that happens to jobs and their children, as the API server's watches tell it, and what must be true of it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fake_kubelet import Api

from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, JOB_LABEL, STAGE_LABEL, UID_LABEL
from kd_runtime.api.model import GROUP, VERSION

Object = dict[str, Any]

JOBS = f"/apis/{GROUP}/{VERSION}/distillationjobs"
CHILDREN = {
    "Job": "/apis/batch/v1/jobs",
    "Deployment": "/apis/apps/v1/deployments",
    "Pod": "/api/v1/pods",
    "Service": "/api/v1/services",
    "Secret": "/api/v1/secrets",
    "ConfigMap": "/api/v1/configmaps",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/networkpolicies",
}
MAIN = ("Job", "Deployment")


@dataclass
class Child:
    """A child as it was created. Revisions are etcd's: they order all objects of the server."""

    kind: str
    name: str
    part: str
    """`plan`, a stage, `teacher/<name>`; empty for what belongs to the whole job."""
    attempt: int
    created: int
    over: int | None = None
    """When it was gone; of a pod: when it had ended, or was gone."""
    state: str = ""
    """What its own status says, for those who read why a test failed."""
    moved: bool = False
    """It has become what the job waited for: complete, or ready."""


@dataclass
class Story:
    """One DistillationJob from its beginning."""

    job: Object = field(default_factory=dict)
    """As it is now, or was last."""
    gone: bool = False
    claims: dict[tuple[str, int], int] = field(default_factory=dict)
    """(part, attempt) -> the revision of the status that first claimed it."""
    children: dict[str, Child] = field(default_factory=dict)
    """By uid."""
    states: set[tuple[str, str]] = field(default_factory=set)
    """(part, state) that the job went through; (phase, PHASE) too."""
    versions: int = 0
    progress_writes: int = 0
    """Versions of which nothing but progress and use differ from the one before."""

    @property
    def status(self) -> Object:
        """The job's status."""
        found: Object = self.job.get("status", {})
        return found

    @property
    def phase(self) -> str:
        """The job's phase."""
        return str(self.status.get("phase", ""))

    def stage(self, name: str) -> Object:
        """The status of a stage."""
        return next((stage for stage in self.status.get("stages", []) if stage["name"] == name), {})

    def condition(self, type: str) -> str:
        """`True`, `False`, `Unknown`, or nothing."""
        return next((str(c["status"]) for c in self.status.get("conditions", []) if c["type"] == type), "")

    def left(self) -> list[Child]:
        """Children that are still there; of pods, those that have not ended."""
        return [child for child in self.children.values() if child.over is None]

    def mains(self, part: str) -> list[int]:
        """The attempts of a part that main children were created for, in order."""
        found = [c for c in self.children.values() if c.kind in MAIN and c.part == part]
        return [child.attempt for child in sorted(found, key=lambda child: child.created)]


class Record:
    """Watches of all kinds. Tasks wait for what they want to see by `until`."""

    def __init__(self, api: Api):
        self.api = api
        self.stories: dict[str, Story] = defaultdict(Story)
        self.told: Callable[[tuple[str, str], str], None] = lambda key, version: None
        """Told of every change: the key of the job that it belongs to, and of the job itself its resourceVersion."""
        self.pods: Callable[[str, Object], None] = lambda kind, pod: None
        self.noted: Callable[[str, str, str, Child | None, Object], None] = lambda *event: None
        """Told of every event: kind, event, the job's uid, the child, the object."""
        self._waiting: dict[str, list[asyncio.Event]] = defaultdict(list)
        self._failure: BaseException | None = None
        self._opened: set[str] = set()
        self.opened = asyncio.Event()
        """All watches are: from now on no version of anything is missed."""

    async def run(self) -> None:
        """Watch until cancelled; a watch that ends is a failure, of whoever waits too."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_jobs())
                for kind, path in CHILDREN.items():
                    group.create_task(self._watch_children(kind, path))
        except BaseException as failure:
            self._failure = failure
            for waiting in self._waiting.values():
                for event in waiting:
                    event.set()
            raise

    def _is_open(self, path: str) -> None:
        self._opened.add(path)
        if self._opened == {JOBS, *CHILDREN.values()}:
            self.opened.set()

    async def _watch_jobs(self) -> None:
        async for event in self.api.watch(JOBS, opened=lambda: self._is_open(JOBS)):
            job = event["object"]
            story = self.stories[job["metadata"]["uid"]]
            story.progress_writes += only_progress(story.job, job)
            story.job, story.gone = job, event["type"] == "DELETED"
            story.versions += 1
            _note_claims(story, int(job["metadata"]["resourceVersion"]))
            self.noted("DistillationJob", event["type"], job["metadata"]["uid"], None, job)
            self._tell(job["metadata"]["uid"], _key(job), job["metadata"]["resourceVersion"])

    async def _watch_children(self, kind: str, path: str) -> None:
        async for event in self.api.watch(path, UID_LABEL, opened=lambda: self._is_open(path)):
            metadata = event["object"]["metadata"]
            labels = metadata["labels"]
            story = self.stories[labels[UID_LABEL]]
            revision = int(metadata["resourceVersion"])
            child = story.children.get(metadata["uid"])
            if child is None:
                child = story.children[metadata["uid"]] = _child(kind, metadata, revision)
            child.state = _state(event["object"].get("status", {}))
            ended = event["object"].get("status", {}).get("phase") in ("Succeeded", "Failed")
            if event["type"] == "DELETED" or (kind == "Pod" and ended):
                child.over = child.over or revision
            self.noted(kind, event["type"], labels[UID_LABEL], child, event["object"])
            if kind == "Pod":
                self.pods(event["type"], event["object"])
            self._tell(labels[UID_LABEL], (metadata["namespace"], labels[JOB_LABEL]), "")

    def _tell(self, uid: str, key: tuple[str, str], version: str) -> None:
        self.told(key, version)
        for waiting in self._waiting.get(uid, ()):
            waiting.set()

    def check(self) -> None:
        """Raises RuntimeError where a watch has failed."""
        if self._failure is not None:
            raise RuntimeError("what happens is not watched any more") from self._failure

    async def until(self, uid: str, true: Callable[[Story], bool], what: str = "", seconds: float = 300.0) -> Story:
        """The story of a job once something is true of it."""
        story, changed = self.stories[uid], asyncio.Event()
        self._waiting[uid].append(changed)
        try:
            async with asyncio.timeout(seconds):
                while not true(story):
                    self.check()
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise AssertionError(f"{what or true} did not come: {_summary(story)}") from None
        finally:
            self._waiting[uid].remove(changed)
        return story


def _key(job: Object) -> tuple[str, str]:
    return job["metadata"]["namespace"], job["metadata"]["name"]


def only_progress(before: Object, after: Object) -> bool:
    """Whether two versions of a job differ in nothing but how far its stages are and what they use."""
    if not before.get("status"):
        return False
    return _without_progress(before) == _without_progress(after)


def _without_progress(job: Object) -> Object:
    status = job.get("status", {})
    changing = ("progress", "gpuSeconds", "rows", "metrics", "checkpoint")
    stages = [{k: v for k, v in stage.items() if k not in changing} for stage in status.get("stages", [])]
    kept = {k: v for k, v in status.items() if k not in ("progress", "usage")}
    return {"spec": job["spec"], "status": {**kept, "stages": stages}}


def runs_of(job: Object) -> list[tuple[str, Object]]:
    """(part, its status), of the plan, the stages and the teachers of a job."""
    status = job.get("status", {})
    return [
        *([("plan", status["plan"])] if "plan" in status else []),
        *((stage["name"], stage) for stage in status.get("stages", [])),
        *((f"teacher/{teacher['name']}", teacher) for teacher in status.get("teachers", [])),
    ]


def _note_claims(story: Story, revision: int) -> None:
    story.states.add(("phase", story.phase))
    for part, run in runs_of(story.job):
        story.states.add((part.split("/")[0], run.get("state", "")))
        if run.get("attempt"):
            story.claims.setdefault((part, run["attempt"]), revision)


def _child(kind: str, metadata: Object, revision: int) -> Child:
    labels = metadata["labels"]
    part = labels.get(STAGE_LABEL, "")
    if labels.get(COMPONENT_LABEL) == "teacher":
        part = f"teacher/{part}"
    return Child(kind, metadata["name"], part, int(labels.get(ATTEMPT_LABEL, 0)), revision)


def _state(status: Object) -> str:
    held = [f"{c['type']}={c['status']}" for c in status.get("conditions") or ()]
    words = [status.get("phase", ""), *(f"{k}={v}" for k, v in status.items() if k in ("readyReplicas", "active"))]
    return " ".join(word for word in (*words, *held) if word)


def _summary(story: Story) -> str:
    said = [
        f"{name} {run.get('state')}/{run.get('attempt')} {run.get('reason', '')}" for name, run in runs_of(story.job)
    ]
    left = [f"{child.kind} {child.name} ({child.state})" for child in story.left()]
    name = story.job.get("metadata", {}).get("name")
    return f"{name}: {story.phase}; {'; '.join(said)}; there are {', '.join(left) or 'no children'}"


def check(story: Story, *, made_again: frozenset[str] = frozenset()) -> None:
    """What holds of every job, whatever happened to it.

    ``made_again``: parts whose main children were deleted by hand before they were recorded, so that they may be made twice.
    """
    said = _summary(story)
    for child in story.children.values():
        if not child.part:
            continue
        claim = story.claims.get((child.part, child.attempt))
        assert claim is not None, f"{child.kind} {child.name} was created, and never claimed; {said}"
        assert claim < child.created, f"{child.kind} {child.name} was created before it was claimed; {said}"
    made = [(c.part, c.attempt) for c in story.children.values() if c.kind in MAIN]
    twice = {attempt for attempt in made if made.count(attempt) > 1 and attempt[0] not in made_again}
    assert not twice, f"more than one child of {twice}; {said}"
    pods = [child for child in story.children.values() if child.kind == "Pod"]
    for pod in pods:
        earlier = [other for other in pods if other.part == pod.part and other.attempt < pod.attempt]
        for other in earlier:
            alive = other.over is None or other.over > pod.created
            assert not alive, f"pod {pod.name} was there while pod {other.name} of an earlier attempt ran; {said}"
    newest: dict[str, int] = defaultdict(int)
    for (part, attempt), _ in sorted(story.claims.items(), key=lambda claim: claim[1]):
        assert attempt == newest[part] + 1, f"{part}: attempt {attempt} was claimed after {newest[part]}; {said}"
        newest[part] = attempt
