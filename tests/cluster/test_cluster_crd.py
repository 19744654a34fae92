"""A real API server accepts the CRDs, and says of every manifest what `kd lint` says."""

from __future__ import annotations

import copy
import os
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kd_runtime.api.cel_rules import update_violations
from kd_runtime.api.classes import leaves
from kd_runtime.api.crd import kinds
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.lint import lint
from kd_runtime.api.parse import load_documents, parse_job, parse_runtime
from kd_runtime.api.structural import schema_of

pytestmark = pytest.mark.cluster

KIT = os.environ.get("KD_TEST_KIT")
CRDS = Path(__file__).parents[2] / "crds"
CORPUS = Path(__file__).parents[1] / "api" / "corpus"
GOOD = sorted((CORPUS / "good").glob("*.yaml"))
BAD = sorted((CORPUS / "bad").glob("*.yaml"))
PLURALS = {"DistillationJob": "distillationjobs", "ClusterDistillationRuntime": "clusterdistillationruntimes"}


@dataclass(frozen=True)
class Server:
    """An API server that has the CRDs."""

    client: httpx.Client
    environment: dict[str, str]

    def url(self, document: dict[str, Any], name: str = "") -> str:
        """Where a document's kind lives."""
        scope = "/namespaces/default" if document["kind"] == "DistillationJob" else ""
        return f"/apis/kubedistill.io/v1alpha1{scope}/{PLURALS[document['kind']]}/{name}".rstrip("/")

    def create(self, document: dict[str, Any], *, dry_run: bool = True) -> httpx.Response:
        """Ask the server to create ``document``, refusing unknown fields."""
        parameters = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return self.client.post(self.url(document), json=document, params=parameters)

    def kubectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run kubectl against this server."""
        return subprocess.run(
            ["kubectl", *arguments], env=self.environment, capture_output=True, text=True, timeout=120
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if KIT is None:
        pytest.skip("KD_TEST_KIT is not set: there is no Kubernetes to test against")
    home = tmp_path_factory.mktemp("kit")
    environment = {**os.environ, "KIT_DIR": str(home)}
    subprocess.run([KIT, "up"], env=environment, check=True, capture_output=True, timeout=180)
    try:
        said = subprocess.run([KIT, "env"], env=environment, check=True, capture_output=True, text=True).stdout
        words = dict(word.split("=", 1) for word in said.removeprefix("export ").split() if "=" in word)
        environment |= {
            "KUBECONFIG": words["KUBECONFIG"],
            "PATH": words["PATH"].replace("$PATH", os.environ["PATH"]),
        }
        config = yaml.safe_load(Path(words["KUBECONFIG"]).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        trust = ssl.create_default_context(cafile=cluster["certificate-authority"])
        headers = {"Authorization": f"Bearer {user['token']}"}
        with httpx.Client(base_url=cluster["server"], verify=trust, headers=headers, timeout=60) as client:
            ready = Server(client, environment)
            applied = ready.kubectl("apply", "-f", str(CRDS))
            assert applied.returncode == 0, applied.stderr
            established = ready.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
            assert established.returncode == 0, established.stderr
            yield ready
    finally:
        subprocess.run([KIT, "down"], env=environment, capture_output=True, timeout=120)


def named(path: Path) -> str:
    return path.stem


def expected(path: Path) -> dict[str, Any]:
    comment = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    found: dict[str, Any] = yaml.safe_load("\n".join(comment))["expect"]
    return found


def test_the_crds_are_structural_and_named_as_the_api_says(server: Server) -> None:
    for plural in PLURALS.values():
        crd = server.client.get(
            f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.kubedistill.io"
        ).json()
        states = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
        assert states["Established"] == "True"
        assert states.get("NonStructuralSchema", "False") == "False"
    listed = server.kubectl("get", "dj,cdr", "-A")
    assert listed.returncode == 0, listed.stderr
    assert server.kubectl("get", "kd", "-A").returncode == 0


@pytest.mark.parametrize("path", GOOD, ids=named)
def test_the_server_accepts_what_lint_accepts(server: Server, path: Path) -> None:
    for document in load_documents(path):
        answer = server.create(document)
        assert answer.status_code == 201, answer.json()["message"]


@pytest.mark.parametrize("path", [p for p in BAD if expected(p)["server"] == "reject"], ids=named)
def test_the_server_refuses_what_lint_refuses_at_the_same_field(server: Server, path: Path) -> None:
    wanted = expected(path)
    answer = server.create(load_documents(path)[0])
    assert answer.status_code in (400, 422), answer.json()
    causes = answer.json().get("details", {}).get("causes", [])
    message = answer.json()["message"]
    if not causes:  # unknown fields and another version are said in a sentence
        assert wanted["path"] in message or wanted["path"] == "apiVersion", message
        return
    fields = {cause["field"] for cause in causes if "some validation rules were not checked" not in cause["message"]}
    assert fields == {wanted["path"], *wanted.get("also", ())}, message
    rules = {rule["message"] for kind in kinds().values() for rule in _rules(schema_of(kind))}
    for error in lint(path).errors:
        text = f"{error.message}; {error.remedy}"
        if text in rules:
            assert any(cause["message"].endswith(text) and cause["field"] == error.path for cause in causes), message


PYTHON_ONLY = [p for p in BAD if expected(p)["server"] == "python-only"]
OBJECTS = [p for p in PYTHON_ONLY if not expected(p)["path"].startswith(("line", "kind"))]
"""Those of them that are objects of this API at all."""


@pytest.mark.parametrize("path", OBJECTS, ids=named)
def test_the_server_accepts_what_only_python_can_refuse(server: Server, path: Path) -> None:
    """So that what is marked as beyond CEL really is."""
    answer = server.create(load_documents(path)[0])
    assert answer.status_code == 201, answer.json()["message"]


@pytest.mark.parametrize("path", [p for p in BAD if expected(p)["server"] == "kubectl"], ids=named)
def test_kubectl_refuses_the_text_that_lint_refuses(server: Server, path: Path) -> None:
    assert server.kubectl("apply", "--dry-run=server", "-f", str(path)).returncode != 0


@pytest.mark.parametrize("path", GOOD, ids=named)
def test_settings_read_back_from_the_server_are_those_of_the_file(server: Server, path: Path) -> None:
    documents = load_documents(path)
    job = next(document for document in documents if document["kind"] == "DistillationJob")
    runtime = next((parse_runtime(d) for d in documents if d["kind"] == "ClusterDistillationRuntime"), None)
    job["metadata"]["name"] = path.stem[:30].strip("-")
    made = server.create(job, dry_run=False)
    assert made.status_code == 201, made.json()["message"]
    back = parse_job(server.client.get(server.url(job, job["metadata"]["name"])).json(), runtime)
    here = parse_job(job, runtime)
    assert list(leaves(back.spec)) == list(leaves(here.spec))
    assert back.metadata.uid


IMMUTABLE: dict[str, Any] = {
    "runtimeRef": {"name": "other"},
    "teacher": {"external": {"baseURL": "https://other.example.com/v1", "protocol": "KD", "model": "m"}},
    "student": {"model": {"uri": "s3://models/other/"}},
    "dataset": {"uri": "s3://data/other.jsonl", "format": "JSONL", "fields": {"prompt": "question"}},
    "artifacts": {"uri": "s3://other/"},
    "preflight": {"mode": "Off"},
    "failurePolicy": {"backoffLimit": 9},
    "activeDeadlineSeconds": 5,
    "pendingDeadlineSeconds": 5,
}
MUTABLE: dict[str, Any] = {
    "suspend": True,
    "budget": {"maxGPUHours": "400"},
    "retention": {"ttlSecondsAfterFinished": 5},
    "scheduling": {"priorityClassName": "other"},
}


@pytest.fixture(scope="module")
def stored(server: Server) -> dict[str, Any]:
    document = load_documents(CORPUS / "good" / "everything.yaml")[0]
    document["metadata"]["name"] = "stored"
    answer = server.create(document, dry_run=False)
    assert answer.status_code == 201, answer.json()["message"]
    found: dict[str, Any] = answer.json()
    return found


def update(server: Server, document: dict[str, Any]) -> httpx.Response:
    url = server.url(document, document["metadata"]["name"])
    return server.client.put(url, json=document, params={"dryRun": "All", "fieldValidation": "Strict"})


NEEDED = ("student", "dataset", "artifacts", "teacher")
"""Fields that cannot be left out, so that their removal fails for another reason."""


@pytest.mark.parametrize(
    ("field", "how"),
    [*((f, "changed") for f in IMMUTABLE), *((f, "removed") for f in IMMUTABLE if f not in NEEDED)],
)
def test_what_was_created_cannot_change(server: Server, stored: dict[str, Any], field: str, how: str) -> None:
    changed = copy.deepcopy(stored)
    if how == "changed":
        changed["spec"][field] = IMMUTABLE[field]
    else:
        del changed["spec"][field]
    answer = update(server, changed)
    assert answer.status_code == 422
    causes = answer.json()["details"]["causes"]
    assert [cause["field"] for cause in causes] == [f"spec.{field}"]
    assert "cannot change after creation; create a job under another name" in causes[0]["message"]
    here = [error.path for error in update_violations(schema_of(DistillationJob), stored, changed)]
    assert here == [f"spec.{field}"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("stages", 3, "train", "epochs"), 3),
        (("stages", 3, "train", "deepspeed", "config", "wall_clock_breakdown"), False),
        (("stages", 1, "name"), "others"),
        (("scheduling", "nodeSelector"), {"zone": "b"}),
        (("scheduling", "tolerations"), []),
    ],
    ids=str,
)
def test_nothing_within_them_can_change_either(
    server: Server, stored: dict[str, Any], path: tuple[Any, ...], value: Any
) -> None:
    changed = copy.deepcopy(stored)
    node = changed["spec"]
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    answer = update(server, changed)
    assert answer.status_code == 422, "accepted"
    assert "cannot change after creation" in answer.json()["message"]
    assert list(update_violations(schema_of(DistillationJob), stored, changed))


def test_stages_cannot_be_reordered(server: Server, stored: dict[str, Any]) -> None:
    changed = copy.deepcopy(stored)
    changed["spec"]["stages"].reverse()
    assert update(server, changed).status_code == 422


def test_a_teacher_cannot_be_replaced_by_teachers(server: Server, stored: dict[str, Any]) -> None:
    changed = copy.deepcopy(stored)
    changed["spec"]["teachers"] = [{"name": "big", **changed["spec"].pop("teacher")}]
    assert {c["field"] for c in update(server, changed).json()["details"]["causes"]} >= {
        "spec.teacher",
        "spec.teachers",
    }


@pytest.mark.parametrize("field", MUTABLE)
def test_what_is_about_running_may_change(server: Server, stored: dict[str, Any], field: str) -> None:
    changed = copy.deepcopy(stored)
    value = MUTABLE[field]
    changed["spec"][field] = {**stored["spec"].get(field, {}), **value} if isinstance(value, dict) else value
    answer = update(server, changed)
    assert answer.status_code == 200, answer.json()["message"]
    assert not list(update_violations(schema_of(DistillationJob), stored, changed))


def test_the_status_is_written_apart_and_its_columns_are_shown(server: Server) -> None:
    document = load_documents(CORPUS / "good" / "smallest.yaml")[0]
    document["metadata"]["name"] = "columns"
    made = server.create(document, dry_run=False).json()
    made["status"] = {
        "phase": "Running",
        "currentStage": "student",
        "progress": "step 3 of 9",
        "attempts": {"counted": 1},
        "usage": {"gpuHours": "1.5"},
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "Training",
                "message": "",
                "lastTransitionTime": "2025-01-01T00:00:00Z",
            }
        ],
    }
    answer = server.client.put(f"{server.url(made, 'columns')}/status", json=made, params={"fieldValidation": "Strict"})
    assert answer.status_code == 200, answer.json()["message"]
    wide = server.kubectl("get", "dj", "columns", "-o", "wide").stdout
    for shown in ("Running", "student", "step 3 of 9", "1.5", "s3://models/student/", "Training"):
        assert shown in wide
    assert parse_job(server.client.get(server.url(made, "columns")).json()).status


def _rules(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield from schema.get("x-kubernetes-validations", ())
        for value in schema.values():
            yield from _rules(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _rules(value)
