"""No process outlives its parent, and a tree ends whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from kd_runtime.telemetry.processes import end_tree, spawn

FOREVER = "import time; time.sleep(600)"


def ended(pid: int) -> bool:
    """Waits for the process to end, at most 20 s."""
    try:
        psutil.Process(pid).wait(timeout=20)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_child_of_a_killed_process_is_killed(tmp_path: Path) -> None:
    child = (
        "from kd_runtime.telemetry.processes import die_with_parent; die_with_parent(); print('ready', flush=True);"
        + FOREVER
    )
    parent = (
        "import os, sys, time; from pathlib import Path; from kd_runtime.telemetry.processes import spawn;"
        f"p = spawn([sys.executable, '-c', {child!r}], env=dict(os.environ), log=Path({str(tmp_path / 'log')!r}));"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    child_process = psutil.Process(pid)
    while child_process.is_running() and "ready" not in (tmp_path / "log").read_text():
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ended(pid)


def test_ending_a_tree_ends_grandchildren(tmp_path: Path) -> None:
    script = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {FOREVER!r}]); print(p.pid, flush=True); p.wait()"
    process = spawn([sys.executable, "-c", script], env=dict(os.environ), log=tmp_path / "log")
    while not (tmp_path / "log").read_text().strip():
        os.sched_yield()
    grandchild = int((tmp_path / "log").read_text())
    end_tree(process, grace_seconds=5)
    assert process.returncode == -signal.SIGTERM
    assert ended(grandchild)
