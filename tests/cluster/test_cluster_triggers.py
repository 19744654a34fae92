"""Watches on a real API server: what they tell of, and that nothing that happens to them stops them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_faults import ApiFaults, Fault, api_faults
from cluster_server import Server
from kd_operator import triggers
from kd_operator.queue import Haste
from kd_operator.triggers import Triggers
from kit import crash, revive

from kd_runtime.api.labels import JOB_LABEL, UID_LABEL
from kd_runtime.api.parse import load_documents

pytestmark = pytest.mark.cluster

SMALLEST = Path(__file__).parents[1] / "api" / "corpus" / "good" / "smallest.yaml"
POD = {"restartPolicy": "Never", "containers": [{"name": "stage", "image": "none"}]}


@dataclass
class Told:
    """What the watches told."""

    jobs: list[tuple[str, str]] = field(default_factory=list)
    children: list[tuple[str, str]] = field(default_factory=list)
    makers: set[tuple[str, str]] = field(default_factory=set)
    """Of which a child makes pods."""
    runtimes: list[bool] = field(default_factory=list)

    def child(self, key: tuple[str, str], haste: Haste, deployment: str, makes_pods: bool) -> None:
        self.children.append(key)
        self.makers |= {key} if makes_pods else set()


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiFaults]:
    with api_faults(Path(server.environment["KUBECONFIG"]), tmp_path_factory.mktemp("proxy")) as ready:
        yield ready


@pytest.fixture(autouse=True)
def fresh(proxy: ApiFaults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", proxy.environment["KUBECONFIG"])
    monkeypatch.setattr(triggers, "RESTART_SECONDS", 0.1)
    proxy.judge = lambda request: None
    proxy._plan.clear()
    proxy.seen.clear()


@asynccontextmanager
async def watching(proxy: ApiFaults, *namespaces: str) -> AsyncIterator[Told]:
    """Watches that have begun."""
    told = Told()
    watched = Triggers(
        lambda key, version: told.jobs.append(key),
        told.child,
        lambda: told.runtimes.append(True),
        namespaces,
    )
    watched.start()
    try:
        await until(lambda: watches(proxy) >= 5)
        yield told
    finally:
        await watched.stop()
        assert watched._thread is not None
        assert not watched._thread.is_alive()


def watches(proxy: ApiFaults, part: str = "") -> int:
    return sum(1 for request in list(proxy.seen) if request.watches and part in request.path)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def make(server: Server, kind: str, version: str, name: str, namespace: str = "default", **more: Any) -> None:
    labels = more.pop("labels", {})
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    made = server.create({"apiVersion": version, "kind": kind, "metadata": metadata, **more}, dry_run=False)
    assert made.status_code == 201, made.text


def make_job(server: Server, name: str, namespace: str = "default") -> None:
    document = load_documents(SMALLEST)[0]
    make(server, "DistillationJob", document["apiVersion"], name, namespace, spec=document["spec"])


def test_jobs_runtimes_and_labelled_children_are_told_of_and_nothing_is_written(
    server: Server, proxy: ApiFaults
) -> None:

    def of(job: str) -> dict[str, str]:
        return {JOB_LABEL: job, UID_LABEL: "u1"}

    async def scenario() -> None:
        async with watching(proxy) as told:
            make(server, "Pod", "v1", "foreign", spec=POD, labels={JOB_LABEL: "foreign"})
            make_job(server, "told")
            await until(lambda: ("default", "told") in told.jobs)
            make(server, "Pod", "v1", "pod", spec=POD, labels=of("by-pod"))
            await until(lambda: ("default", "by-pod") in told.children)
            template = {"metadata": {"labels": {"any": "thing"}}, "spec": POD}
            make(server, "Job", "batch/v1", "job", labels=of("by-job"), spec={"suspend": True, "template": template})
            await until(lambda: ("default", "by-job") in told.children)
            always = {**template, "spec": {**POD, "restartPolicy": "Always"}}
            deployment = {"replicas": 0, "selector": {"matchLabels": {"any": "thing"}}, "template": always}
            make(server, "Deployment", "apps/v1", "deployment", labels=of("by-deployment"), spec=deployment)
            await until(lambda: ("default", "by-deployment") in told.children)
            await asyncio.to_thread(server.kubectl, "delete", "deployment", "deployment")
            told.children.clear()
            await asyncio.to_thread(server.kubectl, "delete", "pod", "pod", "--grace-period=0", "--force")
            await until(lambda: ("default", "by-pod") in told.children)
            make(server, "ClusterDistillationRuntime", "kubedistill.io/v1alpha1", "told", spec={})
            await until(lambda: told.runtimes != [])
            assert ("default", "foreign") not in told.children
            assert told.makers == {("default", "by-job"), ("default", "by-deployment")}

    asyncio.run(scenario())
    assert proxy.writes() == []
    for part in ("/pods", "/jobs", "/deployments"):
        asked = [r for r in proxy.seen if r.path.endswith(part)]
        assert asked
        assert {r.query["labelSelector"] for r in asked} == {UID_LABEL}


def test_what_was_there_before_the_operator_is_told_of(server: Server, proxy: ApiFaults) -> None:
    for number in range(3):
        make_job(server, f"before-{number}")

    async def scenario() -> None:
        async with watching(proxy) as told:
            await until(lambda: {("default", f"before-{n}") for n in range(3)} <= set(told.jobs))

    asyncio.run(scenario())


def test_only_the_namespaces_that_are_named_are_watched(server: Server, proxy: ApiFaults) -> None:
    for name in ("here", "there"):
        made = server.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, dry_run=False)
        assert made.status_code == 201

    async def scenario() -> None:
        async with watching(proxy, "here") as told:
            make_job(server, "other", "there")
            make_job(server, "one", "here")
            await until(lambda: ("here", "one") in told.jobs)
            assert set(told.jobs) == {("here", "one")}

    asyncio.run(scenario())
    kinds = {r.path.split("/")[-1]: r.path for r in proxy.seen if r.watches}
    assert all("/namespaces/here/" in path for kind, path in kinds.items() if kind != "clusterdistillationruntimes")


@pytest.mark.parametrize(
    "fault",
    [Fault.Gone, Fault.Failed, Fault.Unavailable, Fault.Throttled, Fault.Denied, Fault.Unauthorized, Fault.Reset],
    ids=lambda fault: fault.name,
)
def test_a_watch_that_goes_wrong_begins_anew(server: Server, proxy: ApiFaults, fault: Fault) -> None:
    name = f"anew-{fault.name.lower()}"
    proxy.fail("WATCH", "/distillationjobs", fault)

    async def scenario() -> None:
        async with watching(proxy) as told:
            await until(lambda: watches(proxy, "/distillationjobs") >= 2)
            make_job(server, name)
            await until(lambda: ("default", name) in told.jobs)

    asyncio.run(scenario())


def test_a_watch_that_falls_silent_is_replaced(
    server: Server, proxy: ApiFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "SILENCE_SECONDS", 1.0)
    proxy.fail("WATCH", "/distillationjobs", Fault.Silent)

    async def scenario() -> None:
        async with watching(proxy) as told:
            make_job(server, "silence")
            await until(lambda: ("default", "silence") in told.jobs)
            assert watches(proxy, "/distillationjobs") >= 2

    asyncio.run(scenario())


def answers(server: Server) -> bool:
    try:
        return server.client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_watches_go_on_after_the_api_server_was_killed(server: Server, proxy: ApiFaults) -> None:
    async def scenario() -> None:
        async with watching(proxy) as told:
            await asyncio.to_thread(crash, server.environment, "kube-apiserver")
            seen = len(proxy.seen)
            try:
                await until(lambda: len(proxy.seen) > seen)  # the watches ask again, in vain
            finally:
                await asyncio.to_thread(revive, server.environment, "kube-apiserver")
            await until(lambda: answers(server))
            make_job(server, "revived")
            await until(lambda: ("default", "revived") in told.jobs)

    asyncio.run(scenario())
