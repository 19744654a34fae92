"""Takes a job's key, reads what lives of the job, has it decided what to do, and does it; then the key waits again."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from kd_operator import metrics
from kd_operator.cluster.client import Cluster
from kd_operator.cluster.errors import ApiError, Conflict, Denied, NotFound, Refused, ServerError
from kd_operator.cluster.events import Events
from kd_operator.cluster.failpoints import Failpoint, inert
from kd_operator.cluster.reading import controller_uid
from kd_operator.decide.draft import ended
from kd_operator.decision import LOOK_AGAIN_SECONDS, Claim, Create, Decision, Delete, EventNote
from kd_operator.metrics import ReconcileOutcome
from kd_operator.names import PLAN, not_reconciled
from kd_operator.observe import Key, Observer, absent
from kd_operator.observed import Observed
from kd_operator.queue import Haste, WorkQueue
from kd_operator.settings import Settings
from kd_operator.status.states import AT_WORK
from kd_runtime.api.model import Model
from kd_runtime.api.reasons import Reason
from kd_runtime.api.status import JobStatus

Object = dict[str, Any]
T = TypeVar("T")
Decide = Callable[[Observed, datetime, Settings], Decision]

SECRET_BYTES = 32
SETTLE_SECONDS = 15.0
"""After a status of which nothing follows: by then a child mostly has changed, which is looked at when it comes."""
SPACING_SECONDS = 0.4
"""Between a look at a job and the next that a child's change asks for: children change several times in a row."""
PATIENCE_SECONDS = 1.0
"""Until a look at a change after which another one follows mostly: that one is looked at when it comes."""
MOST_CLAIMS = 4
"""Statuses in a row after which only what they say is looked at anew."""
IDLE_SECONDS = 600.0
"""Between two looks at an idle job: a watch tells of all that could give it work."""
MOST_GLANCES = 5
"""Looks in a row at which of an idle job only the job itself is read."""

log = logging.getLogger(__name__)


class NotLeading(Exception):
    """Another operator leads: what was decided is not carried out."""


class Overtaken(Exception):
    """The job is not any more what it was when this was decided: it is read and decided anew."""


@dataclass(slots=True)
class Memory:
    """What is kept of a job between two passes. Losing it costs a request or two, never correctness."""

    conflicts: set[str] = field(default_factory=set)
    """Objects that a POST found under a child's name with another owner."""
    refused: dict[str, str] = field(default_factory=dict)
    """Children that the API server refused to make, as ``kind/name``, each with its words."""
    waits_for_peers: bool = False
    waits_for_runtime: bool = False
    overtaken: bool = False
    """The last pass was: at once is soon enough for the next, but not for one after that."""
    event_at: float | None = None
    """When the first event came of those that are not answered yet."""
    written: str = ""
    """The resourceVersion of the status that was written last, which a watch will tell of too."""
    idle_at: str = ""
    """The resourceVersion at which a suspended job had nothing alive and nothing to be done."""
    glances: int = 0
    """How often since then only the job itself was read."""
    over: bool = False
    """The job has ended, and all of its children have: what becomes of them is no news."""


