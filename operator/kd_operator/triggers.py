"""Watches: an event of a job, a runtime or a labelled child says whose turn it is, and nothing more.

kopf runs in a thread and a loop of its own: it may end at any time (an error in a watch is enough), and then cancels or
waits for whatever is in its loop. So it cannot take the workers with it, and is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory

from kd_operator.cluster.reading import main_child, pod_seen
from kd_operator.observed import MainChild, PodSeen
from kd_operator.queue import Haste
from kd_runtime.api.labels import JOB_LABEL, UID_LABEL
from kd_runtime.api.model import GROUP, VERSION

Key = tuple[str, str]

CHILDREN = (("batch", "v1", "jobs"), ("apps", "v1", "deployments"), ("", "v1", "pods"))
SILENCE_SECONDS = 70.0
"""A watch without even a bookmark for so long is taken for dead; the API server sends one every minute."""
PAGE = 100
"""Objects that a first listing holds in memory at a time."""
IDLE_SECONDS = 0.2
"""How long an object's task waits for its next event."""
RESTART_SECONDS = 1.0
STOP_SECONDS = 2.0
CANCEL_SECONDS = 0.2
CANCELLATIONS = 8
CLEANUP = "startup/cleanup activities"
"""kopf's task that closes its connections once all others have ended."""

log = logging.getLogger(__name__)


class Patience:
    """Pauses between tries of a request, without end: kopf gives up its watches where they end."""

    def __iter__(self) -> Iterator[float]:
        pause = 0.5
        while True:
            yield pause
            pause = min(pause * 2, 10.0)


class Forgetful(ResourceMemories):
    """kopf's memory of objects, which holds nothing: handlers of events alone need none, and a job has dozens of children."""

    async def recall(self, raw_body: Any, **how: Any) -> ResourceMemory:
        """A fresh one."""
        return await super().recall(raw_body, **{**how, "ephemeral": True})


class NoDiffs(kopf.DiffBaseStorage):
    """kopf's idea of what is essential of an object, which nothing here asks for: two copies of each object of each event."""

    def build(self, **of: Any) -> Any:
        """Nothing."""
        return {}

    def fetch(self, **of: Any) -> Any:
        """Nothing is kept."""
        return None

    def store(self, **of: Any) -> None:
        """Nothing is kept."""


class NoProgress(kopf.ProgressStorage):
    """kopf's notes of handlers that it tries again, of which there are none; it copies an object three times to be rid of them."""

    def fetch(self, **of: Any) -> Any:
        """Nothing is kept."""
        return None

    def store(self, **of: Any) -> None:
        """Nothing is kept."""

    def purge(self, **of: Any) -> None:
        """Nothing is kept."""

    def touch(self, **of: Any) -> None:
        """Nothing is kept."""

    def clear(self, *, essence: Any) -> Any:
        """As it is."""
        return essence


