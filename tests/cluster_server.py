"""A real Kubernetes API server with our CRDs (the cluster kit's, KD_TEST_KIT); the fixtures `server` and `restricted` of tests/cluster."""

from __future__ import annotations

import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

CRDS = Path(__file__).parents[1] / "crds"
CORPUS = Path(__file__).parent / "api" / "corpus"
OURS = ("DistillationJob", "ClusterDistillationRuntime")
CRDS_GONE_SECONDS = 400.0
CLUSTER_SCOPED = ("ClusterDistillationRuntime", "Namespace", "PriorityClass", "RuntimeClass")


@dataclass(frozen=True)
class Server:
    """An API server that has the CRDs."""

    client: httpx.Client
    environment: dict[str, str]
    """What kubectl, kd and the operator need to find it: KUBECONFIG and PATH."""

    def url(self, document: dict[str, Any], name: str = "") -> str:
        """Where objects of a document's kind and namespace (else `default`) live; with ``name``, one of them."""
        kind = document["kind"]
        version = "kubedistill.io/v1alpha1" if kind in OURS else document["apiVersion"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        namespace = document.get("metadata", {}).get("namespace", "default")
        scope = "" if kind in CLUSTER_SCOPED else f"/namespaces/{namespace}"
        return f"{root}{scope}/{plural_of(kind)}/{name}".rstrip("/")

    def create(self, document: dict[str, Any], *, dry_run: bool = True) -> httpx.Response:
        """Ask the server to create ``document``, refusing unknown fields."""
        parameters = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return self.client.post(self.url(document), json=document, params=parameters)

    def kubectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run kubectl against this server."""
        return subprocess.run(
            ["kubectl", *arguments], env=self.environment, capture_output=True, text=True, timeout=120
        )


def plural_of(kind: str) -> str:
    """A kind's name in URLs: networkpolicies, priorityclasses, jobs."""
    word = kind.lower()
    if word.endswith("y"):
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith("s") else f"{word}s"


@contextmanager
def api_server(*flags: str, crds: bool = True) -> Iterator[Server]:
    """Start a server of its own with ``kit up`` and ``flags`` (such as --kwok), apply the CRDs, and end it all afterwards.

    Without ``crds`` it is the server that an administrator has before the chart is installed.

    Skips the test where KD_TEST_KIT is not set.
    """
    kit = os.environ.get("KD_TEST_KIT")
    if kit is None:
        pytest.skip("KD_TEST_KIT is not set: there is no Kubernetes to test against")
    with tempfile.TemporaryDirectory(prefix="kd-kit-", ignore_cleanup_errors=True) as home:
        environment = {**os.environ, "KIT_DIR": home}
        try:
            subprocess.run([kit, "up", *flags], env=environment, check=True, capture_output=True, timeout=180)
            said = subprocess.run([kit, "env"], env=environment, check=True, capture_output=True, text=True).stdout
            words = dict(word.split("=", 1) for word in said.removeprefix("export ").split() if "=" in word)
            environment |= {
                "KUBECONFIG": words["KUBECONFIG"],
                "PATH": words["PATH"].replace("$PATH", os.environ["PATH"]),
            }
            with _client(Path(words["KUBECONFIG"])) as client:
                ready = Server(client, environment)
                if crds:
                    _apply_crds(ready)
                yield ready
        finally:
            subprocess.run([kit, "down"], env=environment, capture_output=True, timeout=120)


def _client(kubeconfig: Path) -> httpx.Client:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    trust = ssl.create_default_context(cafile=cluster["certificate-authority"])
    headers = {"Authorization": f"Bearer {user['token']}"}
    return httpx.Client(base_url=cluster["server"], verify=trust, headers=headers, timeout=60)


def _apply_crds(server: Server) -> None:
    applied = server.kubectl("apply", "-f", str(CRDS))
    assert applied.returncode == 0, applied.stderr
    end = time.monotonic() + 60
    while True:  # kubectl wait fails at once for one that has no conditions yet
        established = server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        if established.returncode == 0:
            return
        assert time.monotonic() < end, established.stderr


def remove_crds(server: Server) -> None:
    """Delete the CRDs, and with them every object of theirs; returns once they are gone.

    The server deletes them in the background and looks again at what it left lying every five minutes; what holds one
    is in its conditions.
    """
    removed = server.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", str(CRDS))
    assert removed.returncode == 0, removed.stderr
    end = time.monotonic() + CRDS_GONE_SECONDS
    while held := _crds_of_ours(server):
        assert time.monotonic() < end, f"not deleted within {CRDS_GONE_SECONDS:.0f} s: {held}"
        time.sleep(0.2)


def _crds_of_ours(server: Server) -> dict[str, Any]:
    answer = server.client.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").raise_for_status()
    return {
        crd["metadata"]["name"]: crd["status"].get("conditions")
        for crd in answer.json()["items"]
        if crd["spec"]["group"] == "kubedistill.io"
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server for the tests of one module: the control plane alone, no node."""
    with api_server() as ready:
        yield ready


@pytest.fixture(scope="module")
def restricted(server: Server) -> str:
    """A namespace of that server that takes only pods of the `restricted` profile; its name."""
    name = "restricted"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = server.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}, dry_run=False
    )
    assert made.status_code == 201, made.text
    return name
