"""NetworkPolicies on a real node that enforces them: a job works under its own, and nobody else reaches its teacher."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from e2e.tiny_jobs import tiny_job, upload_inputs
from real_node import BUCKET, NAMESPACE, Node, run

from kd_runtime import __version__

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SECONDS = 420.0
METADATA = "169.254.169.254"
"""Where clouds give away a node's credentials."""
ASK = """
import urllib.request
try:
    urllib.request.urlopen({url!r}, timeout=5)
    print("reached")
except OSError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def enforced(node: Node, tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Node:
    """The node, with its policies enforced from now on."""
    node.kit_run("netpol")
    upload_inputs(node, tiny_models, tmp_path_factory.mktemp("questions"))
    return node


@contextmanager
def metadata_service(node: Node) -> Iterator[str]:
    """Something answers on the node where clouds have their metadata; its URL."""

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    address = [f"{METADATA}/32", "dev", "lo"]
    run(["ip", "address", "add", *address], node.environment, 30)
    try:
        with HTTPServer((METADATA, 80), Metadata) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            try:
                yield f"http://{METADATA}/latest/meta-data/"
            finally:
                server.shutdown()
    finally:
        run(["ip", "address", "delete", *address], node.environment, 30)


@contextmanager
def held(name: str) -> Iterator[None]:
    """The job's workers stand still, so that its teacher is there for as long."""
    commands = [(process, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    workers = [process for process, words in commands if "stage" in words and f"s3://{BUCKET}/{name}/" in words]
    assert workers
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()


def reaches(node: Node, pod: str, url: str) -> bool:
    """Whether a pod that runs reaches a URL."""
    return node.kubectl("exec", "-n", NAMESPACE, pod, "--", "python3", "-c", ASK.format(url=url)) == "reached\n"


def caller(node: Node, name: str, labels: dict[str, str], url: str) -> bool:
    """Whether a pod with those labels reaches a URL."""
    restricted = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "caller",
        "image": f"localhost/kubedistill/operator:{__version__}",
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", f"import urllib.request as r; r.urlopen({url!r}, timeout=5)"],
        "securityContext": restricted,
    }
    spec: dict[str, Any] = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    node.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
    ended = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"
    node.kubectl("wait", f"--for={ended}", f"pod/{name}", "-n", NAMESPACE, "--timeout=90s")
    return node.kubectl("get", "pod", name, "-n", NAMESPACE, "-o", ended) == "0"


def test_a_jobs_own_pods_alone_reach_its_teacher_and_not_the_clouds_metadata_that_others_reach(enforced: Node) -> None:
    node, name = enforced, "walled"
    node.apply(tiny_job(node, name, first=1))
    node.running(name, "answers", SECONDS)
    teacher = node.job(name)["status"]["teachers"][0]
    uid = node.job(name)["metadata"]["uid"]
    health = f"{teacher['url']}/health"
    (inside,) = (pod["metadata"]["name"] for pod in node.pods(name, "teacher"))
    with held(name):
        assert reaches(node, inside, health)
        with metadata_service(node) as metadata:
            assert not reaches(node, inside, metadata)
            assert caller(node, "anybody", {"app": "anybody"}, metadata)
        assert not caller(node, "stranger", {"app": "stranger"}, health)
        assert caller(node, "member", {"kubedistill.io/job-uid": uid}, health)
    node.succeeded(name, SECONDS)


def test_what_the_pods_posted_came_through(enforced: Node) -> None:
    pods = enforced.list("pods", "app.kubernetes.io/component=operator", "kubedistill")
    path = f"/api/v1/namespaces/kubedistill/pods/{pods[0]['metadata']['name']}:8080/proxy/metrics"
    said = subprocess.run(
        ["kubectl", "get", "--raw", path], env=enforced.environment, capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr
    posts = [line for line in said.stdout.splitlines() if "progress_posts_total" in line and "Accepted" in line]
    assert any(float(line.rsplit(" ", 1)[1]) > 0 for line in posts), json.dumps(posts)
