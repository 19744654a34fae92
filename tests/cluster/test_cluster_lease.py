"""Leadership by a Lease, on a real API server that is killed and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_faults import ApiFaults, Fault, api_faults
from cluster_server import Server
from kd_operator.cluster.client import Cluster, connect
from kd_operator.cluster.lease import Elector, Timing
from kit import crash, revive

pytestmark = pytest.mark.cluster

QUICK = Timing(duration=3.0, renew=0.6, retry=0.2, give_up=2.0)
PATH = "/apis/coordination.k8s.io/v1/namespaces/default/leases"


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiFaults]:
    with api_faults(Path(server.environment["KUBECONFIG"]), tmp_path_factory.mktemp("proxy")) as ready:
        yield ready


@pytest.fixture(autouse=True)
def fresh(server: Server, proxy: ApiFaults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", proxy.environment["KUBECONFIG"])
    proxy.judge = lambda request: None
    server.client.delete(f"{PATH}/kd")


def elector(cluster: Cluster, identity: str, timing: Timing = QUICK, *, ahead: timedelta = timedelta()) -> Elector:
    return Elector(cluster, "default", "kd", identity, lambda: datetime.now(UTC) + ahead, time.monotonic, timing)


@asynccontextmanager
async def running(*electors: Elector) -> Any:
    """Electors that compete, and end without letting go (as if killed) when the block ends."""
    tasks = [asyncio.create_task(one.run()) for one in electors]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def run(scenario: Callable[[Cluster, Cluster], Awaitable[None]], proxy: ApiFaults) -> None:
    async def ran() -> None:
        one, two = [await connect(server=proxy.url, request_seconds=1.0) for _ in range(2)]
        try:
            await scenario(one, two)
        finally:
            await one.close()
            await two.close()

    asyncio.run(ran())


def spec(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.client.get(f"{PATH}/kd").json()["spec"]
    return found


def test_one_of_two_leads_and_the_other_takes_over_when_it_lets_go(server: Server, proxy: ApiFaults) -> None:
    async def scenario(one: Cluster, two: Cluster) -> None:
        first, second = elector(one, "a"), elector(two, "b", Timing(duration=60, renew=0.6, retry=0.1, give_up=40))
        async with running(first):
            await until(first.leading.is_set)
            assert spec(server)["holderIdentity"] == "a"
            async with running(second):
                await until(lambda: proxy.count("GET", "leases") > 10)
                assert not second.leading.is_set()
                renewed = spec(server)["renewTime"]
                await until(lambda: spec(server)["renewTime"] != renewed)
        async with running(second):
            await first.release()
            assert not first.leading.is_set()
            await until(second.leading.is_set)
        assert (spec(server)["holderIdentity"], spec(server)["leaseTransitions"]) == ("b", 1)
        assert spec(server)["leaseDurationSeconds"] == 60

    run(scenario, proxy)


def test_a_holder_that_vanished_is_followed_only_after_the_leases_time(server: Server, proxy: ApiFaults) -> None:
    """And nobody's clock is compared with another's: the follower's is an hour ahead."""

    async def scenario(one: Cluster, two: Cluster) -> None:
        first, second = elector(one, "a"), elector(two, "b", ahead=timedelta(hours=1))
        async with running(first):
            await until(first.leading.is_set)
        vanished = time.monotonic()
        async with running(second):
            await until(second.leading.is_set)
        assert time.monotonic() - vanished >= QUICK.duration

    run(scenario, proxy)


def test_two_that_begin_together_never_both_lead(server: Server, proxy: ApiFaults) -> None:
    async def scenario(one: Cluster, two: Cluster) -> None:
        for number in range(5):
            first, second = elector(one, f"a{number}"), elector(two, f"b{number}")
            async with running(first, second):
                await until(lambda a=first, b=second: a.leading.is_set() or b.leading.is_set())
                seen = proxy.count("GET", "leases")
                await until(lambda seen=seen: proxy.count("GET", "leases") > seen + 3)
                assert first.leading.is_set() != second.leading.is_set()
                holder = first if first.leading.is_set() else second
                assert spec(server)["holderIdentity"] == holder.identity
                await holder.release()
            server.client.delete(f"{PATH}/kd")

    run(scenario, proxy)


@pytest.mark.parametrize("fault", [Fault.Unavailable, Fault.Throttled, Fault.Reset], ids=lambda fault: fault.name)
def test_a_leader_that_cannot_renew_gives_up_before_another_one_follows(proxy: ApiFaults, fault: Fault) -> None:
    async def scenario(one: Cluster, two: Cluster) -> None:
        first, second = elector(one, "a"), elector(two, "b")
        both: list[bool] = []
        second.changed = lambda leads: both.append(leads and first.leading.is_set())
        async with running(first):
            await until(first.leading.is_set)
            async with running(second):
                proxy.judge = lambda request: (
                    fault if request.body and request.body["spec"]["holderIdentity"] == "a" else None
                )
                await until(second.leading.is_set)
                assert both == [False]
                proxy.judge = lambda request: None
                await second.release()
                await until(lambda: first.leading.is_set() or second.leading.is_set())

    run(scenario, proxy)


def test_a_leader_whose_renewals_are_never_answered_gives_up(proxy: ApiFaults) -> None:
    async def scenario(one: Cluster, two: Cluster) -> None:
        first = elector(one, "a")
        async with running(first):
            await until(first.leading.is_set)
            proxy.judge = lambda request: Fault.Silent if request.method == "PUT" else None
            await until(lambda: not first.leading.is_set())

    run(scenario, proxy)


@pytest.mark.parametrize("fault", [Fault.Unsaid, Fault.Dropped, Fault.Conflict, Fault.Throttled, Fault.Gone])
def test_one_bad_answer_does_not_end_the_competition(proxy: ApiFaults, fault: Fault) -> None:
    async def scenario(one: Cluster, two: Cluster) -> None:
        first = elector(one, "a")
        proxy.fail("POST", "leases", fault)
        async with running(first) as (task,):
            await until(first.leading.is_set)
            proxy.fail("PUT", "leases", fault)
            seen = proxy.count("PUT", "leases")
            await until(lambda: proxy.count("PUT", "leases") > seen + 1 and first.leading.is_set())
            assert not task.done()

    run(scenario, proxy)


def test_both_survive_an_api_server_that_is_killed_and_comes_back(server: Server, proxy: ApiFaults) -> None:
    async def scenario(one: Cluster, two: Cluster) -> None:
        first, second = elector(one, "a"), elector(two, "b")
        async with running(first, second) as tasks:
            await until(lambda: first.leading.is_set() or second.leading.is_set())
            await asyncio.to_thread(crash, server.environment, "kube-apiserver")
            try:
                await until(lambda: not first.leading.is_set() and not second.leading.is_set())
            finally:
                await asyncio.to_thread(revive, server.environment, "kube-apiserver")
            await until(lambda: first.leading.is_set() or second.leading.is_set())
            assert first.leading.is_set() != second.leading.is_set()
            assert not any(task.done() for task in tasks)

    run(scenario, proxy)


def test_letting_go_of_an_api_server_that_is_gone_is_no_failure(proxy: ApiFaults) -> None:
    async def scenario(one: Cluster, two: Cluster) -> None:
        first = elector(one, "a")
        async with running(first):
            await until(first.leading.is_set)
        proxy.judge = lambda request: Fault.Reset
        await first.release()
        assert not first.leading.is_set()

    run(scenario, proxy)
