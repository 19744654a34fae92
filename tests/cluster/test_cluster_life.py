"""A job's whole life on simulated nodes: the operator killed between any two writes, suspension and deletion in every state,
children deleted by hand, two operators at once, lost results, and whatever the API server answers.

Everything real but containers: API server, Job and Deployment controllers, scheduler, garbage collector; workers with the
real `decide`, told of changes by the test's own watches, or the operator's whole process.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import manifests
import pytest
from api_faults import ApiFaults, Fault, Request, api_faults
from cluster_server import Server, api_server
from fake_kubelet import PODS, Api, End, Kubelet, PodMet, digest, heartbeats
from job_children import job as job_document
from job_children import runtime as runtime_document
from job_record import CHILDREN, JOBS, Child, Record, Story, check, runs_of
from kd_operator import triggers
from kd_operator.__main__ import Operator
from kd_operator.cluster.client import Cluster, connect
from kd_operator.cluster.events import Events
from kd_operator.decide.core import decide
from kd_operator.observe import Observer
from kd_operator.progress.board import Board
from kd_operator.queue import WorkQueue
from kd_operator.settings import Settings
from kd_operator.worker import Memory, Worker

from kd_runtime.api.model import GROUP, VERSION

pytestmark = pytest.mark.cluster
FURTHER = pytest.mark.faults
"""In `make test-faults` alone: a minute each, and the suite has a test of each kind without it."""

T = TypeVar("T")
Key = tuple[str, str]
Object = dict[str, Any]

NAMESPACE = "default"
TWO = [
    {**manifests.FULL[0], "workers": 2},
    {"name": "student", "resources": {"nodes": 2}, "train": manifests.tiny_train(method="SFT", objective=None)},
]
"""Two stages, and the implicit first one: workers that ask a teacher, then a gang after it is gone."""
PARTS = ("dataset", "answers", "student", "teacher/teacher")
FAMILY = [{**manifests.FULL[0], "workers": 2}, *manifests.FULL[1:3]]
"""Generate, capture and train: what students of one teacher have in common, and what each has alone."""
FIVE = ("dataset", "answers", "logits", "student", "exam", "release")
AT_ONCE = 12
"""Jobs that run side by side in one test: more would only make each slower."""
NUMBERS = itertools.count(1)


class Crash(BaseException):
    """The operator dies."""


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass
class Pass:
    """A worker for one job, which dies and comes back as its failpoint says."""

    worker: Worker
    task: asyncio.Task[None]


@dataclass
class Life:
    """The simulated cluster, with everything that watches it, in a loop of its own."""

    server: Server
    proxy: ApiFaults
    loop: asyncio.AbstractEventLoop
    record: Record
    kubelet: Kubelet
    direct: Cluster
    proxied: Cluster
    workers: dict[Key, list[Worker]] = field(default_factory=dict)

    def run(self, scenario: Coroutine[Any, Any, T]) -> T:
        """Run a scenario in the loop to its end."""
        result = asyncio.run_coroutine_threadsafe(scenario, self.loop).result(500)
        assert not self.kubelet.failures
        return result

    def told(self, key: Key, version: str) -> None:
        """A watch says that a job (of this version) or a child of it changed: each worker is for one job."""
        for other, workers in self.workers.items():
            for worker in workers:
                if version and (other == key or worker.memories.get(other, Memory()).waits_for_peers):
                    worker.job_changed(key, version) if other == key else worker.queue.put(other)
                elif other == key:
                    worker.child_changed(key)

    # ---- jobs ----------------------------------------------------------------------------------------------------------

    def document(self, **spec: Any) -> Object:
        """A job with a teacher of its own, a name of its own, and short pauses: two stages unless ``spec`` says else."""
        document = job_document(**{"stages": copy.deepcopy(TWO), "runtimeRef": {"name": "simulated"}, **spec})
        document["metadata"] = {"name": f"job-{next(NUMBERS)}", "namespace": NAMESPACE}
        policy = {"backoff": {"baseSeconds": 1, "maxSeconds": 1}}
        document["spec"].setdefault("failurePolicy", policy)
        return document

    def prepare(self, script: Callable[[PodMet], Any] | None = None, **spec: Any) -> Object:
        """A document whose pods end by ``script`` once it is made."""
        document = self.document(**spec)
        if script is not None:
            self.kubelet.scripts[key_of(document)] = script
        return document

    async def make(self, document: Object) -> str:
        """Create a job; its uid."""
        path = JOBS.replace("distillationjobs", f"namespaces/{NAMESPACE}/distillationjobs")
        status, answer = await self.record.api.ask("POST", path, document)
        assert status == 201, answer
        return str(answer["metadata"]["uid"])

    async def start(self, script: Callable[[PodMet], Any] | None = None, **spec: Any) -> tuple[Key, str]:
        """Create a job; its key and uid."""
        document = self.prepare(script, **spec)
        return key_of(document), await self.make(document)

    def held(self, pod: PodMet) -> asyncio.Future[End]:
        """A script under which no pod ends before it is known to run; and not all goes well, as with `troubled`."""
        return asyncio.ensure_future(self._once_running(pod))

    async def _once_running(self, pod: PodMet) -> End:
        part = pod.part
        await self.record.until(
            pod.job["metadata"]["uid"], lambda s: s.gone or (part, "Running") in s.states, f"{part} at work"
        )
        return troubled(pod)

    def path(self, key: Key) -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{key[0]}/distillationjobs/{key[1]}"

    async def patch(self, key: Key, change: Object) -> tuple[int, Object]:
        return await self.record.api.ask("PATCH", self.path(key), change)

    def runs_now(self, key: Key) -> set[tuple[str, str]]:
        """(part, state) of a job, read between two steps of the loop."""
        answer = self.server.client.get(self.path(key))
        assert answer.status_code == 200, answer.text
        return {(part, run["state"]) for part, run in runs_of(answer.json())}

    def patch_now(self, key: Key, change: Object) -> None:
        """Patch a job between two steps of the loop: nothing else happens meanwhile."""
        self.merge_now(self.path(key), change)

    def merge_now(self, path: str, change: Object) -> None:
        """The same of any object."""
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = self.server.client.patch(path, json=change, headers=headers)
        assert answer.status_code == 200, answer.text

    def delete_now(self, key: Key) -> None:
        answer = self.server.client.delete(self.path(key))
        assert answer.status_code == 200, answer.text

    async def delete_child(self, kind: str, name: str) -> None:
        path = CHILDREN[kind].rpartition("/")
        url = f"{path[0]}/namespaces/{NAMESPACE}/{path[2]}/{name}"
        options = {"propagationPolicy": "Background"}
        status, answer = await self.record.api.ask("DELETE", url, options)
        assert status in (200, 202), answer

    # ---- operators -----------------------------------------------------------------------------------------------------

    def worker(self, failpoint: Callable[[str], None] = lambda name: None, *, proxied: bool = False) -> Worker:
        """A worker as an operator has it."""
        cluster = self.proxied if proxied else self.direct
        worker = Worker(
            cluster=cluster,
            observer=Observer(cluster, Board()),
            events=Events(cluster, "operator-0", now),
            queue=WorkQueue(time.monotonic, jitter=lambda: 0.9),
            decide=decide,
            settings=Settings(NAMESPACE, "operator-0", plan_image="plan", runtime_image="run", workers=1),
            leading=asyncio.Event(),
            now=now,
            clock=time.monotonic,
            failpoint=failpoint,
        )
        worker.leading.set()
        return worker

    async def operate(
        self, key: Key, failpoint: Callable[[str], None] = lambda name: None, *, proxied: bool = False
    ) -> None:
        """Work on one job until cancelled. An operator that crashes is followed by another, which knows nothing."""
        while True:
            worker = self.worker(failpoint, proxied=proxied)
            mine = self.workers.setdefault(key, [])
            mine.append(worker)
            worker.job_changed(key)
            try:
                await worker.run()
            except BaseExceptionGroup as died:
                if died.split(Crash)[1] is not None:
                    raise
            finally:
                mine.remove(worker)

    async def operate_once(self, key: Key, failpoint: Callable[[str], None]) -> None:
        """Work on one job until the operator crashes; nobody follows."""
        worker = self.worker(failpoint)
        self.workers.setdefault(key, []).append(worker)
        worker.job_changed(key)
        try:
            await worker.run()
        except BaseExceptionGroup as died:
            if died.split(Crash)[1] is not None:
                raise
        finally:
            self.workers[key].remove(worker)
        await asyncio.Event().wait()

    async def with_operators(self, scenario: Coroutine[Any, Any, T], *operators: Coroutine[Any, Any, None]) -> T:
        """A scenario while operators work."""
        tasks = [asyncio.ensure_future(operator) for operator in operators]
        main = asyncio.ensure_future(scenario)
        try:
            await asyncio.wait([main, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            return main.result()
        finally:
            for task in (main, *tasks):
                task.cancel()
            await asyncio.gather(main, *tasks, return_exceptions=True)

    async def succeeded(self, uid: str, **checks: Any) -> Story:
        """The job's story once it has succeeded and all its pods are gone or over, checked."""
        story = await self.record.until(uid, over, "the end of the job")
        assert story.phase == "Succeeded", story.status
        check(story, **checks)
        return story

    async def clean(self, uid: str) -> Story:
        """The job's story once it is gone with everything that it owned, checked."""
        story = await self.record.until(uid, lambda s: s.gone and not s.left(), "a clean cluster")
        check(story)
        return story


