"""Real vLLM under `kd run`: kill -9 of the teacher's process, and of `kd run` itself, while it answers, leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from local.recording_proxy import recording_proxy
from manifests import job

from kd_runtime.artifacts.store import open_store

pytestmark = pytest.mark.runtime
READY_SECONDS = 400
GONE_SECONDS = 30
SEED = 5


def write(folder: Path, models: Path) -> Path:
    (folder / "data.jsonl").write_text(
        "".join(json.dumps({"instruction": f"Count to {n}."}) + "\n" for n in range(400))
    )
    # Never a stop: each answer takes all its tokens, so that the engine is at work whenever it is asked.
    sampling = {"maxTokens": 120, "temperature": 1.0, "seed": SEED}
    stages = [{"name": "answers", "generate": {"samplesPerPrompt": 8, "keepTruncated": True, "sampling": sampling}}]
    document = job(stages, models, folder / "data.jsonl", f"file://{folder}/store/")
    document["spec"]["teacher"]["hosted"] |= {"engine": "VLLM", "serving": {"enforceEager": True, "maxNumSeqs": 4}}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def running(members: list[psutil.Process]) -> list[list[str]]:
    """The command lines of those that have not ended."""
    _, alive = psutil.wait_procs(members, timeout=GONE_SECONDS)
    return [p.cmdline() for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_no_process_is_left_when_the_teacher_or_the_run_is_killed(tmp_path: Path, tiny_models: Path) -> None:
    log = tmp_path / "run.log"
    store = open_store(f"file://{tmp_path}/store/")
    with recording_proxy(store, SEED) as proxy, log.open("wb") as out:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), **proxy.environment()}
        command = [sys.executable, "-m", "kd_runtime.cli.main", "run", str(write(tmp_path, tiny_models))]
        run = psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)

        def wait_for(condition: Callable[[], bool]) -> None:
            limit = time.monotonic() + READY_SECONDS
            while not condition():
                assert run.poll() is None and time.monotonic() < limit, said(tmp_path)
                time.sleep(0.02)

        try:
            wait_for(lambda: bool(proxy.seen))
            teacher = next(p for p in run.children() if "teacher" in p.cmdline() and "serve" in p.cmdline())
            vllm = teacher.children(recursive=True)
            assert len(vllm) >= 3  # the group's leader, the API server, the engine
            teacher.send_signal(signal.SIGKILL)
            assert running(vllm) == []

            wait_for(lambda: "died and was started again" in log.read_text())
            answered = proxy.answered
            wait_for(lambda: proxy.answered > answered)
            family = run.children(recursive=True)
            assert len(family) >= 5  # the stage and the teacher besides
            run.send_signal(signal.SIGKILL)
            run.wait()
            assert running(family) == []
        finally:
            for process in (*run.children(recursive=True), run) if run.is_running() else ():
                process.kill()


def said(folder: Path) -> str:
    return "\n".join(
        p.read_text(errors="replace")[-3000:] for p in (folder / "run.log", *folder.glob(".kd/runs/*/logs/*"))
    )
