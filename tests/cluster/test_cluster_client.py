"""The operator's client against a real API server, with faults in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from api_faults import ApiFaults, Fault, api_faults
from cluster_server import Server
from fake_kubelet import Api
from kd_operator.cluster import errors
from kd_operator.cluster.client import Cluster, connect
from kd_operator.observe import Peers

from kd_runtime.api.parse import load_documents

pytestmark = pytest.mark.cluster
SMALLEST = Path(__file__).parents[1] / "api" / "corpus" / "good" / "smallest.yaml"
T = TypeVar("T")


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiFaults]:
    with api_faults(Path(server.environment["KUBECONFIG"]), tmp_path_factory.mktemp("proxy")) as ready:
        yield ready


@pytest.fixture
def ask(proxy: ApiFaults, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Cluster], Awaitable[Any]]], Any]:
    """Ask the API server something, through the proxy."""
    monkeypatch.setattr(proxy, "judge", lambda request: None)

    def run(question: Callable[[Cluster], Awaitable[Any]], **options: Any) -> Any:
        async def asked() -> Any:
            cluster = await connect(server=proxy.url, **options)
            try:
                return await question(cluster)
            finally:
                await cluster.close()

        return asyncio.run(asked())

    monkeypatch.setenv("KUBECONFIG", proxy.environment["KUBECONFIG"])
    proxy.seen.clear()
    return run


def config_map(name: str, namespace: str = "default", **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "1"}}


def job(name: str) -> dict[str, Any]:
    document = load_documents(SMALLEST)[0]
    return {**document, "metadata": {"name": name, "namespace": "default"}}


Ask = Callable[..., Any]


def test_objects_are_created_read_listed_by_label_and_deleted(ask: Ask) -> None:
    async def life(cluster: Cluster) -> None:
        made = await cluster.create(config_map("life", owner="me"))
        await cluster.create(config_map("other", owner="you"))
        assert (await cluster.get("ConfigMap", "life", "default"))["metadata"]["uid"] == made["metadata"]["uid"]
        assert [m["metadata"]["name"] for m in await cluster.find("ConfigMap", "default", labels="owner=me")] == [
            "life"
        ]
        assert {"life", "other"} <= {m["metadata"]["name"] for m in await cluster.find("ConfigMap")}
        await cluster.delete("ConfigMap", "life", "default", uid=made["metadata"]["uid"])
        with pytest.raises(errors.NotFound):
            await cluster.get("ConfigMap", "life", "default")
        with pytest.raises(errors.NotFound):
            await cluster.delete("ConfigMap", "life", "default")

    ask(life)


def test_what_is_owned_goes_after_its_owner(ask: Ask, proxy: ApiFaults) -> None:
    async def delete(cluster: Cluster) -> None:
        made = await cluster.create(config_map("owner"))
        await cluster.delete("ConfigMap", "owner", "default", uid=made["metadata"]["uid"], grace_seconds=0)

    ask(delete)
    assert proxy.writes()[-1].body == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "preconditions": {"uid": proxy.writes()[-1].body["preconditions"]["uid"]},
        "gracePeriodSeconds": 0,
    }


def test_an_object_of_the_same_name_and_another_uid_is_not_deleted(ask: Ask) -> None:
    async def delete(cluster: Cluster) -> None:
        await cluster.create(config_map("same"))
        with pytest.raises(errors.Conflict):
            await cluster.delete("ConfigMap", "same", "default", uid="00000000-0000-0000-0000-000000000000")
        await cluster.get("ConfigMap", "same", "default")

    ask(delete)


def test_lists_come_whole_and_from_the_memory_of_the_server(ask: Ask, proxy: ApiFaults) -> None:
    async def lists(cluster: Cluster) -> list[str]:
        for number in range(8):
            await cluster.create(config_map(f"listed-{number}", listed="yes"))
        return [m["metadata"]["name"] for m in await cluster.find("ConfigMap", "default", labels="listed=yes")]

    assert sorted(ask(lists)) == [f"listed-{number}" for number in range(8)]
    queries = [request.query for request in proxy.seen if request.method == "GET"]
    assert queries == [{"labelSelector": "listed=yes"}]  # with a limit it would read the whole namespace from etcd


def test_a_list_is_at_least_as_new_as_it_is_asked_to_be(ask: Ask, proxy: ApiFaults) -> None:
    async def lists(cluster: Cluster) -> list[str]:
        made = await cluster.create(config_map("newest", newest="yes"))
        version = int(made["metadata"]["resourceVersion"])
        found = await cluster.find("ConfigMap", "default", labels="newest=yes", at_least=version)
        return [one["metadata"]["name"] for one in found]

    assert ask(lists) == ["newest"]
    (query,) = [request.query for request in proxy.seen if request.method == "GET"]
    assert query["resourceVersionMatch"] == "NotOlderThan"


def test_a_version_that_the_server_does_not_reach_is_not_insisted_on(
    ask: Ask, proxy: ApiFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_operator.cluster.client.READ_TRIES", 1)  # each takes the server three seconds

    async def lists(cluster: Cluster) -> tuple[int, int]:
        restores: list[None] = []
        cluster.when_restored.append(lambda: restores.append(None))
        await cluster.create(config_map("restored", restored="yes"))
        found = await cluster.find("ConfigMap", "default", labels="restored=yes", at_least=10**15)
        return len(found), len(restores)

    assert ask(lists) == (1, 1)
    assert proxy.count("GET") == 2


def test_after_etcd_was_restored_peers_are_listed_at_once_again(
    ask: Ask, proxy: ApiFaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(lambda cluster: cluster.find("DistillationJob", "default"))  # tried until the new CRD is served
    monkeypatch.setattr("kd_operator.cluster.client.READ_TRIES", 1)

    async def lists(cluster: Cluster) -> None:
        peers = Peers(cluster)
        peers.told(str(10**15))
        for _ in range(3):
            await peers.of("default", 1)

    ask(lists)
    asked = [request.query.get("resourceVersion") for request in proxy.seen if request.method == "GET"]
    assert asked[-4:] == [str(10**15), None, "1", "1"]


def test_the_status_is_written_over_the_very_version_that_was_read(ask: Ask) -> None:
    async def write(cluster: Cluster) -> None:
        made = await cluster.create(job("status"))
        written = await cluster.put_status(made, {"phase": "Planning"})
        assert written["status"] == {"phase": "Planning"}
        assert written["spec"] == made["spec"]
        assert written["metadata"]["generation"] == 1
        with pytest.raises(errors.Conflict) as stale:
            await cluster.put_status(made, {"phase": "Running"})
        assert stale.value.reason == "Conflict"
        assert (await cluster.get("DistillationJob", "status", "default"))["status"] == {"phase": "Planning"}

    ask(write)


def test_the_status_of_a_job_of_the_same_name_is_not_written(ask: Ask) -> None:
    async def write(cluster: Cluster) -> None:
        first = await cluster.create(job("again"))
        await cluster.delete("DistillationJob", "again", "default")
        second = await cluster.create(job("again"))
        mixed = {**first, "metadata": {**first["metadata"], "resourceVersion": second["metadata"]["resourceVersion"]}}
        with pytest.raises(errors.Conflict):
            await cluster.put_status(mixed, {"phase": "Running"})

    ask(write)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.Conflict, errors.Conflict),
        (Fault.Gone, errors.Gone),
        (Fault.Throttled, errors.TooManyRequests),
        (Fault.Failed, errors.ServerError),
        (Fault.Unavailable, errors.ServerError),
        (Fault.Unsaid, errors.ServerError),
        (Fault.Denied, errors.Denied),
        (Fault.Unauthorized, errors.Denied),
        (Fault.Reset, errors.Unreachable),
        (Fault.Dropped, errors.Unreachable),
        (Fault.Cut, errors.Unreachable),
        (Fault.Silent, errors.Unreachable),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_a_write_is_sent_once_whatever_comes_of_it(
    ask: Ask, proxy: ApiFaults, fault: Fault, error: type[errors.ApiError]
) -> None:
    proxy.fail("POST", "configmaps", fault)

    async def create(cluster: Cluster) -> None:
        with pytest.raises(error):
            await cluster.create(config_map(f"once-{fault.name.lower()}"))

    ask(create, request_seconds=2.0)
    assert [str(request) for request in proxy.seen] == ["POST /api/v1/namespaces/default/configmaps"]


@pytest.mark.parametrize("fault", [Fault.Throttled, Fault.Failed, Fault.Unavailable, Fault.Reset, Fault.Cut])
def test_a_read_is_tried_again(ask: Ask, proxy: ApiFaults, fault: Fault) -> None:
    proxy.fail("GET", "kube-root-ca.crt", fault)
    found = ask(lambda cluster: cluster.get("ConfigMap", "kube-root-ca.crt", "default"))
    assert found["metadata"]["name"] == "kube-root-ca.crt"
    assert proxy.count("GET") == 2


def test_a_read_is_not_tried_for_ever_nor_where_it_cannot_help(ask: Ask, proxy: ApiFaults) -> None:
    for fault, error, times in (
        (Fault.Unavailable, errors.ServerError, 3),
        (Fault.Denied, errors.Denied, 1),
        (Fault.Gone, errors.Gone, 1),
    ):
        proxy.seen.clear()
        proxy.judge = lambda request, fault=fault: fault
        with pytest.raises(error):
            ask(lambda cluster: cluster.get("ConfigMap", "kube-root-ca.crt", "default"))
        assert proxy.count("GET") == times


def test_a_server_that_asks_for_patience_is_told_of(ask: Ask, proxy: ApiFaults) -> None:
    proxy.fail("POST", "configmaps", Fault.Throttled)
    with pytest.raises(errors.TooManyRequests) as throttled:
        ask(lambda cluster: cluster.create(config_map("patience")))
    assert throttled.value.retry_after == 1.0


def test_a_refused_token_is_read_again(
    ask: Ask, proxy: ApiFaults, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when kubelet has replaced it: the request that was refused is not repeated, the next one has the new token."""
    good = Path(proxy.environment["KUBECONFIG"]).read_text()
    changing = tmp_path / "kubeconfig"
    token = next(line.split(": ", 1)[1] for line in good.splitlines() if "token:" in line)
    changing.write_text(good.replace(token, "expired"))
    monkeypatch.setenv("KUBECONFIG", str(changing))

    async def read(cluster: Cluster) -> None:
        with pytest.raises(errors.Denied):
            await cluster.find("ConfigMap", "default")
        changing.write_text(good)
        assert await cluster.find("ConfigMap", "default")

    ask(read)