@dataclass
class Worker:
    """Works on keys, several at a time; ``leading`` is set while this operator is the one that acts."""

    cluster: Cluster
    observer: Observer
    events: Events
    queue: WorkQueue[Key]
    decide: Decide
    settings: Settings
    leading: asyncio.Event
    now: Callable[[], datetime]
    clock: Callable[[], float]
    since: Callable[[], float] = lambda: 0.0
    """When it began to lead, by ``clock``: what waited before that waited for another operator."""
    failpoint: Failpoint = inert
    spacing: float = SPACING_SECONDS
    patience: float = PATIENCE_SECONDS
    settle: float = SETTLE_SECONDS
    memories: dict[Key, Memory] = field(default_factory=dict)
    events_since: dict[Key, float] = field(default_factory=dict)
    """When the first event came since a key was last looked at."""
    looked_at: dict[Key, float] = field(default_factory=dict)
    """When the last look at a job that is at work ended."""

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.settings.workers):
                group.create_task(self._work(), name=f"worker {number}")

    def job_changed(self, key: Key, version: str = "") -> None:
        """A watch says that something of a job changed: look at it, unless it was our own write, and at peers that wait."""
        self.observer.peers.told(version)
        mine = self.memories.get(key)
        if mine is None or not version or mine.written != version:
            self._changed(key, at_once=True)
        for other, memory in self.memories.items():
            if memory.waits_for_peers and other[0] == key[0] and other != key:
                self.queue.put(other)

    def child_changed(
        self, key: Key, haste: Haste = Haste.Soon, deployment: str = "", makes_pods: bool = False
    ) -> None:
        """A watch says that a child of a job changed; of a Deployment, to which resourceVersion. One that ``makes_pods`` is news
        of a job that is over, too: the API server may have carried out a request late."""
        if deployment:
            self.observer.told_of_deployment(key, deployment)
        memory = self.memories.get(key)
        if memory is not None and memory.over and not makes_pods:
            return
        after, looked = self.patience if haste is Haste.CanWait else 0.0, self.looked_at.get(key)
        if haste is not Haste.AtOnce and looked is not None:
            after = max(after, looked + self.spacing - self.clock())
        self._changed(key, after, at_once=haste is Haste.AtOnce)

    def _changed(self, key: Key, after: float = 0.0, *, at_once: bool) -> None:
        self.events_since.setdefault(key, self.clock())
        if at_once:
            self.queue.put_first(key)
        else:
            self.queue.put(key, after)

    def runtime_changed(self) -> None:
        """A watch says that a runtime changed: look at the jobs that have none."""
        for key, memory in self.memories.items():
            if memory.waits_for_runtime:
                self.queue.put(key)

    async def _work(self) -> None:
        while True:
            await self.leading.wait()
            key, waited = await self.queue.get()
            begun = self.clock()
            metrics.taken_up(min(waited, begun - self.since()))
            metrics.queue_depth(len(self.queue))
            outcome = await self._take(key)
            metrics.reconciled(self.clock() - begun, outcome)

    async def _take(self, key: Key) -> ReconcileOutcome:
        """One pass over a job, and when it is to be looked at again."""
        try:
            after = await self.look(key)
        except asyncio.CancelledError:
            self.queue.done(key, after=0.0)
            raise
        except (Overtaken, NotLeading) as reason:
            log.debug("%s/%s: %s", *key, reason)
            self._look_anew(key)
            return ReconcileOutcome.Conflict
        except ApiError as error:
            pause = self.queue.failed(key, error.retry_after or 0.0)
            log.warning("%s/%s: %s; looking again in %.1f s", *key, error, pause)
            return ReconcileOutcome.ApiError
        except (
            Exception
        ):  # one job that cannot be handled must not stop all others; it is said, counted, and tried again
            pause = self.queue.failed(key)
            log.exception("%s/%s: a bug; looking again in %.1f s", *key, pause)
            return ReconcileOutcome.Bug
        if after is None:
            self.looked_at.pop(key, None)
        else:
            self.looked_at[key] = self.clock()
        self.queue.done(key, after)
        return ReconcileOutcome.Done

    def _look_anew(self, key: Key) -> None:
        memory = self.memories.get(key) or Memory()
        if memory.overtaken:
            self.queue.failed(key)
        else:
            self.queue.done(key, after=0.0)
        memory.overtaken = True
        self._remember(key, memory)

    async def look(self, key: Key) -> float | None:
        """Read, decide, act. Returns the seconds until the next look, None where none is needed.

        Raises:
            Overtaken, NotLeading, ApiError: look again.
        """
        memory = self._woken(key)
        if await self._still_idle(key, memory):
            return IDLE_SECONDS
        seen = await self.observer.observe(key, self.now(), conflicts=memory.conflicts)
        if seen is None:
            self._forget(key)
            return None
        observed, job = replace(seen[0], refused=dict(memory.refused)), seen[1]
        metrics.PHASES_SEEN.saw(*key, observed.job.status.phase)
        decision = self.decide(observed, self.now(), self.settings)
        for _ in range(MOST_CLAIMS):
            if decision.status is None or not only_claims(decision):
                break
            self._take_note(key, memory, observed, decision)
            written = await self._write_status(job, observed.job.status, decision.status, memory)
            self._remember(key, memory)
            await self._tell(job, decision)
            observed, job = await self.observer.claimed(observed, written), written
            decision = self.decide(observed, self.now(), self.settings)
        self._take_note(key, memory, observed, decision)
        refusal = await self._act(job, observed.job.status, decision, memory)
        memory.overtaken = False
        memory.idle_at, memory.glances = (observed.job.resource_version if idle(observed, decision) else ""), 0
        status = decision.status or observed.job.status
        memory.over = over(observed, status)
        if decision.requeue_after is None or memory.idle_at or status.completion_time is not None:
            self.observer.forget(key)
        news = memory.refused.keys() - observed.refused.keys()
        if refusal is not None and not news:
            self._remember(key, memory)
            raise refusal
        if memory.conflicts or news or (decision.status is not None and decision.requeue_after == 0.0):
            self._remember(key, memory)
            return 0.0
        memory.event_at = None
        if decision.status is None:
            memory.written = ""
        self._remember(key, memory)
        if memory.idle_at:
            return IDLE_SECONDS
        return decision.requeue_after if decision.status is None else settling(decision.requeue_after, self.settle)

    def _take_note(self, key: Key, memory: Memory, observed: Observed, decision: Decision) -> None:
        """Keep what a job waits for: others' changes are to wake it."""
        memory.conflicts = set()
        memory.waits_for_peers = decision.waits_for_peers
        memory.waits_for_runtime = observed.job.refusal is not None
        self._remember(key, memory)

    def _woken(self, key: Key) -> Memory:
        """What is kept of a job; if an event came since the last look, it is not taken for idle."""
        memory, came = self.memories.get(key) or Memory(), self.events_since.pop(key, None)
        if came is not None:
            memory.idle_at = ""
            memory.event_at = max(came, self.since()) if memory.event_at is None else memory.event_at
            self._remember(key, memory)
        return memory

    async def _still_idle(self, key: Key, memory: Memory) -> bool:
        """Whether nothing has happened to a job that was idle: no event came, and it is the same. Idle jobs are many."""
        if not memory.idle_at or memory.glances >= MOST_GLANCES:
            return False
        job = await absent(self.cluster.get("DistillationJob", key[1], key[0]))
        memory.glances += 1
        return job is not None and job["metadata"]["resourceVersion"] == memory.idle_at

    def _forget(self, key: Key) -> None:
        self.memories.pop(key, None)
        self.events_since.pop(key, None)
        self.looked_at.pop(key, None)
        metrics.PHASES_SEEN.gone(*key)

    def _remember(self, key: Key, memory: Memory) -> None:
        """Only what says something is kept: idle jobs are many."""
        if memory == Memory():
            self.memories.pop(key, None)
        else:
            self.memories[key] = memory

    async def _act(self, job: Object, before: JobStatus, decision: Decision, memory: Memory) -> ApiError | None:
        """Carry a decision out, up to the first child that is refused. Returns why it was."""
        if decision.status is not None:
            await self._write_status(job, before, decision.status, memory)
        for deletion in decision.delete:
            await self._delete(job, deletion)
        refusal = None
        for creation in decision.create:
            refusal = await self._create(job, creation, memory)
            if refusal is not None:
                break
        wanted = {creation.child for creation in decision.create}
        memory.refused = {child: words for child, words in memory.refused.items() if child in wanted}
        await self._tell(job, decision)
        return refusal

    async def _tell(self, job: Object, decision: Decision) -> None:
        for note in decision.events:
            await self._write("event", functools.partial(self.events.post, job, note))

    async def _write_status(self, job: Object, before: JobStatus, status: JobStatus, memory: Memory) -> Object:
        """Write a status; the job as it is since. ``memory`` keeps its version."""
        metadata = job["metadata"]
        body = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        try:
            written = await self._write("status", lambda: self.cluster.put_status(job, body))
        except (Conflict, NotFound) as changed:
            raise Overtaken(f"the status was not written: {changed}") from changed
        metrics.observe_transition(before, status)
        metrics.PHASES_SEEN.saw(metadata["namespace"], metadata["name"], status.phase)
        if only_progress(before, status):
            self.observer.progress.wrote(metadata["uid"], self.now())
        memory.written = written["metadata"]["resourceVersion"]
        return written

    async def _delete(self, job: Object, deletion: Delete) -> None:
        namespace = job["metadata"]["namespace"]

        async def delete() -> None:
            await self.cluster.delete(
                deletion.kind, deletion.name, namespace, uid=deletion.uid, grace_seconds=deletion.grace_seconds
            )

        if deletion.kind == "Service":
            self.observer.changes_services(job["metadata"]["uid"])
        try:
            await self._write("delete", delete)
        except NotFound:
            pass
        except Conflict as another:
            if deletion.uid is None:
                raise
            log.info("%s/%s: %s is another one by now: %s", namespace, deletion.name, deletion.kind, another)

    async def _create(self, job: Object, creation: Create, memory: Memory) -> ApiError | None:
        """POST a child. ``memory`` keeps whether the name belongs to another owner, or else why it was refused, as returned."""
        await self._confirm(job, creation.claim)
        manifest = creation.manifest
        if creation.secret_key is not None:
            filled = {**manifest.get("stringData", {}), creation.secret_key: secrets.token_urlsafe(SECRET_BYTES)}
            manifest = {**manifest, "stringData": filled}
        if manifest["kind"] == "Service":
            self.observer.changes_services(job["metadata"]["uid"])
        try:
            await self._write("create", lambda: self.cluster.create(manifest))
        except Conflict as taken:
            memory.refused.pop(creation.child, None)
            if taken.reason != "AlreadyExists":  # somebody else was counted towards the quota at the same moment
                raise Overtaken(f"{creation.child} was not created: {taken}") from taken
            conflict = await self._foreign(job, manifest)
            memory.conflicts |= {conflict} if conflict else set()
            return None
        except (Denied, Refused, ServerError) as refusal:
            if isinstance(refusal, ServerError) and refusal.reason != "InternalError":
                raise  # an InternalError is mostly a webhook that does not answer
            memory.refused[creation.child] = refusal.steady
            said = f"{creation.child.replace('/', ' ')}: {refusal.status} {refusal.reason}: {refusal.steady}"
            await self.events.post(job, EventNote("Warning", Reason.ChildRefused, said))
            return refusal
        memory.refused.pop(creation.child, None)
        if memory.event_at is not None:
            metrics.reacted(self.clock() - memory.event_at)
        return None

    async def _confirm(self, job: Object, claim: Claim) -> None:
        """A last look, live: the job is the same, goes on, and its status claims the very attempt."""
        metadata = job["metadata"]
        try:
            now = await self.cluster.get("DistillationJob", metadata["name"], metadata["namespace"])
        except NotFound as gone:
            raise Overtaken("the job is gone") from gone
        why = unclaimed(now, metadata["uid"], claim)
        if why is not None:
            raise Overtaken(f"no child of {claim.part or 'the job'} is created: {why}")

    async def _foreign(self, job: Object, manifest: Object) -> str | None:
        kind, metadata = manifest["kind"], manifest["metadata"]
        if kind == "Secret":  # it has the job's whole uid in its name, and the operator may not read it
            return None
        try:
            there = await self.cluster.get(kind, metadata["name"], metadata["namespace"])
        except NotFound as gone:
            raise Overtaken(f"{kind} {metadata['name']} was there, and is gone") from gone
        return None if controller_uid(there) == job["metadata"]["uid"] else f"{kind}/{metadata['name']}"

    async def _write(self, name: str, write: Callable[[], Awaitable[T]]) -> T:
        if not self.leading.is_set():
            raise NotLeading("another operator leads")
        self.failpoint(f"before-{name}")
        result = await write()
        self.failpoint(f"after-{name}")
        return result


