"""No process outlives the one that holds its leash, grandchildren and sudden deaths included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

HOLDER = """
import os, sys, time
from kd_runtime.teachers.leash import Leash
leash = Leash([sys.executable, "-c", GRANDPARENT, sys.argv[1]], os.environ)
while leash.poll() is None:
    time.sleep(0.05)
print(leash.stop(1.0), flush=True)
"""
GRANDPARENT = """
import pathlib, subprocess, sys, os, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1] + ".part").write_text(f"{os.getpid()} {child.pid} {os.getpgrp()}")
pathlib.Path(sys.argv[1] + ".part").rename(sys.argv[1])
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def living(pids: list[int]) -> list[int]:
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


class Family:
    """A process that holds a leash, the command on it, the command's child, and the leash's leader."""

    def __init__(self, folder: Path) -> None:
        code = f"GRANDPARENT = {GRANDPARENT!r}\n{HOLDER}"
        told = folder / "pids"
        self.holder = subprocess.Popen([sys.executable, "-c", code, str(told)], stdout=subprocess.PIPE, text=True)
        assert wait_for(told.exists)
        self.command, self.grandchild, self.leader = map(int, told.read_text().split())
        self.others = [self.command, self.grandchild, self.leader]


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path)


def test_all_end_when_the_holder_is_killed(family: Family) -> None:
    assert living(family.others) == family.others
    family.holder.kill()
    family.holder.wait()
    assert wait_for(lambda: not living(family.others))


def test_all_end_when_the_command_is_killed(family: Family) -> None:
    os.kill(family.command, signal.SIGKILL)
    out, _ = family.holder.communicate(timeout=20)
    assert out.split() == ["-9"]
    assert wait_for(lambda: not living(family.others))


def test_all_end_when_the_leader_is_killed(family: Family) -> None:
    os.kill(family.leader, signal.SIGKILL)
    family.holder.wait(20)
    assert wait_for(lambda: not living(family.others))