def key_of(document: Object) -> Key:
    return document["metadata"]["namespace"], document["metadata"]["name"]


def over(story: Story) -> bool:
    return story.condition("Complete") == "True" or story.condition("Failed") == "True"


async def side_by_side(*scenarios: Coroutine[Any, Any, T]) -> list[T]:
    """Scenarios, so many at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(scenario: Coroutine[Any, Any, T]) -> T:
        async with room:
            return await scenario

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(scenario)) for scenario in scenarios]
    return [task.result() for task in tasks]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A simulated cluster that is watched."""
    with api_server("--kwok", "20") as server:
        kubeconfig = Path(server.environment["KUBECONFIG"])
        made = server.create({**runtime_document(pod=PODS), "metadata": {"name": "simulated"}}, dry_run=False)
        assert made.status_code == 201, made.text
        with api_faults(kubeconfig, tmp_path_factory.mktemp("proxy")) as proxy:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="life", daemon=True)
            thread.start()
            before = os.environ.get("KUBECONFIG")
            os.environ["KUBECONFIG"] = str(kubeconfig)
            try:
                ready, end = asyncio.run_coroutine_threadsafe(_begin(server, proxy, kubeconfig, loop), loop).result(60)
                yield ready
                asyncio.run_coroutine_threadsafe(end(), loop).result(60)
            finally:
                os.environ.pop("KUBECONFIG") if before is None else os.environ.update(KUBECONFIG=before)
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                loop.close()


