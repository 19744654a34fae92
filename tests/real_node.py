"""A real node with the operator on it: the cluster kit's node, an S3 server, our images, the chart; for tests/e2e and tests/faults."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import yaml

from kd_runtime import __version__

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "kubedistill"
OPERATOR_NAMESPACE = "kubedistill"
NAMESPACE = "team-a"
BUCKET = "kubedistill"
REGION = "us-east-1"
ACCESS = {"AWS_ACCESS_KEY_ID": "kit-access-key", "AWS_SECRET_ACCESS_KEY": "kit-secret-key"}
POLL_SECONDS = 0.5
RUNC = "/run/containerd/runc/k8s.io"
"""Where runc keeps the state of a kubelet's containers."""
_CLONE_NEWNET = 0x40000000

Object = dict[str, Any]


@dataclass(frozen=True)
class Node:
    """A cluster of one node that runs containers."""

    kit: str
    environment: dict[str, str]
    endpoint: str
    """Of its S3 server, for pods and for this process alike."""

    def kit_run(self, *words: str, timeout: float = 900) -> str:
        """Run a command of the kit; what it prints."""
        return run([self.kit, *words], self.environment, timeout)

    def kubectl(self, *words: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl; what it prints."""
        return run(["kubectl", *words], self.environment, timeout, stdin)

    def get(self, kind: str, name: str, namespace: str = NAMESPACE) -> Object:
        """One object."""
        found: Object = json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        return found

    def list(self, kind: str, selector: str = "", namespace: str = NAMESPACE) -> list[Object]:
        """Objects of a kind."""
        found: Object = json.loads(self.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json"))
        return list(found["items"])

    def apply(self, document: Object, namespace: str = NAMESPACE) -> None:
        """Server-side apply."""
        self.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(document))

    def s3(self) -> Any:
        """A client of its S3 server."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ACCESS["AWS_SECRET_ACCESS_KEY"],
        )

    def upload(self, folder: Path, prefix: str) -> None:
        """Put a folder's files below a prefix of the bucket."""
        client = self.s3()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            client.upload_file(str(path), BUCKET, f"{prefix}{path.relative_to(folder)}")

    def names(self, prefix: str) -> list[str]:
        """Objects of the bucket below a prefix."""
        pages = self.s3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def read(self, name: str) -> bytes:
        """One object of the bucket."""
        return bytes(self.s3().get_object(Bucket=BUCKET, Key=name)["Body"].read())

    def job(self, name: str) -> Object:
        """A DistillationJob."""
        return self.get("dj", name)

    def stage(self, job: str, stage: str) -> Object:
        """The status of one stage; an empty one where there is none yet."""
        stages = self.job(job).get("status", {}).get("stages", [])
        return next((s for s in stages if s["name"] == stage), {})

    def until(self, job: str, holds: Callable[[Object], bool], seconds: float, what: str) -> Object:
        """Wait until a job's object is so; fails, with what there is to know, where it is not in time."""
        limit = time.monotonic() + seconds
        seen: Object = {}
        while time.monotonic() < limit:
            try:
                seen = self.job(job)
            except (AssertionError, subprocess.TimeoutExpired):  # the API server may be down just now
                time.sleep(POLL_SECONDS)
                continue
            if holds(seen):
                return seen
            if phase(seen) == "Failed":
                break
            time.sleep(POLL_SECONDS)
        pytest.fail(f"{job}: not {what} within {seconds:.0f} s\n{self.told(job)}")

    def succeeded(self, job: str, seconds: float) -> Object:
        """Wait for a job's good end."""
        return self.until(job, lambda seen: phase(seen) == "Succeeded", seconds, "Succeeded")

    def running(self, job: str, stage: str, seconds: float) -> None:
        """Wait until a stage is Running."""
        self.until(
            job,
            lambda seen: any(s["name"] == stage and s.get("state") == "Running" for s in stages(seen)),
            seconds,
            f"in stage {stage}",
        )

    def pods(self, job: str, stage: str) -> list[Object]:
        """Pods of a stage, by index."""
        found = self.list("pods", f"kubedistill.io/job={job},kubedistill.io/stage={stage}")
        return sorted(found, key=lambda pod: pod["metadata"]["name"])

    def kill_9(self, pod: str, namespace: str = NAMESPACE) -> None:
        """SIGKILL to PID 1 of a pod's container, from outside."""
        container = self.container(pod, namespace)
        socket = f"{self.environment['KIT_DIR']}/run/containerd.sock"
        run(["ctr", "-a", socket, "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", container], self.environment, 30)

    def container(self, pod: str, namespace: str = NAMESPACE) -> str:
        """The id of a pod's container."""
        status = self.get("pod", pod, namespace)["status"]["containerStatuses"][0]
        return str(status["containerID"]).removeprefix("containerd://")

    def slowed(self, container: str, cores: float) -> None:
        """Let a running container have so much of the CPU, from now on."""
        quota = str(int(cores * 100_000))
        words = ["runc", "--root", RUNC, "update", "--cpu-period", "100000", "--cpu-quota", quota, container]
        run(words, self.environment, 30)

    def operator_pod(self) -> str:
        """The name of the operator's pod."""
        found = self.list("pods", "app.kubernetes.io/component=operator", OPERATOR_NAMESPACE)
        return str(found[0]["metadata"]["name"])

    def told(self, job: str) -> str:
        """All that a person would look at."""
        asked = (
            ["describe", "dj", job, "-n", NAMESPACE],
            ["get", "pods,jobs,deployments", "-n", NAMESPACE, "-o", "wide"],
            ["logs", "-n", OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=kubedistill", "--tail=60"],
            ["logs", "-n", NAMESPACE, "-l", f"kubedistill.io/job={job}", "--tail=40", "--prefix", "--all-containers"],
        )
        return "\n".join(
            subprocess.run(["kubectl", *words], env=self.environment, capture_output=True, text=True, timeout=60).stdout
            for words in asked
        )


def phase(job: Object) -> str:
    """status.phase."""
    return str(job.get("status", {}).get("phase", ""))


def stages(job: Object) -> list[Object]:
    """status.stages."""
    return list(job.get("status", {}).get("stages", []))


def condition(job: Object, kind: str) -> Object:
    """One condition of a job; an empty one where it has none of that type."""
    return next((c for c in job.get("status", {}).get("conditions", []) if c["type"] == kind), {})


def run(words: list[str], environment: dict[str, str], timeout: float, stdin: str | None = None) -> str:
    """Run a command that must succeed; what it prints."""
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout, input=stdin)
    assert done.returncode == 0, (
        f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


@contextmanager
def network_of(home: Path) -> Iterator[None]:
    """This thread, and all that it starts, in the cluster's own network."""
    libc = ctypes.CDLL(None, use_errno=True)
    name = (home / "run" / "netns").read_text().strip()
    with open("/proc/self/ns/net") as before, open(f"/run/netns/{name}") as there:  # noqa: PTH123 - descriptors are what is needed
        assert libc.setns(there.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            libc.setns(before.fileno(), _CLONE_NEWNET)


@contextmanager
def real_node() -> Iterator[Node]:
    """A node with S3, our images, the operator installed by Helm, and a namespace of the `restricted` profile with its Secret.

    KD_TEST_NODE names the folder (KIT_DIR) of one that is up already, as `python tests/real_node.py` keeps it until its input ends.
    """
    kit = os.environ.get("KD_TEST_KIT")
    if kit is None:
        pytest.skip("KD_TEST_KIT is not set: there is no Kubernetes node to run on")
    standing = os.environ.get("KD_TEST_NODE")
    if standing is not None:
        with network_of(Path(standing)):
            yield _node(kit, {**os.environ, "KIT_DIR": standing})
        return
    with tempfile.TemporaryDirectory(prefix="kd-kit-", ignore_cleanup_errors=True) as home:
        environment = {**os.environ, "KIT_DIR": home, "KD_IMAGE_BUILD": f"{kit} build"}
        run([kit, "base-image"], environment, 900)
        run([str(ROOT / "images" / "build.sh"), __version__], environment, 2400)
        try:
            run([kit, "up", "--node"], environment, 300)
            images = [f"localhost/kubedistill/{name}:{__version__}" for name in ("operator", "runtime")]
            run([kit, "load", *images], environment, 900)
            with network_of(Path(home)):
                node = _node(kit, environment)
                _prepare(node)
                yield node
        finally:
            for words in (["crash", "versitygw"], ["down"]):  # the S3 server is no part of what goes down
                subprocess.run([kit, *words], env=environment, capture_output=True, timeout=180)


def _node(kit: str, environment: dict[str, str]) -> Node:
    words = _words(run([kit, "env"], environment, 60))
    path = words["PATH"].replace("$PATH", os.environ["PATH"])
    keys = {
        "ROOT_ACCESS_KEY_ID": ACCESS["AWS_ACCESS_KEY_ID"],
        "ROOT_SECRET_ACCESS_KEY": ACCESS["AWS_SECRET_ACCESS_KEY"],
    }
    found = {
        **environment,
        **keys,
        "KUBECONFIG": words["KUBECONFIG"],
        "PATH": path,
    }  # the keys: for reviving the S3 server
    return Node(kit, found, _words(run([kit, "s3"], environment, 60))["AWS_ENDPOINT_URL"])


def _words(said: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in said.replace("export ", "").split() if "=" in word)


def _prepare(node: Node) -> None:
    node.s3().create_bucket(Bucket=BUCKET)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    node.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}, "default")
    node.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "stringData": ACCESS})
    install(node)


def install(node: Node, *flags: str) -> None:
    """`helm install` (or upgrade) of the chart, as the README says; waits until the operator is ready."""
    words = ["helm", "upgrade", "--install", "kubedistill", str(CHART), "-n", OPERATOR_NAMESPACE, "--create-namespace"]
    server = yaml.safe_load(Path(node.environment["KUBECONFIG"]).read_text())["clusters"][0]["cluster"]["server"]
    ports = f"networkPolicy.apiServer.ports={{443,{server.rsplit(':', 1)[1]}}}"  # where this API server really listens
    store = f"runtimes.network.privateCIDRs={{{urlsplit(node.endpoint).hostname}/32}}"  # jobs name it as their endpoint
    run([*words, "--wait", "--timeout", "180s", "--set", ports, "--set", store, *flags], node.environment, 300)


if __name__ == "__main__":
    with real_node() as up:
        print(f"KD_TEST_NODE={up.environment['KIT_DIR']}", flush=True)
        sys.stdin.read()
