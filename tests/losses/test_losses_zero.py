"""ZeRO-3 gathers the head that the loss owns, and reduces its gradient, tied or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def steps(stage: int, tied: str) -> list[float]:
    """Losses of two steps and norms of the weights after them, in a process of its own."""
    port = 20_000 + os.getpid() % 20_000
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    environment = os.environ | {
        "PYTHONPATH": paths,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port + stage),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "zero_step.py"), str(stage), tied]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    result: list[float] = json.loads(line.removeprefix("RESULT "))
    return result


@pytest.mark.runtime
@pytest.mark.parametrize("tied", ["apart", "tied"])
def test_zero_3_takes_the_steps_of_zero_0(tied: str) -> None:
    pytest.importorskip("deepspeed")
    plain, partitioned = steps(0, tied), steps(3, tied)
    assert plain[1] < plain[0]
    assert partitioned == pytest.approx(plain, rel=1e-5)
