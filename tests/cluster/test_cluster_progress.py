"""Who may post progress, said by a real API server: its own tokens, bound to real pods that real Jobs made."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from cluster_server import CORPUS, Server
from joserfc import jwt
from joserfc.jwk import ECKey
from kd_operator import names
from kd_operator.cluster.client import connect
from kd_operator.progress.board import Board
from kd_operator.progress.limits import Rate
from kd_operator.progress.server import BODY_BYTES, Limits, add_routes

from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, STAGE_LABEL, UID_LABEL
from kd_runtime.api.parse import load_documents
from kd_runtime.telemetry.progress import Progress, Reporter

pytestmark = pytest.mark.cluster

NAMESPACE = "team-a"
GOOD = asdict(Progress("student", 0, 3, 12, "steps", 100, 10.0, 2.5))


@dataclass(frozen=True)
class Run:
    """A DistillationJob and the pods of its one stage."""

    name: str
    uid: str
    pods: tuple[dict[str, Any], ...]

    @property
    def audience(self) -> str:
        return names.audience(self.uid)

    @property
    def path(self) -> str:
        return f"/v1/progress/{NAMESPACE}/{self.name}"


@dataclass(frozen=True)
class Place:
    """A namespace with two jobs at work."""

    server: Server
    mine: Run
    other: Run

    def token(self, pod: dict[str, Any] | None, audience: str) -> str:
        """A token as kubelet projects it into ``pod``; None: bound to no pod."""
        spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 3600}
        if pod is not None:
            bound = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
            spec["boundObjectRef"] = bound
        url = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default/token"
        answer = self.server.client.post(url, json={"spec": spec})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["status"]["token"])


def manifest(api_version: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE, **more.pop("metadata", {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **more}


def created(server: Server, document: dict[str, Any]) -> dict[str, Any]:
    answer = server.create(document, dry_run=False)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def until(what: str, look: Callable[[], Any]) -> Any:
    """What ``look`` finds, as soon as it finds it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"after 60 s there is still no {what}")


def pod_spec() -> dict[str, Any]:
    return {"restartPolicy": "Never", "containers": [{"name": "stage", "image": "nothing.invalid/none"}]}


def labels_of(uid: str) -> dict[str, str]:
    return {
        UID_LABEL: uid,
        STAGE_LABEL: "student",
        ATTEMPT_LABEL: "1",
        COMPONENT_LABEL: "trainer",
    }


def child(name: str, uid: str, owner: dict[str, Any] | None) -> dict[str, Any]:
    """A Job as a stage's main child is."""
    template = {"metadata": {"labels": labels_of(uid)}, "spec": pod_spec()}
    spec = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimit": 6, "template": template}
    owners = [owner] if owner else []
    return manifest("batch/v1", "Job", name, metadata={"labels": labels_of(uid), "ownerReferences": owners}, spec=spec)


def pods_of(server: Server, job: dict[str, Any], count: int = 2) -> tuple[dict[str, Any], ...]:
    name = job["metadata"]["name"]

    def look() -> tuple[dict[str, Any], ...] | None:
        listed = server.client.get(f"/api/v1/namespaces/{NAMESPACE}/pods", params={"labelSelector": f"job-name={name}"})
        found = listed.json()["items"]
        return tuple(sorted(found, key=lambda pod: pod["metadata"]["name"])) if len(found) == count else None

    found: tuple[dict[str, Any], ...] = until(f"pod of Job {name}", look)
    return found


def owner_of(distillation: dict[str, Any]) -> dict[str, Any]:
    metadata = distillation["metadata"]
    return {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }


def start(server: Server, name: str) -> Run:
    document = deepcopy(load_documents(CORPUS / "good" / "smallest.yaml")[0])
    document["metadata"] = {"name": name, "namespace": NAMESPACE}
    distillation = created(server, document)
    uid = distillation["metadata"]["uid"]
    job = created(server, child(names.child_name(name, "student", uid, 1), uid, owner_of(distillation)))
    return Run(name, uid, pods_of(server, job))


