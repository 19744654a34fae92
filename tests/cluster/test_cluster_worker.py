"""What the worker does with a decision, on a real API server, with faults and changes at the worst moments."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from api_faults import ApiFaults, Fault, Request, api_faults
from cluster_server import Server
from kd_operator import names
from kd_operator.cluster.client import connect
from kd_operator.cluster.events import Events
from kd_operator.decision import Claim, Create, Decision, Delete, EventNote
from kd_operator.observe import UNFINISHED, Observer, Peers
from kd_operator.observed import Observed, version_of
from kd_operator.progress.board import Board
from kd_operator.queue import WorkQueue
from kd_operator.settings import Settings
from kd_operator.worker import IDLE_SECONDS, MOST_GLANCES, Decide, Worker

from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, JOB_LABEL, STAGE_LABEL, UID_LABEL
from kd_runtime.api.parse import load_documents
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.api.status import JobStatus, PlanStatus, StageStatus

pytestmark = pytest.mark.cluster

SMALLEST = Path(__file__).parents[1] / "api" / "corpus" / "good" / "smallest.yaml"
NAMESPACE = "default"
SETTINGS = Settings(namespace=NAMESPACE, identity="operator-0", plan_image="plan", runtime_image="run", workers=4)
NUMBERS = itertools.count()


class Crash(BaseException):
    """The operator dies."""


@dataclass
class Bench:
    """A real API server behind the proxy, and workers that decide as a test says."""

    server: Server
    proxy: ApiFaults
    runtime: str
    passes: list[Observed] = field(default_factory=list)
    worker: Worker | None = None
    """The last one that was made."""

    def job(self, **spec: Any) -> dict[str, Any]:
        """A new job with a name of its own, as the server tells it."""
        document = load_documents(SMALLEST)[0]
        document["metadata"] = {"name": f"job-{next(NUMBERS)}", "namespace": NAMESPACE}
        document["spec"] |= {"runtimeRef": {"name": self.runtime}, **spec}
        return self.make(document)

    def make(self, document: dict[str, Any]) -> dict[str, Any]:
        answer = self.server.create(document, dry_run=False)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def read(self, document: dict[str, Any]) -> dict[str, Any] | None:
        answer = self.server.client.get(self.server.url(document, document["metadata"]["name"]))
        found: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
        return found

    def patch(self, document: dict[str, Any], change: dict[str, Any], part: str = "") -> None:
        url = self.server.url(document, document["metadata"]["name"]) + part
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = self.server.client.patch(url, json=change, headers=headers)
        assert answer.status_code == 200, answer.text

    def delete(self, document: dict[str, Any]) -> None:
        url = self.server.url(document, document["metadata"]["name"])
        answer = self.server.client.delete(url, params={"propagationPolicy": "Background"})
        assert answer.status_code == 200, answer.text

    def run(
        self,
        decide: Decide,
        jobs: list[dict[str, Any]],
        until: Callable[[Worker], bool] | None = None,
        *,
        look: int | None = None,
        leading: bool = True,
        failpoint: Callable[[str], None] = lambda name: None,
    ) -> Worker:
        """Work on ``jobs`` until a condition holds; or with ``look`` take so many looks at the first, one by one."""

        def deciding(observed: Observed, now: datetime, settings: Settings) -> Decision:
            self.passes.append(observed)
            return decide(observed, now, settings)

        async def scenario() -> Worker:
            cluster = await connect(server=self.proxy.url, request_seconds=2.0)
            now = lambda: datetime.now(UTC)  # noqa: E731
            worker = Worker(
                cluster=cluster,
                observer=Observer(cluster, Board()),
                events=Events(cluster, "operator-0", now),
                queue=WorkQueue(time.monotonic, jitter=lambda: 0.9),
                decide=deciding,
                settings=SETTINGS,
                leading=asyncio.Event(),
                now=now,
                clock=time.monotonic,
                failpoint=failpoint,
                settle=0.5,
            )
            self.worker = worker
            if leading:
                worker.leading.set()
            try:
                for job in jobs:
                    worker.job_changed(key_of(job))
                if look is not None:
                    for _ in range(look):
                        key, _waited = await worker.queue.get()
                        await worker._take(key)
                    return worker
                assert until is not None
                running = asyncio.create_task(worker.run())
                try:
                    async with asyncio.timeout(60):
                        while not await asyncio.to_thread(until, worker):
                            assert not running.done(), running
                            await asyncio.sleep(0.02)
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                return worker
            finally:
                await cluster.close()

        return asyncio.run(scenario())


def key_of(job: dict[str, Any]) -> tuple[str, str]:
    return job["metadata"]["namespace"], job["metadata"]["name"]


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiFaults]:
    with api_faults(Path(server.environment["KUBECONFIG"]), tmp_path_factory.mktemp("proxy")) as ready:
        yield ready


@pytest.fixture(scope="module")
def runtime(server: Server) -> str:
    document = shipped_runtime("cpu").model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    document |= {"apiVersion": "kubedistill.io/v1alpha1", "kind": "ClusterDistillationRuntime"}
    made = server.create(document, dry_run=False)
    assert made.status_code == 201, made.text
    return "cpu"


@pytest.fixture
def bench(server: Server, proxy: ApiFaults, runtime: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("KUBECONFIG", proxy.environment["KUBECONFIG"])
    proxy.judge = lambda request: None
    proxy._plan.clear()
    proxy.seen.clear()
    return Bench(server, proxy, runtime)


def child(observed: Observed, attempt: int = 1, kind: str = "Job", **more: Any) -> dict[str, Any]:
    """A main child of stage `student`, which starts no pod."""
    job = observed.job
    labels = {
        JOB_LABEL: job.name,
        UID_LABEL: job.uid,
        STAGE_LABEL: "student",
        ATTEMPT_LABEL: str(attempt),
        COMPONENT_LABEL: "trainer",
    }
    owner = {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    metadata = {
        "name": names.child_name(job.name, "student", job.uid, attempt),
        "namespace": job.namespace,
        "labels": labels,
        "ownerReferences": [owner],
    }
    pod = {"restartPolicy": "Never", "containers": [{"name": "stage", "image": "none"}]}
    spec = {"suspend": True, "template": {"metadata": {"labels": labels}, "spec": pod}}
    made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
    return {**made, **more, "kind": kind}


def claimed(attempt: int = 1, **more: Any) -> JobStatus:
    stage = StageStatus(name="student", type="train", state="Starting", attempt=attempt, **more)
    return JobStatus(phase="Running", plan=PlanStatus(attempt=1, state="Succeeded"), stages=(stage,))


def claim_then_create(observed: Observed, now: datetime, settings: Settings) -> Decision:
    """The least of a `decide`: claim, create, record the child's uid, and then nothing."""
    stage = next(iter(observed.job.status.stages), None)
    if stage is None:
        return Decision(status=claimed())
    if not observed.children:
        return Decision(create=(Create(child(observed), Claim("student", 1)),), requeue_after=0.01)
    if stage.child_uid is None:
        return Decision(status=claimed(child_uid=observed.children[0].uid))
    return Decision(requeue_after=None)


