"""`kd stage run`: every end is a result file and an exit class, and success is a manifest in the store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes import fake_model
from manifests import FULL, job

from kd_runtime.api.failures import ExitClass, StorageError
from kd_runtime.api.parse import parse_job
from kd_runtime.api.result import StageResult
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.store import ObjectInfo, open_store
from kd_runtime.planning.resolve import build_plan
from kd_runtime.stages.runner import InUse

SCRIPT = """
import sys, time, types
from pathlib import Path
from kd_runtime.stages import runner
stage = types.ModuleType("kd_runtime.stages.ingest")
def run(ctx):
    print("working", flush=True)
    {body}
stage.run = run
sys.modules["kd_runtime.stages.ingest"] = stage
{patch}
sys.exit(runner.run_stage(runner.StageOptions({store!r}, {plan!r}, {name!r}, cache=Path({cache!r}))))
"""


class Bench:
    """A planned job whose first stage does what a test says."""

    def __init__(self, root: Path):
        self.root = root
        fake_model(root / "teacher", 1)
        fake_model(root / "student", 2)
        (root / "data.jsonl").write_text('{"instruction": "a"}\n')
        self.uri = f"file://{root}/store/"
        self.store = open_store(self.uri)
        document = job(FULL, root, root / "data.jsonl", self.uri)
        self.plan, _ = build_plan(parse_job(document), shipped_runtime("cpu"), self.store)
        self.store.put(f"plans/{self.plan.digest}.json", self.plan.encoded())
        self.result_file = root / "result.json"

    def start(
        self, body: str = "pass", *, plan: str | None = None, name: str = "dataset", patch: str = ""
    ) -> subprocess.Popen[str]:
        cache = str(self.root / "cache")
        script = SCRIPT.format(
            body=body, store=self.uri, plan=plan or self.plan.digest, name=name, cache=cache, patch=patch
        )
        env = {**os.environ, "KD_RESULT_FILE": str(self.result_file)}
        return subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )

    def end(self, process: subprocess.Popen[str]) -> tuple[int, StageResult, str]:
        output, _ = process.communicate(timeout=60)
        result = StageResult.read(self.result_file)
        assert result is not None, output
        assert process.returncode == result.exit_class
        return process.returncode, result, output

    def run(self, *arguments: str, **options: str) -> tuple[int, StageResult, str]:
        return self.end(self.start(*arguments, **options))


COMMIT = (
    "a = ctx.new_artifact(); a.add_bytes(b'x', 'rows/x'); m = a.commit(counts={'out': 1}); "
    "from kd_runtime.stages.context import StageOutcome; return StageOutcome(m, m.counts)"
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_success_names_the_manifest_that_is_in_the_store(bench: Bench) -> None:
    code, result, _ = bench.run(COMMIT)
    assert code == ExitClass.Done
    body = bench.store.get(f"artifacts/{bench.plan.stage('dataset').key}/manifest.json")
    import hashlib

    assert result.manifest_sha256 == hashlib.sha256(body).hexdigest()
    assert result.counts == {"out": 1}


def test_a_stage_that_is_found_does_not_run(bench: Bench) -> None:
    bench.run(COMMIT)
    _, result, output = bench.run("raise AssertionError('ran again')")
    assert result.message == "found"
    assert "working" not in output


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (
            "from kd_runtime.api.failures import DataError; raise DataError('data.jsonl:3: bad; mend it')",
            ExitClass.BadData,
            "data.jsonl:3",
        ),
        (
            "from kd_runtime.api.failures import DeniedError; raise DeniedError('no right')",
            ExitClass.Denied,
            "no right",
        ),
        ("raise MemoryError('too much')", ExitClass.HostOutOfMemory, "too much"),
        ("raise ZeroDivisionError('oops')", ExitClass.Bug, "ZeroDivisionError: oops"),
        ("ctx.input('rows')", ExitClass.Bug, "KeyError"),
    ],
)
def test_an_error_ends_with_its_class_and_its_sentence(bench: Bench, body: str, kind: ExitClass, said: str) -> None:
    code, result, output = bench.run(body)
    assert (code, result.exit_class) == (int(kind), kind)
    assert said in result.message
    assert said in output


def test_where_it_failed_is_in_the_result(bench: Bench) -> None:
    body = "error = runner.TransientError('gone'); error.position = 'unit 3'; raise error"
    code, result, _ = bench.end(bench.start(body))
    assert (code, result.position) == (75, "unit 3")


def test_sigterm_ends_with_143(bench: Bench) -> None:
    process = bench.start("time.sleep(600)")
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGTERM)
    code, result, _ = bench.end(process)
    assert code == ExitClass.Killed
    assert "what was committed is kept" in result.message


def test_a_stage_without_progress_is_ended_as_passing(bench: Bench) -> None:
    code, result, _ = bench.run("time.sleep(600)", patch="runner._stall_seconds = lambda plan, stage: 1")
    assert code == ExitClass.Transient
    assert "no progress for 1 s" in result.message


def test_nothing_that_a_stage_started_is_left(bench: Bench) -> None:
    body = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); raise ValueError('x')"
    _, _, output = bench.run(body)
    pid = int(output.splitlines()[1])
    assert not Path(f"/proc/{pid}").exists()


def test_a_plan_that_is_not_there_is_named(bench: Bench) -> None:
    code, result, _ = bench.run(plan="0" * 64)
    assert code == ExitClass.BadSettings
    assert "holds no such plan" in result.message


def test_a_stage_that_the_plan_lacks_is_named(bench: Bench) -> None:
    code, result, _ = bench.run(name="nothing")
    assert code == ExitClass.BadSettings
    assert "its stages are dataset, answers" in result.message


def test_a_result_of_any_length_fits_its_file() -> None:
    metrics = {f"metric {n}": 1.0 / (n + 1) for n in range(500)}
    result = StageResult(exit_class=ExitClass.Done, message="é" * 1000, counts={"out": 1}, metrics=metrics)
    body = result.encoded()
    assert len(body) <= 4096
    assert json.loads(body)["counts"] == {"out": 1}
    assert len(json.loads(body)["message"].encode()) <= 400


def test_a_long_stage_says_again_and_again_that_its_plan_is_in_use(tmp_path: Path) -> None:
    marked = threading.Event()

    class Marked(FileStore):
        tries = 0

        def put(self, name: str, *arguments: object, **more: object) -> ObjectInfo:
            self.tries += 1
            if self.tries == 1:
                raise StorageError("the store was away that day")
            info = super().put(name, *arguments, **more)  # type: ignore[arg-type]
            marked.set()
            return info

    store = Marked(tmp_path)
    with InUse(store, "p", every=0.001):
        assert marked.wait(30)
    assert store.exists("plans/p.used")
