"""On a real API server: what lives in Git may be applied again and again, and what may not change is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cluster_server import Server
from statuses import CASES, Case, job, running

from kd_runtime.api.parse import load_documents

pytestmark = pytest.mark.cluster

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def jobs_of(path: Path) -> Iterator[dict[str, Any]]:
    """The file's jobs, by the file's name: two examples may share theirs."""
    for document in load_documents(path):
        if document.get("kind") == "DistillationJob":
            yield {**document, "metadata": {**document["metadata"], "name": path.stem[:24].rstrip("-")}}


JOBS = [(path.stem, document) for path in EXAMPLES for document in jobs_of(path)]


def apply(server: Server, document: dict[str, Any], manager: str = "argocd-controller") -> httpx.Response:
    """Server-side apply, as GitOps tools do."""
    return server.client.patch(
        server.url(document, document["metadata"]["name"]),
        content=json.dumps(document),
        params={"fieldManager": manager, "force": "true", "fieldValidation": "Strict"},
        headers={"Content-Type": "application/apply-patch+yaml"},
    )


def write_status(server: Server, document: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    """As the operator does."""
    url = server.url(document, document["metadata"]["name"])
    now = server.client.get(url).raise_for_status().json()
    now["status"] = status
    found: dict[str, Any] = server.client.put(f"{url}/status", json=now).raise_for_status().json()
    return found


STATUS = job(running())["status"]


def test_there_are_examples() -> None:
    assert len(JOBS) >= 4


@pytest.mark.parametrize(("name", "document"), JOBS, ids=[name for name, _ in JOBS])
def test_applying_an_example_again_changes_nothing_not_even_after_a_status(
    server: Server, name: str, document: dict[str, Any]
) -> None:
    first = apply(server, document)
    assert first.status_code == 201, first.text
    again = apply(server, document)
    assert again.status_code == 200, again.text
    assert again.json()["metadata"]["resourceVersion"] == first.json()["metadata"]["resourceVersion"]
    written = write_status(server, document, STATUS)
    assert written["metadata"]["generation"] == 1
    after = apply(server, document).json()
    assert after["metadata"]["generation"] == 1
    assert after["metadata"]["resourceVersion"] == written["metadata"]["resourceVersion"]
    assert after["status"] == written["status"]


@pytest.mark.parametrize(("name", "document"), JOBS, ids=[name for name, _ in JOBS])
def test_kubectl_s_own_apply_changes_nothing_either(
    server: Server, name: str, document: dict[str, Any], tmp_path: Path
) -> None:
    document = copy.deepcopy(document)
    document["metadata"]["name"] = f"{document['metadata']['name']}-ctl"
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    made = server.kubectl("apply", "-f", str(path))
    assert made.returncode == 0, made.stderr
    again = server.kubectl("apply", "-f", str(path))
    assert again.stdout.strip().endswith("unchanged"), again.stdout


def test_a_suspension_by_hand_survives_git(server: Server) -> None:
    document = named("by-hand")
    apply(server, document)
    patch = {"spec": {"suspend": True}}
    url = server.url(document, "by-hand")
    server.client.patch(
        url, content=json.dumps(patch), headers={"Content-Type": "application/merge-patch+json"}
    ).raise_for_status()
    after = apply(server, document).json()
    assert after["spec"]["suspend"] is True
    assert after["metadata"]["generation"] == 2


def named(name: str, **spec: Any) -> dict[str, Any]:
    document = job(None, spec=spec)
    document["metadata"] = {"name": name}
    return document


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stages", [{"name": "answers", "generate": {"sampling": {"maxTokens": 8}}}]),
        ("student", {"model": {"uri": "s3://models/other/"}}),
        ("failurePolicy", {"backoffLimit": 9}),
        ("runtimeRef", {"name": "other"}),
    ],
)
def test_an_edit_in_git_of_what_is_fixed_is_refused_with_field_and_remedy(
    server: Server, field: str, value: Any
) -> None:
    document = named(f"fixed-{field.lower()}")
    assert apply(server, document).status_code == 201
    write_status(server, document, job(next(c.status for c in CASES if c.name == "succeeded"))["status"])
    document["spec"][field] = value
    answer = apply(server, document)
    assert answer.status_code == 422, answer.text
    (cause,) = answer.json()["details"]["causes"]
    assert cause["field"] == f"spec.{field}"
    assert cause["message"].endswith("cannot change after creation; create a job under another name")


def test_get_shows_the_columns_of_the_api(server: Server) -> None:
    document = named("columns")
    apply(server, document)
    write_status(server, document, STATUS)
    head, row = server.kubectl("get", "dj", "columns").stdout.splitlines()
    assert head.split() == ["NAME", "PHASE", "STAGE", "PROGRESS", "ATTEMPT", "GPU-H", "AGE"]
    for shown in ("Running", "student", "3/6 42%", "1.5"):
        assert shown in row
    head, row = server.kubectl("get", "dj", "columns", "-o", "wide").stdout.splitlines()
    assert head.split() == [
        "NAME",
        "PHASE",
        "STAGE",
        "PROGRESS",
        "ATTEMPT",
        "GPU-H",
        "AGE",
        "STUDENT",
        "TEACHER",
        "REASON",
    ]
    assert row.split()[-3:] == ["s3://models/student/", "s3://models/teacher/", "Running"]


@pytest.mark.parametrize("one", [c for c in CASES if c.status is not None], ids=lambda one: one.name)
def test_the_server_keeps_every_status_of_the_table_whole(server: Server, one: Case) -> None:
    document = named(f"kept-{one.name.replace('_', '-')}"[:30].rstrip("-"))
    apply(server, document)
    status = one.document()["status"]
    assert write_status(server, document, status)["status"] == status


def test_kubectl_wait_understands_the_conditions(server: Server) -> None:
    document = named("waited")
    apply(server, document)
    write_status(server, document, STATUS)
    assert server.kubectl("wait", "dj/waited", "--for=condition=Complete", "--timeout=1s").returncode != 0
    write_status(server, document, job(next(c.status for c in CASES if c.name == "succeeded"))["status"])
    assert server.kubectl("wait", "dj/waited", "--for=condition=Complete", "--timeout=30s").returncode == 0