def settled(bench: Bench, job: dict[str, Any]) -> Callable[[Worker], bool]:
    def check(worker: Worker) -> bool:
        now = bench.read(job)
        stages = (now or {}).get("status", {}).get("stages", [{}])
        return "childUID" in stages[0] and not len(worker.queue) and not worker.queue._working

    return check


def posts(bench: Bench, kind: str = "jobs") -> list[Request]:
    return [request for request in bench.proxy.writes(f"/{kind}") if request.method == "POST"]


def test_an_attempt_is_claimed_before_its_child_exists_and_looked_at_once_more_in_between(bench: Bench) -> None:
    job = bench.job()
    bench.run(claim_then_create, [job], settled(bench, job))
    path = f"/apis/kubedistill.io/v1alpha1/namespaces/{NAMESPACE}/distillationjobs/{job['metadata']['name']}"
    requests = [str(r) for r in bench.proxy.seen if r.method != "GET" or r.path == path]
    created = f"POST /apis/batch/v1/namespaces/{NAMESPACE}/jobs"
    assert requests == [
        f"GET {path}",
        f"PUT {path}/status",
        f"GET {path}",
        f"GET {path}",
        created,
        f"GET {path}",
        f"PUT {path}/status",
        f"GET {path}",
    ]
    stage = (bench.read(job) or {})["status"]["stages"][0]
    made = bench.server.client.get(
        bench.server.url(child(bench.passes[-1]), child(bench.passes[-1])["metadata"]["name"])
    )
    assert stage["childUID"] == made.json()["metadata"]["uid"]