async def _begin(
    server: Server, proxy: ApiFaults, kubeconfig: Path, loop: asyncio.AbstractEventLoop
) -> tuple[Life, Callable[[], Coroutine[Any, Any, None]]]:
    api = await Api(kubeconfig).__aenter__()
    record, kubelet = Record(api), Kubelet(api)
    direct = await connect()
    proxied = await connect(server=proxy.url, request_seconds=1.0)
    life = Life(server, proxy, loop, record, kubelet, direct, proxied)
    record.told, record.pods = life.told, kubelet.saw
    task, beating = asyncio.ensure_future(record.run()), asyncio.ensure_future(heartbeats(api))
    async with asyncio.timeout(60):
        await record.opened.wait()

    async def end() -> None:
        failed = task.done()
        task.cancel()
        beating.cancel()
        await asyncio.gather(task, beating, return_exceptions=True)
        await asyncio.gather(direct.close(), proxied.close())
        await api.__aexit__()
        assert not failed, "a watch of the test ended, so that something may not have been seen"

    return life, end


# ---- undisturbed -------------------------------------------------------------------------------------------------------


def troubled(pod: PodMet) -> End:
    """Not all goes well: the first attempt of `student` fails in a way that may pass."""
    return End(code=75) if (pod.part, pod.attempt, pod.index) == ("student", 1, 0) else End()


@dataclass
class Writes:
    """A failpoint that notes every write, and does something after one of them."""

    at: int | None = None
    do: Callable[[], None] = lambda: None
    names: list[str] = field(default_factory=list)
    fired: bool = False

    def __call__(self, name: str) -> None:
        if name.startswith("before-") or name == "after-event":
            return
        self.names.append(name)
        if len(self.names) == self.at and not self.fired:
            self.fired = True
            self.do()


def crash() -> None:
    raise Crash


@pytest.fixture(scope="module")
def writes(life: Life) -> list[str]:
    """Every write of a job of which one attempt fails."""
    noted = Writes()

    async def scenario() -> None:
        key, uid = await life.start(troubled)
        story = await life.with_operators(life.succeeded(uid), life.operate(key, noted))
        assert story.mains("student") == [1, 2]

    life.run(scenario())
    return noted.names


def test_a_job_of_five_stages_with_a_teacher_of_its_own_runs_to_its_end(life: Life) -> None:
    async def scenario() -> Story:
        stages = job_document()["spec"]["stages"]
        stages[1]["workers"] = 2
        key, uid = await life.start(stages=stages)
        return await life.with_operators(life.succeeded(uid), life.operate(key))

    story = life.run(scenario())
    assert [(s["name"], s["state"], s["attempt"]) for s in story.status["stages"]] == [
        (name, "Succeeded", 1) for name in FIVE
    ]
    assert story.claims.keys() == {(part, 1) for part in ("plan", *FIVE, "teacher/teacher")}
    kinds = {(child.kind, child.part) for child in story.children.values() if child.kind != "Pod"}
    assert kinds == {
        ("ConfigMap", ""),
        ("NetworkPolicy", ""),
        ("Secret", ""),
        ("Service", "teacher/teacher"),
        ("Deployment", "teacher/teacher"),
        ("Service", "student"),
        *(("Job", part) for part in ("plan", *FIVE)),
    }
    teacher = [c for c in story.children.values() if c.kind == "Pod" and c.part.startswith("teacher/")]
    trainers = [c for c in story.children.values() if c.kind == "Pod" and c.part == "student"]
    assert all(pod.over is not None and pod.over < min(t.created for t in trainers) for pod in teacher)


