"""The operator's whole process on a real API server: begin, lead, hand over, end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster_server import Server

from kd_runtime.api.parse import load_documents

pytestmark = pytest.mark.cluster

SMALLEST = Path(__file__).parents[1] / "api" / "corpus" / "good" / "smallest.yaml"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/default/leases/kubedistill-operator"


@dataclass
class Process:
    """A running operator."""

    process: subprocess.Popen[str]
    port: int

    def get(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10)
        except httpx.TransportError:
            return None

    def says(self, path: str, text: str) -> bool:
        answer = self.get(path)
        return answer is not None and answer.status_code == 200 and text in answer.text

    def end(self, number: int = signal.SIGTERM) -> str:
        """Send a signal; everything that it had logged."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[0]


@contextmanager
def operator(server: Server, identity: str) -> Iterator[Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--plan-image", "plan", "--runtime-image", "run", "--namespace", "default", "--identity", identity]
    process = subprocess.Popen(
        [sys.executable, "-m", "kd_operator", *flags, "--port", str(port)],
        env={**os.environ, **server.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Process(process, port)
    finally:
        process.kill()
        process.communicate()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def holder(server: Server) -> Any:
    return server.client.get(LEASE).json().get("spec", {}).get("holderIdentity")


def test_an_operator_leads_acts_and_hands_over_at_its_end(server: Server) -> None:
    document = load_documents(SMALLEST)[0]
    document["metadata"] = {"name": "waiting", "namespace": "default"}
    with operator(server, "first") as first:
        until(lambda: first.says("/readyz", "leading"))
        assert first.says("/healthz", "ok")
        assert holder(server) == "first"
        made = server.create(document, dry_run=False).json()
        job = server.url(made, "waiting")
        until(lambda: "status" in server.client.get(job).json())
        conditions = server.client.get(job).json()["status"]["conditions"]
        assert "RuntimeMissing" in {condition["reason"] for condition in conditions}
        assert first.says("/metrics", "kubedistill_leading 1.0")
        with operator(server, "second") as second:
            until(lambda: second.says("/readyz", "standing by"))
            logged = first.end()
            assert first.process.returncode == 0, logged
            assert "Traceback" not in logged
            assert "Unclosed" not in logged
            until(lambda: second.says("/readyz", "leading"))
            assert holder(server) == "second"
            second.end(signal.SIGINT)
            assert second.process.returncode == 0
            assert holder(server) in ("", None)


def test_a_port_that_is_taken_ends_the_process_with_an_error(server: Server) -> None:
    with operator(server, "first") as first:
        until(lambda: first.says("/healthz", "ok"))
        flags = ["--plan-image", "p", "--runtime-image", "r", "--namespace", "default", "--port", str(first.port)]
        done = subprocess.run(
            [sys.executable, "-m", "kd_operator", *flags],
            env={**os.environ, **server.environment},
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode != 0
        assert "address already in use" in done.stderr