def only_claims(decision: Decision) -> bool:
    """Whether a status is all that is decided, and something follows of it at once."""
    return decision.requeue_after == 0.0 and not decision.create and not decision.delete


def settling(after: float | None, settle: float) -> float:
    """When to look again after a status that asks for nothing at once."""
    return settle if after is None else min(after, settle)


def idle(observed: Observed, decision: Decision) -> bool:
    """Whether a job is suspended, with nothing alive, nothing to be done, and no deadline: only a change gives it work."""
    job, nothing = observed.job, Decision(requeue_after=LOOK_AGAIN_SECONDS)
    gone = not observed.children and not observed.pods and job.status.admitted_time is None
    return job.suspend and gone and decision == nothing


def over(observed: Observed, status: JobStatus) -> bool:
    """Whether a job has ended and nothing of it is at work: what is left of it is deleted in its time."""
    at_work = any(pod.alive for pod in observed.pods) or not all(ended(child) for child in observed.children)
    return status.completion_time is not None and not at_work


def unclaimed(job: Object, uid: str, claim: Claim) -> str | None:
    """Why no child of ``claim`` may be created for ``job``, as it is now; None where it may."""
    metadata, status = job["metadata"], job.get("status", {})
    if metadata["uid"] != uid:
        return "another job has its name"
    if "deletionTimestamp" in metadata:
        return "the job is being deleted"
    if job["spec"].get("suspend"):
        return "the job is suspended"
    if "completionTime" in status:
        return "the job has ended"
    if not_reconciled(metadata.get("annotations", {})):
        return "the job is not reconciled, by its annotation"
    if not claim.part:
        return None
    run = _run(status, claim.part)
    if run.get("attempt") != claim.attempt:
        return f"attempt {claim.attempt} is not claimed, but {run.get('attempt')}"
    if run.get("state") not in AT_WORK:
        return f"attempt {claim.attempt} is not claimed any more: {run.get('state')}"
    return None


def _run(status: Object, part: str) -> Object:
    """What ``status`` says of a part."""
    kind, _, teacher = part.rpartition("/")
    if part == PLAN:
        return status.get("plan") or {}
    runs: list[Object] = status.get("teachers" if kind else "stages") or []
    return next((run for run in runs if run["name"] == teacher), {})


def only_progress(before: JobStatus, after: JobStatus) -> bool:
    """Whether two statuses differ in nothing but how far stages are and what they have used."""
    return _without_progress(before) == _without_progress(after)


def _without_progress(status: JobStatus) -> Object:
    bare: Model = status
    stages = [
        stage.model_dump(exclude={"progress", "rows", "metrics", "checkpoint", "gpu_seconds"})
        for stage in status.stages
    ]
    return {**bare.model_dump(exclude={"progress", "usage", "stages"}), "stages": stages}