# ---- the operator dies -------------------------------------------------------------------------------------------------


def test_an_operator_killed_between_any_two_writes_is_followed_by_one_that_ends_the_job(
    life: Life, writes: list[str]
) -> None:
    async def killed_after(number: int) -> bool:
        died = Writes(at=number, do=crash)
        key, uid = await life.start(troubled)
        story = await life.with_operators(life.succeeded(uid), life.operate(key, died))
        assert {part: story.mains(part) for part in PARTS} == {**{part: [1] for part in PARTS}, "student": [1, 2]}
        return died.fired

    fired = life.run(side_by_side(*(killed_after(number) for number in range(1, len(writes) + 1))))
    assert sum(fired) >= 30
    assert {"after-status", "after-create", "after-delete"} == set(writes)


@FURTHER
def test_a_process_killed_again_and_again_is_followed_by_one_that_ends_the_jobs(life: Life) -> None:
    """The whole operator, by the failpoint of its environment: at every 30th moment before or after a write."""
    command = [sys.executable, "-m", "kd_operator", "--namespace", NAMESPACE, "--identity", "operator-0"]
    command += ["--plan-image", "plan", "--runtime-image", "run", "--port", str(free_port()), "--log-level", "ERROR"]
    environment = {**life.server.environment, "KD_FAILPOINT": "*:30"}

    async def until_all_ended(process_ends: list[int]) -> list[Story]:
        uids = [(await life.start(troubled))[1] for _ in range(4)]
        ended = asyncio.ensure_future(side_by_side(*(life.succeeded(uid) for uid in uids)))
        while not ended.done():
            process = await asyncio.create_subprocess_exec(*command, env=environment)
            try:
                dying = asyncio.ensure_future(process.wait())
                await asyncio.wait([dying, ended], return_when=asyncio.FIRST_COMPLETED)
                if dying.done():
                    process_ends.append(dying.result())
            finally:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()
            assert set(process_ends) <= {-signal.SIGKILL}
        return ended.result()

    ends: list[int] = []
    stories = life.run(until_all_ended(ends))
    assert len(ends) >= 5
    assert [story.mains("student") for story in stories] == [[1, 2]] * 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_two_operators_that_both_believe_to_lead_make_one_child_of_each_attempt(life: Life) -> None:
    async def one() -> Story:
        key, uid = await life.start(troubled)
        return await life.with_operators(life.succeeded(uid), *(life.operate(key) for _ in range(2)))

    for story in life.run(side_by_side(*(one() for _ in range(3)))):
        assert story.mains("student") == [1, 2]


# ---- suspension and deletion -------------------------------------------------------------------------------------------


STATES = [
    ("dataset", "Waiting"),
    *((part, state) for part in ("plan", *PARTS) for state in ("Queued", "Starting", "Running")),
    ("student", "Backoff"),
]
"""Every state of every part of a job, ended ones apart."""
COMPONENT = {"plan": "plan", "dataset": "workers", "student": "trainer", "teacher/teacher": "teacher"}
"""Of each part whose pods can be kept from a node; `answers` has its from `dataset`."""


@dataclass
class Reached:
    """A failpoint that does something once the status that was just written says that a part is in a state."""

    life: Life
    key: Key
    wanted: tuple[str, str]
    do: Callable[[], None]
    met: bool = False

    def __call__(self, name: str) -> None:
        if name == "after-status" and not self.met and self.wanted in self.life.runs_now(self.key):
            self.met = True
            self.do()


@dataclass
class Doorkeeper:
    """Nodes that pods of one component find only once it opens: until then their part is Starting, and nothing else.

    Of any other state it keeps nobody, and of `answers` neither: that is Starting only where the operator looks before a pod runs.
    """

    life: Life
    wanted: tuple[str, str]
    name: str = field(default_factory=lambda: f"door-{next(NUMBERS)}")

    @property
    def keeps(self) -> bool:
        """Whether it keeps anybody."""
        return self.wanted[1] == "Starting" and self.wanted[0] in COMPONENT

    def runtime(self) -> str:
        """The name of a runtime whose pods it keeps."""
        if not self.keeps:
            return "simulated"
        component = COMPONENT[self.wanted[0]]
        pods = {**PODS, component: {**PODS.get(component, {}), "nodeSelector": {f"kit/{self.name}": "open"}}}
        made = self.life.server.create({**runtime_document(pod=pods), "metadata": {"name": self.name}}, dry_run=False)
        assert made.status_code == 201, made.text
        return self.name

    def open(self) -> None:
        """Let everybody in."""
        nodes = self.life.server.client.get("/api/v1/nodes").json()["items"] if self.keeps else []
        for node in nodes:
            change = {"metadata": {"labels": {f"kit/{self.name}": "open"}}}
            self.life.merge_now(f"/api/v1/nodes/{node['metadata']['name']}", change)


