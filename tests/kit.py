"""Parts of the cluster kit's cluster (KD_TEST_KIT), killed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

DEATH_SECONDS = 60.0
_ZOMBIE = "Z"


def crash(environment: Mapping[str, str], program: str) -> None:
    """SIGKILL to one part of the cluster; returns once it is gone: a large process takes a while to die on a busy machine."""
    process = int(Path(environment["KIT_DIR"], "run", f"{program}.pid").read_text())
    _run(environment, "crash", program)
    limit = time.monotonic() + DEATH_SECONDS
    while _lives(process):
        assert time.monotonic() < limit, (
            f"{program}, process {process}, still lives {DEATH_SECONDS:.0f} s after SIGKILL"
        )
        time.sleep(0.05)


def revive(environment: Mapping[str, str], program: str) -> None:
    """Start a part again that was killed."""
    _run(environment, "revive", program)


def crash_containers(environment: Mapping[str, str]) -> None:
    """SIGKILL to every container of the node, and to the shims that would tell of it: what a power cut leaves."""
    socket = f"-address {environment['KIT_DIR']}/run/containerd.sock"
    for shim in _found("-f", "--", socket):
        for process in (*_below(shim), shim):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _below(process: int) -> list[int]:
    return [one for child in _found("-P", str(process)) for one in (*_below(child), child)]


def _found(*words: str) -> list[int]:
    return [int(word) for word in subprocess.run(["pgrep", *words], capture_output=True, text=True).stdout.split()]


def _lives(process: int) -> bool:
    """Whether any of its threads does: the first may be a zombie while another holds the port yet."""
    return any(_state(thread) != _ZOMBIE for thread in Path(f"/proc/{process}/task").glob("*/stat"))


def _state(stat: Path) -> str:
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return _ZOMBIE


def _run(environment: Mapping[str, str], *words: str) -> None:
    done = subprocess.run(
        [os.environ["KD_TEST_KIT"], *words], env=dict(environment), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"kit {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}"