def suspend(bench: Bench, job: dict[str, Any]) -> None:
    bench.patch(job, {"spec": {"suspend": True}})


def delete(bench: Bench, job: dict[str, Any]) -> None:
    bench.delete(job)


def delete_slowly(bench: Bench, job: dict[str, Any]) -> None:
    bench.patch(job, {"metadata": {"finalizers": ["example.com/slow"]}})
    bench.delete(job)


def create_anew(bench: Bench, job: dict[str, Any]) -> None:
    bench.delete(job)
    kept = {key: job["metadata"][key] for key in ("name", "namespace")}
    again = bench.make({"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": kept, "spec": job["spec"]})
    bench.patch(again, {"status": claimed().model_dump(mode="json", by_alias=True, exclude_none=True)}, "/status")


def claim_another(bench: Bench, job: dict[str, Any]) -> None:
    bench.patch(job, {"status": claimed(2).model_dump(mode="json", by_alias=True, exclude_none=True)}, "/status")


@pytest.mark.parametrize("change", [suspend, delete, delete_slowly, create_anew, claim_another])
def test_no_child_is_created_for_a_job_that_changed_since_it_was_read(
    bench: Bench, change: Callable[[Bench, dict[str, Any]], None]
) -> None:
    job = bench.job()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        if not observed.job.status.stages:
            return Decision(status=claimed())
        if len(bench.passes) == 2:
            change(bench, job)  # between the read and what was decided on it
            return Decision(create=(Create(child(observed), Claim("student", 1)),))
        return Decision(requeue_after=None)

    bench.run(decide, [job], look=3)
    assert posts(bench) == []
    assert len(bench.passes) == (2 if change is delete else 3)


@pytest.mark.parametrize(
    ("part", "attempt", "created"),
    [
        ("student", 1, True),
        ("student", 2, False),
        ("plan", 1, True),
        ("plan", 2, False),
        ("teacher/student", 1, False),
        ("teacher/big", 3, True),
        ("teacher/big", 1, False),
        ("exam", 1, False),
        ("release", 1, False),  # withdrawn
        ("", 0, True),
    ],
)
def test_only_the_attempt_that_the_status_claims_gets_children(
    bench: Bench, part: str, attempt: int, created: bool
) -> None:
    job = bench.job()
    status = {**claimed().model_dump(mode="json", by_alias=True, exclude_none=True)}
    withdrawn = {"name": "release", "type": "publish", "attempt": 1, "state": "Waiting"}
    runs = {
        "plan": {"attempt": 1, "state": "Running"},
        "stages": [*status["stages"], withdrawn],
        "teachers": [{"name": "big", "attempt": 3, "state": "Starting"}],
    }
    bench.patch(job, {"status": {**status, **runs}}, "/status")
    bench.run(lambda seen, *_: Decision(create=(Create(child(seen), Claim(part, attempt)),)), [job], look=1)
    assert len(posts(bench)) == int(created)


def test_a_status_that_meets_another_writers_change_is_decided_anew_and_nothing_else_is_done(bench: Bench) -> None:
    job = bench.job()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        if len(bench.passes) == 1:
            bench.patch(job, {"metadata": {"labels": {"changed": "meanwhile"}}})
            config = Create(child(observed), Claim("", 0))
            return Decision(status=claimed(), create=(config,), delete=(Delete("Job", "any"),), requeue_after=60.0)
        return Decision(requeue_after=None)

    worker = bench.run(decide, [job], look=2)
    assert [r.method for r in bench.proxy.writes()] == ["PUT"]
    assert bench.passes[1].job.labels == {"changed": "meanwhile"}
    assert len(worker.queue) == 0


