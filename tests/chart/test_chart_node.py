"""The chart on a real node, from a cluster that never heard of it: the operator's image runs, and its network lets in who may."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "kubedistill"
TAG = "chart-test"
URL = "http://kubedistill.kd-system.svc:8080/metrics"
REACH = """
import sys, time, urllib.request
for _ in range(int(sys.argv[2])):
    try:
        urllib.request.urlopen(sys.argv[1], timeout=2)
        sys.exit(0)
    except OSError as error:
        print(error, flush=True)
        time.sleep(1)
sys.exit(1)
"""


@dataclass(frozen=True)
class Node:
    """A cluster with a real node that has the operator's image and enforces NetworkPolicies."""

    kit: str
    environment: dict[str, str]

    def run(self, *words: str, fails: bool = False) -> str:
        """Run a command where the cluster is reached; its output. It must end well, or with ``fails`` not."""
        done = subprocess.run(
            [self.kit, "exec", *words], env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert (done.returncode != 0) == fails, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def reaches(self, name: str, *labels: str, tries: int) -> bool:
        """Whether a pod with ``labels`` in the namespace `default` reaches the operator, within ``tries`` tries."""
        given = (f"--labels={label}" for label in labels)
        self.run("kubectl", "run", name, f"--image=localhost/kubedistill/operator:{TAG}", "--restart=Never", *given,
                 "--command", "--", "python3", "-c", REACH, URL, str(tries))  # fmt: skip
        ended = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"
        self.run("kubectl", "wait", f"pod/{name}", f"--for={ended}", "--timeout=120s")
        return self.run("kubectl", "get", "pod", name, "-o", ended) == "0"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    kit = os.environ.get("KD_TEST_KIT")
    if kit is None:
        pytest.skip("KD_TEST_KIT is not set: there is no Kubernetes to test against")
    with tempfile.TemporaryDirectory(prefix="kd-kit-", ignore_cleanup_errors=True) as home:
        environment = {**os.environ, "KIT_DIR": home, "KD_IMAGE_BUILD": f"{kit} build", "KD_IMAGES": "operator"}

        def ask(*words: str) -> None:
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=540)
            assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"

        try:
            ask(kit, "up", "--node")
            ask(kit, "base-image")
            ask(str(ROOT / "images" / "build.sh"), TAG)
            ask(kit, "load", f"localhost/kubedistill/operator:{TAG}")
            ask(kit, "netpol")
            yield Node(kit, environment)
        finally:
            subprocess.run([kit, "down"], env=environment, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def installed(node: Node) -> Node:
    """That cluster, after `helm install` with a policy that lets the operator reach the API server and nothing else."""
    config = yaml.safe_load(node.run("kubectl", "config", "view", "--raw"))
    port = config["clusters"][0]["cluster"]["server"].rsplit(":", 1)[1]
    ports = f"networkPolicy.apiServer.ports={{443,{port}}}"
    node.run("helm", "install", "kubedistill", str(CHART), "--namespace", "kd-system", "--create-namespace",
             "--set", f"images.tag={TAG}", "--set", ports)  # fmt: skip
    return node


def test_a_first_install_ends_with_the_runtimes_there(installed: Node) -> None:
    found = installed.run("kubectl", "get", "cdr", "-o", "name").split()
    assert {name.rsplit("/", 1)[1] for name in found} == {"cpu", "cuda", "cuda-multinode"}
    assert "wait" not in installed.run("kubectl", "get", "pods", "-n", "kd-system", "-o", "name")


def test_the_operator_becomes_ready_and_helm_test_says_so(installed: Node) -> None:
    installed.run("kubectl", "-n", "kd-system", "rollout", "status", "deployment/kubedistill", "--timeout=120s")
    said = installed.run("helm", "test", "kubedistill", "--namespace", "kd-system", "--timeout", "2m")
    assert "Phase:          Succeeded" in said


def test_jobs_pods_reach_it_and_others_do_not(installed: Node) -> None:
    assert installed.reaches("of-a-job", "kubedistill.io/job-uid=1", tries=30)
    assert not installed.reaches("of-nobody", tries=3)


def test_it_reaches_the_api_server_and_nothing_else(installed: Node) -> None:
    installed.run("kubectl", "run", "listener", f"--image=localhost/kubedistill/operator:{TAG}",
                  "--command", "--", "python3", "-m", "http.server", "9999")  # fmt: skip
    installed.run("kubectl", "wait", "pod/listener", "--for=condition=Ready", "--timeout=60s")
    address = installed.run("kubectl", "get", "pod", "listener", "-o", "jsonpath={.status.podIP}")
    listens = f"until (exec 3<>/dev/tcp/{address}/9999) 2> /dev/null; do sleep 0.2; done"
    installed.run("timeout", "60", "bash", "-c", listens)
    from_operator = ("kubectl", "-n", "kd-system", "exec", "deploy/kubedistill", "--", "python3", "-c")
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    installed.run(*from_operator, connect, "10.96.0.1", "443")
    installed.run(*from_operator, connect, address, "9999", fails=True)


def test_the_next_upgrade_takes_over_what_the_first_install_made(installed: Node) -> None:
    uid = ("kubectl", "get", "cdr", "cpu", "-o", "jsonpath={.metadata.uid}")
    before = installed.run(*uid)
    upgrade = ("helm", "upgrade", "kubedistill", str(CHART), "--namespace", "kd-system", "--reuse-values", "--set")
    installed.run(*upgrade, "runtimes.cpu.spec.limits.nodes=1")
    assert installed.run(*uid) == before, "made anew: jobs that began with it would see another one"
    assert installed.run("kubectl", "get", "cdr", "cpu", "-o", "jsonpath={.spec.limits.nodes}") == "1"
    installed.run(*upgrade, "runtimes.cuda.enabled=false")
    assert "/cuda\n" not in installed.run("kubectl", "get", "cdr", "-o", "name")
    installed.run("helm", "uninstall", "kubedistill", "--namespace", "kd-system", "--wait")
    assert installed.run("kubectl", "get", "cdr", "-o", "name") == ""