def assert_met(reached: list[Reached]) -> None:
    """Every state was met."""
    assert {one.wanted for one in reached if not one.met} <= {("answers", "Starting")}


def test_suspended_in_any_state_it_frees_everything_and_goes_on_later(life: Life) -> None:
    async def suspended_in(wanted: tuple[str, str]) -> Reached:
        door = Doorkeeper(life, wanted)
        document = life.prepare(life.held, runtimeRef={"name": door.runtime()})
        key = key_of(document)
        reached = Reached(life, key, wanted, lambda: life.patch_now(key, {"spec": {"suspend": True}}))
        uid = await life.make(document)
        revisions: list[int] = []

        def rests(story: Story) -> bool:
            if story.condition("Suspended") == "True":
                revisions.append(int(story.job["metadata"]["resourceVersion"]))
            return bool(revisions) or over(story)

        async def scenario() -> Story:
            story = await life.record.until(uid, rests, "the suspension")
            assert bool(revisions) is reached.met
            if revisions:
                story = await life.record.until(uid, lambda s: not running(s), "the end of what ran")
                assert story.condition("ResourcesReleased") == "True"
                assert all((pod.over or 0) <= revisions[0] for pod in story.children.values() if pod.kind == "Pod")
                door.open()
                await life.patch(key, {"spec": {"suspend": False}})
            return await life.succeeded(uid)

        await life.with_operators(scenario(), life.operate(key, reached))
        return reached

    assert_met(life.run(side_by_side(*(suspended_in(wanted) for wanted in STATES))))


def running(story: Story) -> bool:
    """Whether anything that could use a GPU is there."""
    return any(child.kind in ("Pod", "Deployment") for child in story.left())


def test_a_job_that_is_created_suspended_has_no_child_at_all(life: Life) -> None:
    async def scenario() -> None:
        key, uid = await life.start(suspend=True)

        async def watched() -> None:
            story = await life.record.until(uid, lambda s: s.condition("Suspended") == "True", "the suspension")
            assert not story.children
            await life.patch(key, {"spec": {"suspend": False}})
            await life.succeeded(uid)

        await life.with_operators(watched(), life.operate(key))

    life.run(scenario())


@pytest.mark.parametrize("with_the_operator", [False, True], ids=["operator-alive", "operator-gone"])
def test_deleted_in_any_state_nothing_of_it_is_left(life: Life, with_the_operator: bool) -> None:
    """Owner references clean up, where the operator is gone as well."""

    async def deleted_in(wanted: tuple[str, str], suspended_in: tuple[str, str] | None = None) -> Reached:
        document = life.prepare(life.held, runtimeRef={"name": Doorkeeper(life, wanted).runtime()})
        key = key_of(document)

        def delete() -> None:
            life.delete_now(key)
            if with_the_operator:
                raise Crash

        reached = Reached(life, key, wanted, delete)
        suspends = Reached(life, key, suspended_in or wanted, lambda: life.patch_now(key, {"spec": {"suspend": True}}))

        def failpoint(name: str) -> None:
            reached(name)
            if suspended_in is not None:
                suspends(name)

        uid = await life.make(document)
        operator = life.operate_once(key, failpoint) if with_the_operator else life.operate(key, failpoint)
        story = await life.with_operators(
            life.record.until(uid, lambda s: (s.gone and not s.left()) or over(s), "a clean cluster"), operator
        )
        check(story)
        assert story.gone is reached.met
        return reached

    drains = deleted_in(("answers", "Draining"), suspended_in=("answers", "Running"))
    assert_met(life.run(side_by_side(drains, *(deleted_in(wanted) for wanted in STATES))))


# ---- what people and others do to it -----------------------------------------------------------------------------------


@dataclass
class Held:
    """A script under which the pods of one stage run until they are let go."""

    part: str
    met: asyncio.Event
    release: asyncio.Future[End]

    @classmethod
    def at(cls, part: str) -> Held:
        return cls(part, asyncio.Event(), asyncio.get_running_loop().create_future())

    def __call__(self, pod: PodMet) -> End | asyncio.Future[End]:
        if pod.part != self.part:
            return End()
        self.met.set()
        return self.release


