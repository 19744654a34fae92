"""A world for the operator's decisions: the API server and nodes in memory, virtual time, and operators that are the real ones.

An operator here is the real `Worker` with the real `Observer`, queue and `decide`; only its `Cluster` is another. It can be
moved from request to request, crash between any two, and be there twice.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import manifests
from job_children import SETTINGS
from job_children import job as job_document
from kd_operator.decide import core
from kd_operator.decision import Decision, EventNote
from kd_operator.names import child_name
from kd_operator.observe import Key, Observer
from kd_operator.observed import Observed
from kd_operator.progress.board import Board
from kd_operator.queue import WorkQueue
from kd_operator.settings import Settings
from kd_operator.specs import Specs
from kd_operator.triggers import at_work, child_seen
from kd_operator.worker import Worker
from operator_nodes import FOREVER, GOOD, Nodes, Pod, living
from operator_server import CHILDREN, NAMESPACE, Access, Object, Server

from kd_runtime.api.labels import JOB_LABEL
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.api.status import JobStatus, RunStatus, StageStatus, TeacherStatus

START = datetime(2026, 1, 5, 10, 0, tzinfo=UTC)
LOOP = asyncio.new_event_loop()
MOST_PASSES = 2000


class Endless(AssertionError):
    """An operator that never comes to rest."""


@dataclass
class Notes:
    """Events, as they are posted."""

    posted: list[EventNote] = field(default_factory=list)

    async def post(self, job: Object, note: EventNote) -> None:
        self.posted.append(note)


@dataclass
class Operator:
    """One process of the operator. ``step`` takes it from one request to the next."""

    world: World
    name: str
    stepwise: bool = False
    """Stop before each write; else a pass runs through."""
    worker: Worker = field(init=False)
    access: Access = field(init=False)
    notes: Notes = field(default_factory=Notes)
    decided: list[tuple[Observed, Decision]] = field(default_factory=list)
    untold: deque[Object] = field(default_factory=deque)
    """Changes that its watches have not told it of yet."""
    passes: int = 0
    task: asyncio.Task[Any] | None = None
    gate: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew, with nothing remembered: every job is looked at."""
        server = self.world.server
        self.access = Access(server, self._turn, lambda verb, one: self.world.watched(self, verb, one))
        observer = Observer(self.access, Board())  # type: ignore[arg-type]
        observer.specs = self.world.specs
        self.worker = Worker(
            cluster=self.access,  # type: ignore[arg-type]
            observer=observer,
            events=self.notes,  # type: ignore[arg-type]
            queue=WorkQueue(self.world.seconds, jitter=lambda: 0.0),
            decide=self._decide,
            settings=SETTINGS,
            leading=asyncio.Event(),
            now=lambda: server.now,
            clock=self.world.seconds,
            spacing=0.0,
        )
        self.worker.leading.set()
        self.untold.clear()
        for job in server.every("DistillationJob"):
            self.worker.job_changed(key_of(job))

    def _decide(self, observed: Observed, now: datetime, settings: Settings) -> Decision:
        decision = core.decide(observed, now, settings)
        self.decided.append((observed, decision))
        return decision

    async def _turn(self) -> None:
        if self.stepwise:
            self.gate = LOOP.create_future()
            await self.gate

    def hear(self) -> None:
        """Be told of every change so far."""
        while self.untold:
            one = self.untold.popleft()
            kind, metadata = one["kind"], one["metadata"]
            if kind == "DistillationJob":
                self.worker.job_changed(key_of(one), metadata["resourceVersion"])
            elif kind in CHILDREN and JOB_LABEL in metadata.get("labels", {}):
                version = metadata["resourceVersion"] if kind == "Deployment" else ""
                makes_pods = kind in ("Job", "Deployment") and at_work(child_seen(one))
                key = (NAMESPACE, metadata["labels"][JOB_LABEL])
                self.worker.child_changed(key, deployment=version, makes_pods=makes_pods)
            elif kind == "ClusterDistillationRuntime":
                self.worker.runtime_changed()

    def step(self) -> bool:
        """One request further, or one pass; False where it has nothing to do now."""
        if self.task is None:
            taken = self.worker.queue.take()
            if taken is None:
                return False
            self.task = LOOP.create_task(self.worker._take(taken[0]))
        elif self.gate is not None:
            gate, self.gate = self.gate, None
            gate.set_result(None)
        LOOP.run_until_complete(self._until_held())
        return True

    async def _until_held(self) -> None:
        assert self.task is not None
        while not self.task.done() and self.gate is None:
            await asyncio.sleep(0)
        if self.task.done():
            self.passes += 1
            outcome, self.task = self.task.result(), None
            self.world.over(self, outcome)

    def finish(self) -> None:
        """End the pass that it is in."""
        while self.task is not None:
            self.step()

    def crash(self) -> None:
        """Die wherever it is, and start anew."""
        if self.task is not None:
            task, self.task, self.gate = self.task, None, None
            task.cancel()
            LOOP.run_until_complete(asyncio.wait([task]))
        self.start()