def test_a_server_that_is_down_is_unreachable(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(cluster: Cluster) -> None:
        cluster.account.client.configuration.host = "http://127.0.0.1:1"
        with pytest.raises(errors.Unreachable):
            await cluster.get("ConfigMap", "kube-root-ca.crt", "default")
        with pytest.raises(errors.Unreachable):
            await cluster.create(config_map("nowhere"))

    ask(read)


def test_an_object_that_is_not_valid_is_refused_in_the_servers_words(ask: Ask) -> None:
    async def create(cluster: Cluster) -> None:
        with pytest.raises(errors.Refused) as refused:
            await cluster.create({**job("bad"), "spec": {}})
        assert refused.value.status == 422
        assert "spec.student: Required value" in str(refused.value)

    ask(create)


def test_every_request_is_told_of_in_kubernetes_words(ask: Ask, proxy: ApiFaults) -> None:
    told: list[tuple[str, int]] = []

    async def life(cluster: Cluster) -> None:
        made = await cluster.create(config_map("told"))
        await cluster.get("ConfigMap", "told", "default")
        await cluster.find("ConfigMap", "default")
        await cluster.replace(made)
        await cluster.delete("ConfigMap", "told", "default")
        proxy.fail("POST", "configmaps", Fault.Reset)
        with pytest.raises(errors.Unreachable):
            await cluster.create(config_map("told"))

    ask(life, answered=lambda verb, code: told.append((verb, code)))
    assert told == [("create", 201), ("get", 200), ("list", 200), ("update", 200), ("delete", 200), ("create", 0)]


def test_kinds_are_known_once_their_crds_are_there(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_operator.cluster.kinds import KINDS, Kind

    monkeypatch.setitem(KINDS, "Later", Kind("later.example.com/v1", "laters"))
    assert ask(lambda cluster: cluster.serves("DistillationJob")) is True
    assert ask(lambda cluster: cluster.serves("Pod")) is True
    assert ask(lambda cluster: cluster.serves("Later")) is False


def test_an_error_that_is_no_status_of_kubernetes_is_still_one() -> None:
    from kd_operator.cluster.client import _failure

    page = _failure("get /x", 502, b"<html>Bad Gateway</html>", None)
    assert isinstance(page, errors.ServerError)
    assert "Bad Gateway" in str(page)
    assert isinstance(_failure("get /x", 404, json.dumps(["odd"]).encode(), None), errors.NotFound)


def test_what_a_test_watches_has_no_gap_where_the_server_ends_the_watch(server: Server) -> None:
    """Of `fake_kubelet.Api`, by which whole runs are recorded: watches of a second each, and every object is told of once."""
    names = [f"watched-{number}" for number in range(12)]

    async def seen() -> list[str]:
        async with Api(Path(server.environment["KUBECONFIG"])) as api:
            path = "/api/v1/namespaces/default/configmaps"

            async def make() -> None:
                for name in names:
                    status, _ = await api.ask("POST", path, config_map(name, watched="yes"))
                    assert status == 201
                    await asyncio.sleep(0.3)

            making, told = asyncio.create_task(make()), []
            async for event in api.watch(path, "watched=yes", seconds=1):
                told.append(event["object"]["metadata"]["name"])
                if told[-1] == names[-1]:
                    await making
                    return told
        raise AssertionError("the watch has ended")

    assert asyncio.run(asyncio.wait_for(seen(), 60)) == names