def test_a_written_status_is_looked_at_again_at_once_and_the_rest_of_the_decision_is_done(bench: Bench) -> None:
    job = bench.job()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        if len(bench.passes) == 1:
            return Decision(status=claimed(), create=(Create(child(observed), Claim("", 0)),), requeue_after=60.0)
        return Decision(requeue_after=60.0)

    bench.run(decide, [job], look=2)
    assert [r.method for r in bench.proxy.writes()] == ["PUT", "POST"]
    assert len(bench.passes[1].children) == 1


def test_a_child_that_is_there_already_is_no_conflict(bench: Bench) -> None:
    job = bench.job()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        if len(bench.passes) == 1:
            bench.make(child(observed))
        return Decision(create=(Create(child(observed), Claim("", 0)),), requeue_after=0.0)

    bench.run(decide, [job], look=2)
    assert [observed.conflicts for observed in bench.passes] == [(), ()]


@pytest.mark.parametrize("owner", [None, "00000000-0000-0000-0000-000000000000"])
def test_a_child_of_another_owner_is_a_conflict_until_it_is_gone(bench: Bench, owner: str | None) -> None:
    job = bench.job()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        theirs = child(observed)
        if len(bench.passes) == 1:
            other = [{**theirs["metadata"]["ownerReferences"][0], "uid": owner, "name": "someone"}] if owner else []
            bench.make({**theirs, "metadata": {**theirs["metadata"], "labels": {}, "ownerReferences": other}})
        if len(bench.passes) == 3:
            bench.delete({**theirs, "metadata": {**theirs["metadata"]}})
        if observed.conflicts and len(bench.passes) < 3:
            return Decision(requeue_after=0.0)
        return Decision(create=(Create(theirs, Claim("", 0)),), requeue_after=0.0)

    bench.run(decide, [job], look=4)
    name = f"Job/{child(bench.passes[0])['metadata']['name']}"
    assert [observed.conflicts for observed in bench.passes] == [(), (name,), (), ()]


def test_a_config_map_or_network_policy_of_another_owner_is_a_conflict_at_first_sight(bench: Bench) -> None:
    job = bench.job()
    uid, name = job["metadata"]["uid"], job["metadata"]["name"]
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": names.config_name(name, uid)}}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": names.network_name(name, uid)},
        "spec": {"podSelector": {}},
    }
    bench.make(config)
    bench.make(policy)
    bench.run(lambda *_: Decision(requeue_after=None), [job], look=1)
    seen = bench.passes[0]
    assert (seen.config, seen.network) == (False, False)
    assert seen.conflicts == (
        f"ConfigMap/{config['metadata']['name']}",  # type: ignore[index]
        f"NetworkPolicy/{policy['metadata']['name']}",  # type: ignore[index]
    )


def test_a_secret_gets_a_value_that_nobody_can_guess_and_is_never_read(bench: Bench) -> None:
    job = bench.job()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        secret = child(observed, kind="Secret", apiVersion="v1")
        secret.pop("spec")
        return Decision(create=(Create(secret, Claim("", 0), secret_key="key"),), requeue_after=0.0)

    bench.run(decide, [job], look=2)
    values = [request.body["stringData"]["key"] for request in posts(bench, "secrets")]
    assert [request.status for request in posts(bench, "secrets")] == [201, 409]
    assert len(set(values)) == 2
    assert all(len(value) >= 43 for value in values)
    assert not [r for r in bench.proxy.seen if r.method == "GET" and "/secrets" in r.path]
    assert bench.passes[-1].conflicts == ()


def test_deleting_what_is_gone_or_is_another_one_by_now_is_done(bench: Bench) -> None:
    job = bench.job()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        if len(bench.passes) == 1:
            bench.make(child(observed))
        name = child(observed)["metadata"]["name"]
        another = "00000000-0000-0000-0000-000000000000"
        deletions = (
            Delete("Job", "never-was"),
            Delete("Job", name, uid=another),
            Delete("Service", "nor-this", uid="x"),
        )
        return Decision(delete=deletions, requeue_after=None)

    worker = bench.run(decide, [job], look=1)
    assert [r.status for r in bench.proxy.writes()] == [404, 409, 404]
    assert len(worker.queue) == 0
    assert bench.read(child(bench.passes[0])) is not None