@dataclass
class World:
    """Jobs of one namespace and everything around them."""

    runtime: Object = field(default_factory=lambda: runtime_document())
    server: Server = field(default_factory=lambda: Server(START))
    operators: list[Operator] = field(default_factory=list)
    specs: Specs = field(default_factory=Specs)
    """Remembered for all operators: parsing one takes longer than a whole pass."""
    told: bool = True
    """Whether watches tell of changes; without, operators come back by themselves."""
    late: bool = False
    """Whether watches tell of a change only when their operator is to `hear` of it."""
    puts: int = 0
    """Statuses that were written."""
    statuses: list[JobStatus] = field(default_factory=list)
    """Each, as it was written."""

    def __post_init__(self) -> None:
        self.nodes = Nodes(self.server)
        self.server.changed.append(self._changed)
        self.server.create(self.runtime)
        self.server.create({"kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self.nodes.regain()
        self.operators.append(Operator(self, "one"))

    # ---- time ----------------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """The clock of queues."""
        return self.server.now.timestamp()

    def wait(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due meanwhile."""
        until = self.server.now + timedelta(seconds=seconds)
        while self._settle_then_jump(until):
            pass
        self.server.now = until
        self.settle()

    def settle(self) -> None:
        """Everything that is due now."""
        for _ in range(MOST_PASSES):
            worked = [operator.step() for operator in self.operators]
            if not any(worked) and not self.nodes.step():
                return
        raise Endless(f"never at rest: {self.operators[0].decided[-1][1]}")

    def _settle_then_jump(self, until: datetime) -> bool:
        self.settle()
        times = [self.nodes.due(), *(self._due(operator) for operator in self.operators)]
        due = min((time for time in times if time is not None), default=None)
        if due is None or due > until:
            return False
        self.server.now = max(due, self.server.now)
        return True

    def _due(self, operator: Operator) -> datetime | None:
        due = operator.worker.queue.next_due()
        return datetime.fromtimestamp(due + 1e-3, UTC) if due is not None else None

    def until(self, reached: Callable[[], Any], within: float = 7 * 24 * 3600) -> None:
        """Go on, step by step, until something holds."""
        last = self.server.now + timedelta(seconds=within)
        for _ in range(MOST_PASSES):
            if reached():
                return
            worked = [operator.step() for operator in self.operators]
            if any(worked) or self.nodes.step():
                continue
            if not self._settle_then_jump(last):
                break
        raise AssertionError(f"not reached by {self.server.now}")

    # ---- what happens --------------------------------------------------------------------------------------------------

    def _changed(self, one: Object) -> None:
        if not self.told:
            return
        for operator in self.operators:
            operator.untold.append(one)
            if not self.late:
                operator.hear()

    def watched(self, operator: Operator, verb: str, one: Object | None) -> None:
        """A request is made: a referee may look at it."""
        if verb == "PUT DistillationJob" and one is not None:
            self.puts += 1
            self.statuses.append(JobStatus.model_validate(one["status"]))

    def over(self, operator: Operator, outcome: Any) -> None:
        """A pass is over."""

    # ---- jobs ----------------------------------------------------------------------------------------------------------

    def apply(self, name: str = "tutor", **changes: Any) -> Job:
        """A job that was just created."""
        document = tutor(**changes)
        document["metadata"] |= {"name": name, "namespace": NAMESPACE}
        return Job(self, self.server.create(document)["metadata"]["name"])

    def job(self, name: str = "tutor") -> Job:
        return Job(self, name)


@dataclass
class Job:
    """A DistillationJob of the world, and what people do with it."""

    world: World
    name: str

    @property
    def raw(self) -> Object:
        return self.world.server.read("DistillationJob", self.name)

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def gone(self) -> bool:
        return ("DistillationJob", self.name) not in self.world.server.objects

    @property
    def status(self) -> JobStatus:
        return JobStatus.model_validate(self.raw.get("status", {}))

    def stage(self, name: str) -> StageStatus:
        return next((stage for stage in self.status.stages if stage.name == name), StageStatus(name=name))

    def teacher(self) -> TeacherStatus:
        return next(iter(self.status.teachers), TeacherStatus(name="teacher"))

    def run(self, part: str) -> RunStatus:
        if part == "plan":
            return self.status.plan or RunStatus()
        return self.teacher() if part.startswith("teacher/") else self.stage(part)

    def states(self) -> dict[str, str | None]:
        return {stage.name: stage.state for stage in self.status.stages}

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Its status, reason and message."""
        found = next((c for c in self.status.conditions if c.type == kind), None)
        return (found.status, found.reason, found.message) if found else ("", "", "")

    @property
    def end(self) -> str | None:
        """Succeeded, the reason of a failure, or None where it is not over."""
        for kind in ("Complete", "Failed"):
            status, reason, _ = self.condition(kind)
            if status == "True":
                return reason
        return None

    def finish(self, within: float = 7 * 24 * 3600) -> str:
        """Go on to its end, and until all is quiet."""
        self.world.until(lambda: self.gone or self.end, within)
        self.world.settle()
        return self.end or "gone"

    def reach(self, part: str, *states: str) -> None:
        """Go on until a stage, the plan or the teacher is in a state."""
        self.world.until(lambda: self.run(part).state in states)

    def edit(self, **spec: Any) -> None:
        """Change its spec, as a person does."""
        raw = self.raw
        changed = {**raw["spec"], **spec}
        if changed != raw["spec"]:
            generation = raw["metadata"]["generation"] + 1
            self.world.server.change(raw, metadata={"generation": generation}, spec=changed)

    def annotate(self, name: str, value: str | None) -> None:
        annotations = {**self.raw["metadata"].get("annotations", {}), name: value}
        kept = {key: said for key, said in annotations.items() if said is not None}
        self.world.server.change(self.raw, metadata={"annotations": kept})

    def delete(self) -> None:
        self.world.server.delete("DistillationJob", self.name)

    def child(self, part: str, attempt: int) -> str:
        return child_name(self.name, part.removeprefix("teacher/"), self.uid, attempt)

    def children(self, *kinds: str) -> list[str]:
        """``Job/name`` of everything that it owns, pods aside."""
        wanted = kinds or ("Job", "Deployment", "Service", "ConfigMap", "NetworkPolicy", "Secret")
        owned = (one for kind in wanted for one in self.world.server.owned(kind, self.uid))
        return sorted(f"{one['kind']}/{one['metadata']['name']}" for one in owned)

    def pods(self, part: str | None = None) -> list[Pod]:
        """Its pods that live."""
        return [pod for pod in living(self.world.server, self.raw) if part in (None, pod.part)]


def key_of(job: Object) -> Key:
    return job["metadata"]["namespace"], job["metadata"]["name"]


def runtime_document(**spec: Any) -> Object:
    """The shipped `cpu`, with more of a spec, and no pause between attempts that a test would have to wait for."""
    document = shipped_runtime("cpu").model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    document |= {"apiVersion": "kubedistill.io/v1alpha1", "kind": "ClusterDistillationRuntime"}
    document["metadata"] = {"name": "cpu", "generation": 1, "uid": "0" * 8}
    document["spec"] |= spec
    return copy.deepcopy(document)


TEACHER = {
    "hosted": {
        "model": {"uri": "s3://models/teacher/"},
        "engine": "Transformers",
        "dtype": "float32",
        "maxModelLen": 256,
        "gpusPerReplica": 1,
        "startupTimeoutSeconds": 900,
    }
}
ANSWERS: Object = {"name": "answers", "generate": {"sampling": {"maxTokens": 24, "seed": 7}}}
LOGITS: Object = {"name": "logits", "workers": 2, "capture": {"profile": "Exact", "topK": 16}}
STUDENT: Object = {
    "name": "student",
    "resources": {"nodes": 2, "gpusPerNode": 1},
    "train": manifests.tiny_train(),
}
EXAM: Object = {
    "name": "exam",
    "evaluate": {
        "suites": [{"name": "HeldOut", "maxTokens": 16}],
        "gates": [{"metric": "recoveredGap", "of": "KL", "op": "AtLeast", "value": 0.5}],
    },
}
RELEASE: Object = {"name": "release", "publish": {"targets": [{"uri": "s3://models/tutor/"}], "requireGates": False}}
SHORT = [LOGITS, STUDENT]
"""dataset, a stage that asks the teacher, a gang."""
LONG = [ANSWERS, LOGITS, STUDENT, EXAM]


def tutor(
    stages: list[Object] | None = None,
    *,
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A job's document: a teacher with a GPU, ``stages`` (SHORT)."""
    document = job_document(
        copy.deepcopy(stages or SHORT), **{"teacher": TEACHER, "runtimeRef": {"name": "cpu"}, **spec}
    )
    document["metadata"] = {"annotations": annotations or {}, "labels": labels or {}}
    document["spec"]["dataset"] |= {
        "uri": "s3://data/questions.jsonl",
        "fields": {"prompt": "question", "response": "answer"},
    }
    return document


def told(world: World, name: str = "tutor") -> Iterator[EventNote]:
    """Events that were posted."""
    for operator in world.operators:
        yield from operator.notes.posted


def training(world: World, **spec: object) -> Job:
    """A job whose first attempt to train lasts until something happens to it."""
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER if attempt == 1 else GOOD
    job = world.apply(**spec)
    job.reach("student", "Running")
    return job
