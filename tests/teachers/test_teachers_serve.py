"""`kd teacher serve` with the Transformers engine: ready, stopped, orphaned."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.teacher import Engine
from kd_runtime.teachers.serve import ServeOptions, local_url, serve

PARENT = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[2:], env={**os.environ, "KD_PARENT_PID": str(os.getpid())})
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""
KD = [sys.executable, "-m", "kd_runtime.cli.main", "teacher", "serve", "--engine", "Transformers"]


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"--port {port}"):
            serve(ServeOptions(tmp_path, Engine.Transformers, port=port, leashed=False))


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1"), ("10.0.0.1", "http://10.0.0.1:1")]
)
def test_a_server_is_reached_from_its_own_machine(host: str, url: str) -> None:
    assert local_url(host, 1) == url


@pytest.fixture
def command(tiny_models: Path, tmp_path: Path) -> Iterator[list[str]]:
    yield [*KD, "--model", str(tiny_models / "teacher"), "--port", "0", "--ready-file", str(tmp_path / "ready")]


def url(tmp_path: Path) -> str:
    assert wait_for((tmp_path / "ready").exists)
    return str(json.loads((tmp_path / "ready").read_text())["url"])


@pytest.mark.runtime
def test_it_says_where_it_is_once_it_answers_and_stops_when_told(command: list[str], tmp_path: Path) -> None:
    server = subprocess.Popen(command, env={**os.environ, "KD_TEACHER_KEY": "sesame"})
    try:
        assert httpx.get(f"{url(tmp_path)}/health").status_code == 200
        assert httpx.get(f"{url(tmp_path)}/v1/models").status_code == 401
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0
    finally:
        server.kill()


@pytest.mark.runtime
@pytest.mark.parametrize("when", ["loading", "serving"])
def test_it_ends_when_its_parent_is_killed(command: list[str], tmp_path: Path, when: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "pid"), *command])
    assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    server = psutil.Process(int((tmp_path / "pid").read_text()))
    if when == "serving":
        url(tmp_path)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 30)