FAULTS = [
    Fault.Conflict,
    Fault.Gone,
    Fault.Throttled,
    Fault.Failed,
    Fault.Unavailable,
    Fault.Denied,
    Fault.Reset,
    Fault.Unsaid,
    Fault.Dropped,
    Fault.Cut,
    Fault.Silent,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize(
    ("method", "part"),
    [("PUT", "/status"), ("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/distillationjobs")],
    ids=lambda value: value.strip("/"),
)
def test_whatever_one_answer_is_the_job_ends_with_its_one_child(
    bench: Bench, fault: Fault, method: str, part: str
) -> None:
    job = bench.job()
    bench.proxy.fail(method, part, fault)
    bench.run(claim_then_create, [job], settled(bench, job))
    assert [r.status for r in posts(bench)].count(201) == 1
    stage = (bench.read(job) or {})["status"]["stages"][0]
    assert stage["childUID"] == (bench.read(child(bench.passes[-1])) or {})["metadata"]["uid"]


def test_a_child_that_is_refused_is_said_once_and_tried_again_later(bench: Bench) -> None:
    job = bench.job()
    bad = {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": []}}}

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        return Decision(create=(Create(child(observed, spec=bad), Claim("", 0)),))

    bench.run(decide, [job], look=2)
    (event,) = events_of(bench, job)
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "ChildRefused", 2)
    assert "spec.template.spec.containers: Required value" in event["message"]
    first, second = bench.passes
    assert first.refused == {}
    (words,) = second.refused.values()
    assert "spec.template.spec.containers: Required value" in words


def test_a_quota_that_is_used_up_says_so_in_the_same_words_each_time_until_it_is_raised(bench: Bench) -> None:
    job = bench.job()
    quota: dict[str, Any] = {"apiVersion": "v1", "kind": "ResourceQuota"}
    quota |= {"metadata": {"name": "jobs", "namespace": NAMESPACE}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    bench.make(quota)
    try:
        bench.patch(
            quota, {"status": {"hard": {"count/jobs.batch": "0"}, "used": {"count/jobs.batch": "0"}}}, "/status"
        )
        bench.run(claim_then_create, [job], lambda _: len(bench.passes) > 2 and bool(bench.passes[-1].refused))
        words = {word for seen in bench.passes for word in seen.refused.values()}
        assert len(words) == 1
        (said,) = words
        assert "exceeded quota: jobs, requested: count/jobs.batch=1, limited: count/jobs.batch=0" in said
        (event,) = [event for event in events_of(bench, job) if event["reason"] == "ChildRefused"]
        assert said in event["message"]
    finally:
        bench.delete(quota)
    bench.run(claim_then_create, [job], settled(bench, job))
    assert bench.read(child(bench.passes[-1])) is not None


def events_of(bench: Bench, job: dict[str, Any]) -> list[dict[str, Any]]:
    answer = bench.server.client.get(f"/api/v1/namespaces/{NAMESPACE}/events").json()
    found: list[dict[str, Any]] = answer["items"]
    return [event for event in found if event["involvedObject"]["uid"] == job["metadata"]["uid"]]


def test_equal_events_are_one_that_counts_and_a_lost_one_harms_nothing(bench: Bench) -> None:
    job = bench.job()
    notes = (EventNote("Normal", "Planned", "it is planned"), EventNote("Warning", "Backoff", "it waits"))
    bench.run(lambda *_: Decision(events=notes, requeue_after=0.0), [job], look=3)
    assert {(e["reason"], e["count"]) for e in events_of(bench, job)} == {("Planned", 3), ("Backoff", 3)}
    bench.proxy.judge = lambda request: Fault.Failed if "/events" in request.path else None
    worker = bench.run(lambda *_: Decision(events=notes, requeue_after=None), [job], look=1)
    assert len(worker.queue) == 0
    assert {(e["reason"], e["count"]) for e in events_of(bench, job)} == {("Planned", 3), ("Backoff", 3)}


def test_an_operator_that_does_not_lead_does_nothing(bench: Bench) -> None:
    job = bench.job()
    bench.run(claim_then_create, [job], look=1, leading=False)
    assert len(bench.passes) == 1
    assert bench.proxy.writes() == []


def test_leadership_that_is_lost_in_the_middle_stops_the_next_write(bench: Bench) -> None:
    job = bench.job()

    def lose(name: str) -> None:
        assert bench.worker is not None
        if name == "after-status":
            bench.worker.leading.clear()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        return Decision(status=claimed(), create=(Create(child(observed), Claim("student", 1)),))

    bench.run(decide, [job], look=1, failpoint=lose)
    assert [r.method for r in bench.proxy.writes()] == ["PUT"]


def test_a_job_that_cannot_be_handled_does_not_stop_the_others(bench: Bench) -> None:
    broken, fine = bench.job(), bench.job()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        if observed.job.name == broken["metadata"]["name"]:
            raise ZeroDivisionError("a bug")
        return claim_then_create(observed, now, settings)

    bench.run(decide, [broken, fine], lambda worker: settled_one(bench, fine))
    assert settled_one(bench, fine)


def settled_one(bench: Bench, job: dict[str, Any]) -> bool:
    stages = (bench.read(job) or {}).get("status", {}).get("stages", [{}])
    return "childUID" in stages[0]


def test_jobs_that_wait_for_peers_are_woken_by_them_and_by_no_one_else(bench: Bench) -> None:
    waiting, peer = bench.job(), bench.job()

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        waits = observed.job.name == waiting["metadata"]["name"]
        return Decision(requeue_after=None, waits_for_peers=waits)

    worker = bench.run(decide, [waiting, peer], look=2)
    assert len(worker.queue) == 0
    worker.job_changed(("elsewhere", "other"))
    assert len(worker.queue) == 1
    worker.job_changed(key_of(peer))
    assert len(worker.queue) == 3


def test_a_job_without_a_runtime_is_woken_when_one_comes(bench: Bench) -> None:
    lost, fine = bench.job(runtimeRef={"name": "later"}), bench.job()
    worker = bench.run(lambda *_: Decision(requeue_after=None), [lost, fine], look=2)
    assert {observed.job.refusal for observed in bench.passes} == {"RuntimeMissing", None}
    worker.runtime_changed()
    assert worker.queue.take() is not None
    assert worker.queue.take() is None


def test_nothing_is_kept_of_a_job_that_is_gone_or_idle(bench: Bench) -> None:
    idle, gone = bench.job(), bench.job(runtimeRef={"name": "later"})
    worker = bench.run(lambda *_: Decision(requeue_after=None), [idle, gone], look=2)
    assert set(worker.memories) == {key_of(gone)}
    bench.delete(gone)

    async def look() -> None:
        cluster = await connect(server=bench.proxy.url)
        worker.cluster = worker.observer.cluster = cluster
        assert await worker.look(key_of(gone)) is None
        await cluster.close()

    asyncio.run(look())
    assert (worker.memories, worker.events_since) == ({}, {})


def reads(bench: Bench) -> list[str]:
    """What was read since this was last asked, but for the job itself."""
    paths = [r.path for r in bench.proxy.seen if r.method == "GET" and "/distillationjobs/" not in r.path]
    bench.proxy.seen.clear()
    return paths


def test_of_an_idle_job_only_the_job_is_read_until_something_happens(bench: Bench) -> None:
    job = bench.job(suspend=True)
    key = key_of(job)
    worker = bench.run(lambda *_: Decision(), [job], look=1)
    assert reads(bench)

    async def looks() -> None:
        worker.cluster = worker.observer.cluster = await connect(server=bench.proxy.url)
        for _ in range(MOST_GLANCES):
            assert await worker.look(key) == IDLE_SECONDS
        assert reads(bench) == []
        assert await worker.look(key) == IDLE_SECONDS  # then comes a whole one
        assert reads(bench)
        await worker.look(key)
        assert reads(bench) == []
        worker.child_changed(key)
        await worker.look(key)
        assert reads(bench)
        await worker.look(key)
        assert reads(bench) == []
        bench.patch(job, {"metadata": {"annotations": {"kubedistill.io/retry": "student/1"}}})
        await worker.look(key)
        assert reads(bench)
        await worker.cluster.close()

    asyncio.run(looks())
    assert len(bench.passes) == 4


def test_an_event_during_a_look_makes_the_next_one_whole(bench: Bench) -> None:
    job = bench.job(suspend=True)

    def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
        assert bench.worker is not None
        if len(bench.passes) == 1:
            bench.worker.child_changed(key_of(job))
        return Decision()

    bench.run(decide, [job], look=2)
    assert len(bench.passes) == 2


@pytest.mark.parametrize("number", range(1, 7))
def test_an_operator_that_dies_between_any_two_writes_is_followed_by_one_that_ends_the_same(
    bench: Bench, number: int
) -> None:
    job = bench.job()
    passed: list[str] = []

    def die(name: str) -> None:
        passed.append(name)
        if len(passed) == number:
            raise Crash

    with pytest.raises(Crash):
        bench.run(claim_then_create, [job], look=4, failpoint=die)
    expected = ["before-status", "after-status", "before-create", "after-create", "before-status", "after-status"]
    assert passed == expected[:number]
    bench.run(claim_then_create, [job], settled(bench, job))
    assert [r.status for r in posts(bench)].count(201) == 1
    assert settled_one(bench, job)


def test_two_operators_at_once_make_one_child(bench: Bench) -> None:
    """Both believe that they lead: safety does not rest on the Lease."""
    job = bench.job()

    async def both() -> None:
        await asyncio.gather(
            asyncio.to_thread(bench.run, claim_then_create, [job], settled(bench, job)),
            asyncio.to_thread(bench.run, claim_then_create, [job], settled(bench, job)),
        )

    asyncio.run(both())
    assert [r.status for r in posts(bench)].count(201) == 1
    assert len([r for r in bench.proxy.writes("/status") if r.status == 200]) == 2


def test_what_lives_of_a_job_is_seen_whole(bench: Bench) -> None:
    job = bench.job()
    other = bench.job()
    status = {**claimed().model_dump(mode="json", by_alias=True, exclude_none=True)}
    status["stages"][0] |= {"key": "k1", "state": "Backoff"}
    status["teachers"] = [{"name": "teacher", "attempt": 1}]
    for one in (job, other):
        bench.patch(one, {"status": status}, "/status")
    bench.run(lambda *_: Decision(requeue_after=None), [job], look=1)
    empty = bench.passes[0]
    assert (empty.children, empty.pods, empty.services, empty.config, empty.network) == (
        (),
        (),
        frozenset(),
        False,
        False,
    )
    assert ("k1", other["metadata"]["uid"]) in {(key, peer.uid) for peer in empty.peers for key in peer.claimed}
    assert job["metadata"]["uid"] not in {peer.uid for peer in empty.peers}
    assert empty.job.spec is not None
    assert empty.job.status.stages[0].key == "k1"
    made = child(empty)
    bench.make(made)
    template = {"metadata": {"labels": made["metadata"]["labels"]}, "spec": made["spec"]["template"]["spec"]}
    bench.make({"apiVersion": "v1", "kind": "Pod", "metadata": made["metadata"], "spec": template["spec"]})
    service = {"ports": [{"port": 80}], "selector": {"a": "b"}}
    bench.make({"apiVersion": "v1", "kind": "Service", "metadata": made["metadata"], "spec": service})
    selector = {"matchLabels": made["metadata"]["labels"]}
    always = {**template, "spec": {**template["spec"], "restartPolicy": "Always"}}
    deployment = {"replicas": 0, "selector": selector, "template": always}
    bench.make({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": made["metadata"], "spec": deployment})
    bench.run(lambda *_: Decision(requeue_after=None), [job], look=1)
    seen = bench.passes[1]
    assert {(c.kind, c.name, c.owner_uid) for c in seen.children} == {
        (kind, made["metadata"]["name"], job["metadata"]["uid"]) for kind in ("Job", "Deployment")
    }
    assert [(p.stage, p.attempt, p.phase) for p in seen.pods] == [("student", 1, "Pending")]
    assert seen.services == {made["metadata"]["name"]}


def written(job: dict[str, Any]) -> int:
    return version_of(job["metadata"]["resourceVersion"])


def test_peers_that_are_asked_for_together_are_listed_once_and_are_as_new_as_what_any_of_them_wrote(
    bench: Bench,
) -> None:
    job = bench.job()

    async def ask() -> tuple[int, int]:
        cluster = await connect(server=bench.proxy.url)
        peers = Peers(cluster)
        together = await asyncio.gather(*(peers.of(NAMESPACE, written(job)) for _ in range(5)))
        first = bench.proxy.count("GET", "/distillationjobs")
        assert all(job["metadata"]["uid"] in {peer.uid for peer in found} for found in together)
        under_way = asyncio.create_task(peers.of(NAMESPACE, written(job)))
        while not peers._running:
            await asyncio.sleep(0)
        later = bench.job()  # the list that is under way need not show it
        afterwards = await asyncio.gather(*(peers.of(NAMESPACE, n * written(later)) for n in (0, 1, 0, 0, 0)))
        assert all(later["metadata"]["uid"] in {peer.uid for peer in found} for found in afterwards)
        await under_way
        assert (peers._next, peers._running, peers._wanted) == ({}, {}, {})
        await cluster.close()
        return first, bench.proxy.count("GET", "/distillationjobs") - first

    first, second = asyncio.run(ask())
    lists = [request for request in bench.proxy.seen if request.path.endswith("/distillationjobs")]
    refused = [request for request in lists if request.status == 400]
    assert len(lists) == first + second
    assert (first - len(refused), second) == (1, 2)
    assert all(request.query.get("fieldSelector") == UNFINISHED for request in refused)


def test_peers_are_the_same_where_the_server_cannot_choose_by_fields(bench: Bench) -> None:
    done, suspended, awake = bench.job(), bench.job(suspend=True), bench.job()
    over = {"completionTime": "2026-03-01T10:00:00Z"}
    conditions = [
        {"type": "Complete", "status": "True", "lastTransitionTime": "2026-03-01T10:00:00Z", "reason": "Succeeded"}
    ]
    bench.patch(done, {"status": {**over, "conditions": conditions}}, "/status")

    async def ask() -> list[set[str]]:
        cluster = await connect(server=bench.proxy.url)
        found = [{peer.uid for peer in await Peers(cluster).of(NAMESPACE, 0)}]
        bench.proxy.judge = lambda request: Fault.Malformed if "fieldSelector" in request.query else None
        asked = Peers(cluster)
        found += [{peer.uid for peer in await asked.of(NAMESPACE, 0)} for _ in range(2)]
        await cluster.close()
        return found

    by_fields, whole, again = asyncio.run(ask())
    assert by_fields == whole == again
    assert awake["metadata"]["uid"] in whole
    assert not {done["metadata"]["uid"], suspended["metadata"]["uid"]} & whole
    narrow = [request for request in bench.proxy.seen if request.fault is Fault.Malformed]
    assert len(narrow) == 1  # it does not ask again for what the server cannot do


def test_a_namespace_must_be_one_that_the_runtime_selects(bench: Bench) -> None:
    document = shipped_runtime("cpu").model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    document |= {"apiVersion": "kubedistill.io/v1alpha1", "kind": "ClusterDistillationRuntime"}
    document["metadata"] = {"name": "picky"}
    chosen = {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}
    document["spec"] = {**document["spec"], "allowed": {"namespaces": chosen}}
    bench.make(document)
    job = bench.job(runtimeRef={"name": "picky"})
    bench.run(lambda *_: Decision(requeue_after=None), [job], look=1)
    assert bench.passes[0].job.refusal == "NotAllowed"
    assert bench.proxy.count("GET", f"/api/v1/namespaces/{NAMESPACE}") >= 1