@dataclass(frozen=True)
class Deleted:
    """Children (kind, part) that somebody deletes at one moment of ``held``, and the attempts beyond the first that follow."""

    held: str
    children: tuple[tuple[str, str], ...]
    attempts: dict[str, int] = field(default_factory=dict)


@pytest.mark.parametrize(
    "deleted",
    [
        Deleted("plan", (("Job", "plan"),), {"plan": 2}),
        Deleted("answers", (("Job", "answers"),), {"plan": 2, "answers": 2}),
        Deleted("student", (("Job", "student"),), {"plan": 2, "student": 2}),
        Deleted("answers", (("Deployment", "teacher/teacher"),), {"plan": 2, "answers": 2, "teacher/teacher": 2}),
        Deleted("answers", (("Secret", ""),)),
        Deleted("answers", (("Pod", "answers"),)),
        Deleted("answers", (("Pod", "teacher/teacher"),)),
        # What nothing watches is missed at the next look, which comes after a minute: all of it in one job.
        pytest.param(
            Deleted("answers", (("Service", "teacher/teacher"), ("ConfigMap", ""), ("NetworkPolicy", ""))),
            marks=FURTHER,
        ),
    ],
    ids=lambda deleted: "-".join((*(kind for kind, _ in deleted.children), deleted.children[0][1] or "job")),
)
def test_a_child_that_is_deleted_by_hand_is_made_again_or_ends_its_attempt_for_free(
    life: Life, deleted: Deleted
) -> None:
    async def scenario() -> Story:
        script = Held.at(deleted.held)
        key, uid = await life.start(script)

        async def delete() -> Story:
            await script.met.wait()
            at_work = (deleted.held, "Running")
            story = await life.record.until(uid, lambda s: at_work in s.states, f"{deleted.held} at work")
            gone = [next(c for c in story.left() if (c.kind, c.part) == child) for child in deleted.children]
            for child in gone:
                await life.delete_child(child.kind, child.name)
            for child in gone:
                again = partial(made_again, child=child)
                await life.record.until(uid, again, f"another {child.kind}")
            script.release.set_result(End())
            return await life.succeeded(uid)

        return await life.with_operators(delete(), life.operate(key))

    story = life.run(scenario())
    newest: dict[str, int] = {}
    for claimed, attempt in story.claims:
        newest[claimed] = max(attempt, newest.get(claimed, 0))
    assert newest == {**dict.fromkeys(("plan", *PARTS), 1), **deleted.attempts}
    assert story.status.get("attempts", {}).get("counted", 0) == 0


def made_again(story: Story, child: Child) -> bool:
    """Whether a deleted child is gone, and what follows it may come or has come; nobody needs another Secret."""
    left = [c for c in story.left() if c.part == child.part and c is not child]
    if child.kind == "Job":  # the next attempt comes once all pods of this one are gone
        return child.over is not None and not any(c.kind == "Pod" and c.attempt == 1 for c in left)
    return child.over is not None and (child.kind == "Secret" or any(c.kind == child.kind for c in left))


def test_what_may_be_edited_is_taken_up_and_what_may_not_is_refused_at_any_moment(life: Life) -> None:
    edits: list[Object] = [
        {"budget": {"maxGPUHours": "7"}},
        {"retention": {"keepPodsOnFailureSeconds": 11}},
        {"scheduling": {"priorityClassName": "other"}},
    ]
    refused: list[Object] = [
        {"stages": job_document()["spec"]["stages"]},
        {"dataset": {"uri": "s3://elsewhere/"}},
        {"artifacts": {"uri": "s3://elsewhere/"}},
        {"teacher": {"hosted": {"maxModelLen": 128}}},
        {"failurePolicy": {"backoffLimit": 99}},
    ]

    async def edited_at(part: str) -> None:
        script = Held.at(part)
        key, uid = await life.start(script)

        async def edit() -> Story:
            await script.met.wait()
            for change in refused:
                status, answer = await life.patch(key, {"spec": change})
                assert status == 422, (change, answer)
                assert f"spec.{next(iter(change))}" in answer["message"]
            for change in edits:
                status, answer = await life.patch(key, {"spec": change})
                assert status == 200, (change, answer)
            generation = answer["metadata"]["generation"]
            await life.record.until(uid, lambda s: s.status["observedGeneration"] == generation, "the new generation")
            script.release.set_result(End())
            return await life.succeeded(uid)

        story = await life.with_operators(edit(), life.operate(key))
        assert {attempt for _, attempt in story.claims} == {1}
        assert story.job["metadata"]["generation"] == story.status["observedGeneration"] == 1 + len(edits)

    other = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "other"}, "value": 7}
    assert life.server.create(other, dry_run=False).status_code == 201
    life.run(side_by_side(*(edited_at(part) for part in ("plan", "answers", "student"))))


# ---- results that are lost ---------------------------------------------------------------------------------------------