@pytest.fixture(scope="module")
def place(server: Server) -> Place:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    assert server.create(namespace, dry_run=False).status_code == 201
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    until("ServiceAccount", lambda: server.client.get(account).status_code == 200)
    return Place(server, start(server, "tutor"), start(server, "other"))


@pytest.fixture(autouse=True)
def kubeconfig(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", server.environment["KUBECONFIG"])


@dataclass(frozen=True)
class Answer:
    status: int
    line: str
    headers: dict[str, str]
    board: Board


def post(path: str, *tokens: str, body: bytes | None = None, limits: Limits | None = None) -> list[Answer]:
    """Post with each token in turn to an operator that knows none of them yet."""

    async def main() -> list[Answer]:
        cluster, board, app = await connect(), Board(), web.Application()
        add_routes(app, cluster, board, limits)
        answers = []
        try:
            async with TestServer(app) as server, TestClient(server) as client:
                for token in tokens:
                    headers = {"Authorization": f"Bearer {token}"}
                    answer = await client.post(path, data=body or json.dumps(GOOD), headers=headers)
                    answers.append(Answer(answer.status, await answer.text(), dict(answer.headers), board))
        finally:
            await cluster.close()
        return answers

    return asyncio.run(main())


def refusal(path: str, token: str, status: int) -> str:
    """The line with which the token is refused, with that status."""
    (answer,) = post(path, token)
    assert answer.status == status, answer.line
    assert len(answer.board) == 0
    return answer.line


def test_each_pod_of_the_job_posts_under_its_own_index(place: Place) -> None:
    mine = place.mine
    answers = post(mine.path, *(place.token(pod, mine.audience) for pod in mine.pods))
    assert [answer.status for answer in answers] == [204, 204], answers
    progress = answers[0].board.stage_progress(mine.uid)["student"]
    assert (progress.completed, progress.total, progress.percent, progress.loss) == (3, 12, 25, 2.5)


def test_what_a_stage_reports_with_its_projected_token_is_on_the_board(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text(place.token(place.mine.pods[1], place.mine.audience))
    monkeypatch.setenv("KD_PROGRESS_TOKEN_FILE", str(token))

    def report(url: str) -> None:
        reporter = Reporter("student", 1, url=url)
        reporter.update(1, 12, "steps")
        reporter.update(12, 12, "steps", tokens=100, loss=0.5)
        reporter.close()

    async def main() -> Board:
        cluster, board, app = await connect(), Board(), web.Application()
        add_routes(app, cluster, board)
        try:
            async with TestServer(app) as server:
                await asyncio.to_thread(report, str(server.make_url(place.mine.path)))
        finally:
            await cluster.close()
        return board

    progress = asyncio.run(main()).stage_progress(place.mine.uid)["student"]
    assert (progress.completed, progress.percent, progress.unit) == (12, 100, "steps")


def test_a_pod_of_another_job_is_refused_whichever_audience_it_has(place: Place) -> None:
    theirs = place.other.pods[0]
    assert "not to the one that the URL names" in refusal(
        place.mine.path, place.token(theirs, place.other.audience), 403
    )
    assert "no pod of the job" in refusal(place.mine.path, place.token(theirs, place.mine.audience), 403)
    assert "no pod of the job" in refusal(place.other.path, place.token(theirs, place.mine.audience), 403)


def test_a_token_for_another_audience_is_refused(place: Place) -> None:
    pod = place.mine.pods[0]
    for audience in ("https://kubernetes.default.svc.cluster.local", "kubedistill.io/jobs/", names.audience("x" * 36)):
        refusal(place.mine.path, place.token(pod, audience), 401)


def test_a_token_that_is_bound_to_no_pod_is_refused(place: Place) -> None:
    assert "bound to no pod" in refusal(place.mine.path, place.token(None, place.mine.audience), 403)


def signed(token: str, key: ECKey, **changes: Any) -> str:
    """The token with other claims, signed with ``key``."""
    header, claims = (json.loads(urlsafe_b64decode(part + "===")) for part in token.split(".")[:2])
    return jwt.encode(header, {**claims, **changes}, key)


@pytest.fixture
def signing_key(server: Server) -> ECKey:
    """The API server's own."""
    return ECKey.import_key((Path(server.environment["KIT_DIR"]) / "pki" / "sa.key").read_bytes())


@pytest.fixture
def stranger() -> ECKey:
    """A key that the API server does not know."""
    return ECKey.generate_key("P-256")


def test_an_expired_token_is_refused(place: Place, signing_key: ECKey) -> None:
    genuine, now = place.token(place.mine.pods[0], place.mine.audience), int(time.time())
    (fresh,) = post(place.mine.path, signed(genuine, signing_key, exp=now + 600))
    assert fresh.status == 204, "signed like this it is genuine"
    refusal(place.mine.path, signed(genuine, signing_key, iat=now - 7200, nbf=now - 7200, exp=now - 3600), 401)


def test_a_forged_token_is_refused(place: Place, stranger: ECKey) -> None:
    genuine = place.token(place.mine.pods[0], place.mine.audience)
    refusal(place.mine.path, signed(genuine, stranger), 401)
    refusal(place.mine.path, genuine.rsplit(".", 1)[0] + ".", 401)
    refusal(place.mine.path, genuine[:-8] + "AAAAAAAA", 401)


def test_a_pod_that_only_bears_the_labels_is_refused(place: Place) -> None:
    alone = manifest("v1", "Pod", "alone", metadata={"labels": labels_of(place.mine.uid)}, spec=pod_spec())
    pod = created(place.server, alone)
    assert "not owned" in refusal(place.mine.path, place.token(pod, place.mine.audience), 403)


def test_a_pod_of_a_job_that_nobody_controls_is_refused(place: Place) -> None:
    job = created(place.server, child("stray", place.mine.uid, None))
    (pod, _) = pods_of(place.server, job)
    assert "not owned" in refusal(place.mine.path, place.token(pod, place.mine.audience), 403)


def test_a_pod_that_is_gone_is_refused(place: Place) -> None:
    run = start(place.server, "shortlived")
    token, other = (place.token(pod, run.audience) for pod in run.pods)
    assert [answer.status for answer in post(run.path, token)] == [204]
    deleted = place.server.kubectl(
        "delete", "pod", "-n", NAMESPACE, run.pods[0]["metadata"]["name"], "--grace-period=0"
    )
    assert deleted.returncode == 0, deleted.stderr
    answers = post(run.path, token, other)
    assert answers[0].status in (401, 403), "403 while the API server remembers its own verdict"
    assert answers[1].status == 204


def test_a_job_that_is_gone_is_refused(place: Place) -> None:
    run = start(place.server, "deleted")
    token = place.token(run.pods[0], run.audience)
    gone = place.server.kubectl("delete", "dj", "-n", NAMESPACE, run.name, "--cascade=background")
    assert gone.returncode == 0, gone.stderr
    (answer,) = post(run.path, token)
    assert answer.status in (401, 403, 404), answer.line
    assert len(answer.board) == 0


def test_a_body_beyond_the_limit_is_refused_though_the_token_is_right(place: Place) -> None:
    token = place.token(place.mine.pods[0], place.mine.audience)
    (answer,) = post(place.mine.path, token, body=b" " * (BODY_BYTES + 1))
    assert answer.status == 413


def test_a_pod_that_floods_is_told_when_to_come_back(place: Place) -> None:
    token = place.token(place.mine.pods[0], place.mine.audience)
    rate = Rate(per_second=0.001, burst=5)
    answers = post(place.mine.path, *[token] * 20, limits=Limits(pod=rate))
    assert [answer.status for answer in answers] == [204] * 5 + [429] * 15
    assert int(answers[-1].headers["Retry-After"]) > 0


def test_a_flood_of_forged_tokens_leaves_room_for_those_who_are_known(place: Place, stranger: ECKey) -> None:
    genuine = place.token(place.mine.pods[0], place.mine.audience)
    forged = [signed(genuine, stranger, jti=str(number)) for number in range(30)]
    rate = Rate(per_second=0.001, burst=10)
    answers = post(place.mine.path, genuine, *forged, genuine, limits=Limits(address=rate))
    assert [answer.status for answer in answers] == [204] + [401] * 9 + [429] * 21 + [204]
