"""A real API server accepts every child of every manifest, and admits its pods where Pod Security enforces `restricted`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from cluster_server import Server
from job_children import MANIFESTS, context_of, every_child, pod_of

pytestmark = pytest.mark.cluster

CLASSES = (
    {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "batch"}, "value": 1},
    {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"},
)
"""What the manifests name, and admission looks up before it takes a pod."""


@pytest.fixture(scope="module")
def namespace(server: Server, restricted: str) -> str:
    """The restricted namespace, with the accounts and classes that the manifests name."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "kd", "namespace": restricted}}
    default = {**account, "metadata": {"name": "default", "namespace": restricted}}
    for document in (account, default, *CLASSES):
        made = server.create(document, dry_run=False)
        assert made.status_code in (201, 409), made.text  # the cluster may have made the default account by now
    return restricted


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_server_accepts_every_child_and_admits_its_pods(server: Server, namespace: str, path: Path) -> None:
    for child in every_child(context_of(path, namespace)):
        answer = server.create(child.manifest)
        assert answer.status_code == 201, (child.claim, answer.json()["message"])
        assert answer.headers.get("warning") is None, (child.claim, answer.headers["warning"])
        pod = pod_of(child.manifest)
        if pod is not None:
            admitted = server.create(pod)
            assert admitted.status_code == 201, (child.claim, admitted.json()["message"])


def test_a_pod_with_less_restraint_is_refused_there(server: Server, namespace: str) -> None:
    """So that the test above cannot pass by itself."""
    pods = [pod for child in every_child(context_of(MANIFESTS[0], namespace)) if (pod := pod_of(child.manifest))]
    for lifted in ("allowPrivilegeEscalation", "capabilities"):
        pod = copy.deepcopy(pods[0])
        del pod["spec"]["containers"][0]["securityContext"][lifted]
        answer = server.create(pod)
        assert answer.status_code == 403
        assert lifted.casefold() in answer.json()["message"].casefold()


def test_everything_lives_and_goes_with_the_job(server: Server, namespace: str) -> None:
    """Created for good, by their deterministic names; deleting the job takes them all, with no operator about."""
    job = {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "metadata": {"name": "owner", "namespace": namespace},
    }
    ctx = context_of(next(path for path in MANIFESTS if path.stem == "everything"), namespace)
    spec = ctx.job.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    made = server.create({**job, "spec": spec}, dry_run=False)
    assert made.status_code == 201, made.json()["message"]
    children = [owned(child.manifest, made.json()) for child in every_child(ctx)]
    for child in children:
        answer = server.create(child, dry_run=False)
        assert answer.status_code == 201, answer.json()["message"]
        again = server.create(child, dry_run=False)
        assert (again.status_code, again.json()["reason"]) == (409, "AlreadyExists")
    gone = server.kubectl("delete", "dj", "owner", "-n", namespace)
    assert gone.returncode == 0, gone.stderr
    names = [f"{child['kind']}/{child['metadata']['name']}" for child in children]
    server.kubectl("wait", "--for=delete", *names, "-n", namespace, "--timeout=120s")
    for child in children:
        left = server.client.get(server.url(child, child["metadata"]["name"]))
        assert left.status_code == 404, child["metadata"]["name"]


def owned(manifest: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """A child of a job that is really there."""
    (owner,) = manifest["metadata"]["ownerReferences"]
    owner = {**owner, "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}