def test_a_result_that_is_lost_or_cut_costs_nothing_where_the_artifact_is_there(life: Life) -> None:
    async def lost(message: str) -> None:
        key, uid = await life.start(lambda pod: End(message=message) if pod.part == "student" else End())
        story = await life.with_operators(life.succeeded(uid), life.operate(key))
        assert story.mains("student") == [1]
        assert story.mains("plan") == [1, 2]
        assert all(count == 1 for count in life.kubelet.store.asked.values())

    life.run(side_by_side(*(lost(message) for message in ("", '{"exit_class":0,"manifest_sha2', "\x00", "Killed"))))


def test_a_stage_that_ends_well_three_times_and_makes_nothing_fails_the_job(life: Life) -> None:
    async def scenario() -> Story:
        key, uid = await life.start(lambda pod: End(commits=pod.part != "student"))
        return await life.with_operators(life.record.until(uid, over, "the end"), life.operate(key))

    story = life.run(scenario())
    check(story)
    assert story.stage("student")["attempt"] == 3
    (failed,) = [c for c in story.status["conditions"] if c["type"] == "Failed"]
    assert (failed["status"], failed["reason"]) == ("True", "ResultLost")


def test_a_plan_whose_result_is_cut_is_made_again(life: Life) -> None:
    async def scenario() -> Story:
        cut = digest("plan")[:40]
        key, uid = await life.start(
            lambda pod: End(message=cut) if (pod.part, pod.attempt < 3) == ("plan", True) else End()
        )
        return await life.with_operators(life.succeeded(uid), life.operate(key))

    assert life.run(scenario()).mains("plan") == [1, 2, 3]


def test_ten_jobs_that_want_the_same_make_each_artifact_once(life: Life) -> None:
    async def scenario() -> list[Story]:
        documents = [life.prepare() for _ in range(10)]
        for document in documents:
            life.kubelet.store.salts[key_of(document)] = "shared"
        uids = [await life.make(document) for document in documents]
        ends = side_by_side(*(life.succeeded(uid) for uid in uids))
        return await life.with_operators(ends, *(life.operate(key_of(document)) for document in documents))

    stories = life.run(scenario())
    store = life.kubelet.store
    keys = {stage["key"] for story in stories for stage in story.status["stages"]}
    assert len(keys) == 3
    assert [store.asked[key] for key in keys] == [1, 1, 1]
    assert sorted(len(story.mains("answers")) for story in stories) == [0] * 9 + [1]


@dataclass
class Makers:
    """A script under which the pods of one stage, whichever job's they are, run until they are let go."""

    part: str
    met: asyncio.Queue[str]
    """Names of jobs whose pods of the stage have begun, in order."""
    release: asyncio.Future[End]
    known: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, part: str) -> Makers:
        return cls(part, asyncio.Queue(), asyncio.get_running_loop().create_future())

    def __call__(self, pod: PodMet) -> End | asyncio.Future[End]:
        if pod.part != self.part:
            return End()
        name = pod.job["metadata"]["name"]
        if name not in self.known:
            self.known.add(name)
            self.met.put_nowait(name)
        return self.release


@dataclass
class Family:
    """Ten jobs with one teacher and one dataset, each with a student of its own; `answers` is held wherever it is made."""

    life: Life
    held: Makers
    uids: dict[str, str]
    """By the names of the jobs that are still wanted."""

    @classmethod
    async def apply(cls, life: Life) -> Family:
        held = Makers.of("answers")
        documents = [life.prepare(held, stages=copy.deepcopy(FAMILY)) for _ in range(10)]
        for document in documents:
            document["spec"]["student"] = {"model": {"uri": f"s3://models/{document['metadata']['name']}/"}}
            life.kubelet.store.salts[key_of(document)] = f"family {documents[0]['metadata']['name']}"
            life.kubelet.store.own[key_of(document)] = frozenset({"student"})
        return cls(life, held, {document["metadata"]["name"]: await life.make(document) for document in documents})

    def operators(self) -> list[Coroutine[Any, Any, None]]:
        return [self.life.operate((NAMESPACE, name)) for name in self.uids]

    async def maker(self) -> str:
        """The one job that makes `answers`, once all others wait for it and say so."""
        maker = await self.held.met.get()

        def waits(story: Story) -> bool:
            stage = story.stage("answers")
            names_it = f"job {maker} is making the same artifact" in stage.get("message", "")
            return (stage.get("state"), stage.get("reason")) == ("Waiting", "WaitingForPeer") and names_it

        others = [uid for name, uid in self.uids.items() if name != maker]
        await asyncio.gather(*(self.life.record.until(uid, waits, f"waiting for {maker}") for uid in others))
        assert self.held.met.empty()
        return maker

    async def end(self) -> list[Story]:
        """All go on; their stories."""
        self.held.release.set_result(End())
        return await side_by_side(*(self.life.succeeded(uid) for uid in self.uids.values()))

    def check(self, stories: list[Story], maker: str) -> None:
        """What all have in common was made once, `answers` by ``maker``, and each has a student of its own."""
        common = ("dataset", "answers", "logits")
        keys = {part: {story.stage(part)["key"] for story in stories} for part in (*common, "student")}
        assert {part: len(found) for part, found in keys.items()} == {
            **dict.fromkeys(common, 1),
            "student": len(stories),
        }
        asked = self.life.kubelet.store.asked
        made = {part: [asked[key] for key in found] for part, found in keys.items()}
        assert made == {**{part: [1] for part in common}, "student": [1] * len(stories)}
        assert [story.job["metadata"]["name"] for story in stories if story.mains("answers")] == [maker]
        assert [story.mains("student") for story in stories] == [[1]] * len(stories)


