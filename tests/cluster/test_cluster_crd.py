"""A real API server accepts the CRDs, and says of every manifest what `kd lint` says."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cluster_server import CORPUS, Server

from kd_runtime.api.cel_rules import is_cidr, update_violations
from kd_runtime.api.classes import leaves
from kd_runtime.api.crd import kinds
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.lint import lint
from kd_runtime.api.parse import load_documents, parse_job, parse_runtime
from kd_runtime.api.structural import schema_of

pytestmark = pytest.mark.cluster

GOOD = sorted((CORPUS / "good").glob("*.yaml"))
BAD = sorted((CORPUS / "bad").glob("*.yaml"))


def named(path: Path) -> str:
    return path.stem


def expected(path: Path) -> dict[str, Any]:
    comment = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    found: dict[str, Any] = yaml.safe_load("\n".join(comment))["expect"]
    return found


def test_the_crds_are_structural_and_named_as_the_api_says(server: Server) -> None:
    for plural in ("distillationjobs", "clusterdistillationruntimes"):
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


def cidr_like(draw: random.Random) -> str:
    """Something near a CIDR: half of them are, others have a part too many, too few, too large or spelled otherwise."""
    octets = [str(draw.choice([0, 1, 10, 127, 255, 255, 256, 999])) for _ in range(draw.choice([4, 4, 4, 4, 4, 3, 5]))]
    groups = [draw.choice(["0", "fd00", "FFFF", "1", "", "", "12345", "g", "0001"]) for _ in range(draw.randint(2, 9))]
    ends = [":".join(groups), f"::{'.'.join(octets)}", f"::ffff:{'.'.join(octets)}", f"{':'.join(groups)}%lo"]
    address = ".".join(octets) if draw.random() < 0.4 else draw.choice([*ends, ends[0], "::", "::1", "fe80::"])
    bits = draw.choice(
        ["0", "8", "24", "32", "32", "33", "64", "104", "128", "129", "", "08", "+8", "-1", "8 ", "255.0.0.0"]
    )
    return (
        f"{draw.choice(['', '', '', '', '', '', '', ' ', '0'])}{address}{draw.choice(['/', '/', '/', '/', ''])}{bits}"
    )


def test_the_server_and_lint_tell_a_cidr_alike_and_a_networkpolicy_takes_what_they_accept(server: Server) -> None:
    draw = random.Random(7)
    texts = sorted(
        {cidr_like(draw) for _ in range(3000)} | {"10.1.2.3/8", "10.0.0.0/8", "fd00::/8", "0.0.0.0/0", "::/0"}
    )
    refused = {text for part in _parts(texts) for text in _refused_cidrs(server, part)}
    assert {text for text in texts if not is_cidr(text)} == refused
    accepted = [text for text in texts if text not in refused]
    assert {"10.1.2.3/8", "fd00::/8"} < {*accepted}
    for part in _parts(accepted):
        egress = [{"to": [{"ipBlock": {"cidr": cidr}} for cidr in part]}]
        answer = server.create(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": "all"},
                "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": egress},
            }
        )
        assert answer.status_code == 201, answer.json()["message"]


def _parts(texts: list[str]) -> list[list[str]]:
    """``texts`` in lists that the API takes."""
    return [texts[start : start + 64] for start in range(0, len(texts), 64)]


def _refused_cidrs(server: Server, cidrs: list[str]) -> Iterator[str]:
    """Those that a runtime must not list, by the places that the server names."""
    (runtime,) = load_documents(CORPUS / "bad" / "runtime-private-cidr-octet.yaml")
    runtime["spec"]["network"]["privateCIDRs"] = cidrs
    answer = server.create(runtime)
    causes = answer.json()["details"].get("causes", []) if answer.status_code == 422 else []
    for cause in causes:
        place = int(cause["field"].removeprefix("spec.network.privateCIDRs[").removesuffix("]"))
        assert f"{cidrs[place]}" in cause["message"]
        assert "is no CIDR; write ADDRESS/BITS, such as 10.0.0.0/8 or fd00::/8" in cause["message"]
        yield cidrs[place]


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