@dataclass
class Triggers:
    """Tells of changes, in the loop that ``start`` was called in. Without ``namespaces`` all are watched."""

    job_changed: Callable[[Key, str], None]
    """Told of the resourceVersion too."""
    child_changed: Callable[[Key, Haste, str, bool], None]
    """Told of the resourceVersion of a Deployment too, and whether the child makes pods."""
    runtime_changed: Callable[[], None]
    namespaces: tuple[str, ...] = ()
    _told: asyncio.AbstractEventLoop | None = None
    _watching: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _counted: dict[str, int] = field(default_factory=dict)
    """By a child's uid: what was seen of it when it was told of last, as a number."""
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Of the loop that watches: what ``_stop`` is to the thread."""

    def start(self) -> None:
        """Watch from now on, in the background."""
        self._told = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, name="watches", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Watch no more; what does not end in time ends with the process."""
        self._stop.set()
        watching, thread = self._watching, self._thread
        if watching is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                watching.call_soon_threadsafe(self._ended.set)
        if thread is not None:
            await asyncio.to_thread(thread.join, STOP_SECONDS)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._ended = asyncio.Event()
            self._watching = loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(self._operate())
            except Exception as error:  # what kopf gives up for is not known beforehand, and jobs need not wait for it
                log.warning("the watches ended: %r; starting them again", error)
            finally:
                _end(loop)
            self._stop.wait(RESTART_SECONDS)

    async def _operate(self) -> None:
        """Run kopf until one of its tasks ends. Its own way to end then waits for watches that shrug off being cancelled."""
        self._counted.clear()
        tasks = await kopf.spawn_tasks(
            registry=self.registry(),
            settings=settings(),
            memories=Forgetful(),
            standalone=True,
            clusterwide=not self.namespaces,
            namespaces=self.namespaces,
        )
        told_to_end = asyncio.create_task(self._ended.wait())
        if self._stop.is_set():
            return
        done, _ = await asyncio.wait({*tasks, told_to_end}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def registry(self) -> kopf.OperatorRegistry:
        """The handlers, in a registry of their own: the default one would log in through the whole typed client."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(_login)
        kopf.on.event(GROUP, VERSION, "distillationjobs", registry=registry)(self._on_job)
        kopf.on.event(GROUP, VERSION, "clusterdistillationruntimes", registry=registry)(self._on_runtime)
        for group, version, plural in CHILDREN:
            kopf.on.event(group, version, plural, registry=registry)(self._on_child)
        return registry

    async def _on_job(self, namespace: str | None, name: str | None, meta: kopf.Meta, **_: Any) -> None:
        self._tell(self.job_changed, (namespace or "", name or ""), str(meta.get("resourceVersion", "")))

    async def _on_child(self, type: str | None, namespace: str | None, body: kopf.Body, **_: Any) -> None:
        labels, uid = body.metadata.labels, str(body.metadata.get("uid"))
        if JOB_LABEL not in labels:
            return
        seen = child_seen(body)
        if type == "DELETED":
            self._counted.pop(uid, None)
        elif self._counted.get(uid) == hash(seen):
            return
        else:
            self._counted[uid] = hash(seen)
        deployment = isinstance(seen, MainChild) and seen.kind == "Deployment"
        version = str(body.metadata.get("resourceVersion", "")) if deployment else ""
        key = (namespace or "", labels[JOB_LABEL])
        self._tell(self.child_changed, key, haste(type, seen), version, type != "DELETED" and at_work(seen))

    async def _on_runtime(self, **_: Any) -> None:
        self._tell(self.runtime_changed)

    def _tell(self, told: Callable[..., None], *values: Any) -> None:
        assert self._told is not None
        if not self._stop.is_set():
            self._told.call_soon_threadsafe(told, *values)


def child_seen(body: Mapping[str, Any]) -> PodSeen | MainChild:
    """What a look at its job would read of a child. Much of a child's status is of no account to the job."""
    raw, kind = dict(body), body.get("kind", "")
    return pod_seen(raw) if kind == "Pod" else main_child(raw, kind)


def at_work(child: PodSeen | MainChild) -> bool:
    """Whether a child makes pods, or will."""
    return isinstance(child, MainChild) and not (child.deleting or child.complete or child.failed)


def haste(type: str | None, child: PodSeen | MainChild) -> Haste:
    """How soon a change is to be looked at.

    A child that was just made gets its pods, a pod its node; of a pod that did its work its Job will say so. By a Job that is
    over, a teacher that answers or a pod that held something up and is gone the job may go on, whatever else changes. Pods
    that had ended are deleted by the dozen, where a cluster has more of them than it keeps.
    """
    if isinstance(child, MainChild):
        if type == "ADDED" and not child.deleting:
            return Haste.CanWait
        return Haste.AtOnce if child.complete or child.failed or child.ready else Haste.Soon
    if type == "DELETED":
        return Haste.AtOnce if child.alive else Haste.CanWait
    if child.deleted_at is not None:
        return Haste.Soon
    if type == "ADDED":
        return Haste.CanWait
    troubled = child.waiting_message or child.unschedulable or child.disrupted or child.restarts
    return Haste.CanWait if not troubled and child.phase in ("Pending", "Succeeded") else Haste.Soon


def _cancel(loop: asyncio.AbstractEventLoop, spared: str = "") -> set[asyncio.Task[Any]]:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        if task.get_name() != spared:
            task.cancel()
    return tasks


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """End a loop with all that is in it: a task may need more than one cancellation, and kopf's cleanup takes only one."""
    for number in range(CANCELLATIONS):
        tasks = _cancel(loop, spared=CLEANUP if 0 < number < CANCELLATIONS - 1 else "")
        if not tasks:
            break
        loop.run_until_complete(asyncio.wait(tasks, timeout=CANCEL_SECONDS))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def settings() -> kopf.OperatorSettings:
    """kopf as a mere watcher: it scans for nothing, posts and writes nothing, and keeps as little as it can."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.peering.standalone = True
    chosen.networking.error_backoffs = Patience()
    chosen.networking.request_timeout = 30.0
    chosen.networking.connect_timeout = 5.0
    chosen.watching.inactivity_timeout = SILENCE_SECONDS
    chosen.watching.chunk_size = PAGE
    chosen.queueing.idle_timeout = IDLE_SECONDS
    chosen.queueing.exit_timeout = 0.5
    chosen.persistence.diffbase_storage = NoDiffs()
    chosen.persistence.progress_storage = NoProgress()
    for group, version, plural in CHILDREN:
        chosen.watching.label_selectors[group, version, plural] = UID_LABEL
    return chosen


def _login(**everything: Any) -> kopf.ConnectionInfo | None:
    """By the pod's ServiceAccount, else by a kubeconfig."""
    return kopf.login_with_service_account(**everything) or kopf.login_with_kubeconfig(**everything)