def test_ten_students_of_one_teacher_wait_for_the_one_that_makes_what_all_need(life: Life) -> None:
    async def scenario() -> None:
        family = await Family.apply(life)

        async def whole() -> None:
            maker = await family.maker()
            family.check(await family.end(), maker)

        await life.with_operators(whole(), *family.operators())

    life.run(scenario())


def test_where_the_one_that_all_wait_for_is_deleted_another_takes_over(life: Life) -> None:
    async def scenario() -> None:
        family = await Family.apply(life)

        async def whole() -> None:
            first = await family.maker()
            life.delete_now((NAMESPACE, first))
            await life.clean(family.uids.pop(first))
            second = await family.maker()
            family.check(await family.end(), second)

        await life.with_operators(whole(), *family.operators())

    life.run(scenario())


# ---- an API server that misbehaves -------------------------------------------------------------------------------------

FAULTS = [fault for fault in Fault if fault is not Fault.Unauthorized]


def test_whatever_the_api_server_answers_now_and_then_the_job_ends_well(life: Life) -> None:
    """Every fifth write and every twentieth read of a job goes wrong, for each job in a way of its own."""
    faults: dict[str, Fault] = {}
    asked: dict[tuple[str, bool], Iterator[int]] = {}

    def judge(request: Request) -> Fault | None:
        body = request.body or {}
        said = f"{request.path}/ {request.query.get('labelSelector', '')} {body.get('metadata', {}).get('name', '')}-"
        job = next((word for word in faults if word in said), None)
        if job is None:
            return None
        writes = request.method != "GET"
        number = next(asked.setdefault((str(faults[job]), writes), itertools.count(1)))
        return faults[job] if number % (5 if writes else 20) == 0 else None

    async def faulty(fault: Fault) -> Story:
        document = life.prepare(troubled)
        key = key_of(document)
        faults[f"/{key[1]}/"] = faults[f" {key[1]}-"] = fault
        uid = await life.make(document)
        faults[uid] = fault
        return await life.with_operators(life.succeeded(uid), life.operate(key, proxied=True))

    life.proxy.judge = judge
    try:
        stories = life.run(side_by_side(*(faulty(fault) for fault in FAULTS)))
    finally:
        life.proxy.judge = lambda request: None
    happened = {fault: sum(request.fault is fault for request in life.proxy.seen) for fault in FAULTS}
    assert all(count >= 5 for count in happened.values()), happened
    assert [story.mains("student") for story in stories] == [[1, 2]] * len(FAULTS)


def test_watches_that_fall_silent_stop_nothing(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole operator in this process; each of its first watches says nothing, ever."""
    monkeypatch.setenv("KUBECONFIG", life.proxy.environment["KUBECONFIG"])
    monkeypatch.setattr(triggers, "SILENCE_SECONDS", 1.0)
    life.proxy.seen.clear()
    kinds = ("/distillationjobs", "/pods", "/batch/v1/jobs", "/deployments")
    for kind in kinds:
        life.proxy.fail("WATCH", kind, Fault.Silent)
    _, uid = life.run(life.start(troubled))
    settings = Settings(NAMESPACE, "operator-0", plan_image="plan", runtime_image="run", port=free_port())

    async def operate() -> Story:
        operator = await Operator.build(settings, decide)
        stop = asyncio.Event()
        running = asyncio.ensure_future(operator.run(stop))
        waiting = asyncio.ensure_future(asyncio.to_thread(life.run, life.succeeded(uid)))
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await running
        return waiting.result()

    story = asyncio.run(operate())
    assert story.mains("student") == [1, 2]
    for kind in kinds:
        asked = [request.fault for request in life.proxy.seen if request.watches and kind in request.path]
        assert asked[0] is Fault.Silent
        assert len(asked) >= 2
