"""The command line: what it prints, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fakes import fake_model
from manifests import FULL, job
from typer.testing import CliRunner

import kd_runtime
from kd_runtime.artifacts.store import open_store
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id
from kd_runtime.cli.main import app

CORPUS = Path(__file__).parents[1] / "api" / "corpus"


def kd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kd_runtime.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def manifest(tmp_path: Path, **changes: object) -> Path:
    fake_model(tmp_path / "teacher", 1)
    fake_model(tmp_path / "student", 2)
    (tmp_path / "data.jsonl").write_text('{"instruction": "a"}\n')
    document = job(FULL, tmp_path, tmp_path / "data.jsonl", f"file://{tmp_path}/store/")
    document["spec"].update(changes)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_good_manifest_is_ok_and_its_inputs_are_shown(tmp_path: Path) -> None:
    done = kd("lint", str(manifest(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert "ok" in done.stdout
    assert "logits of logits" in done.stdout


def test_a_bad_manifest_exits_64_with_every_error(tmp_path: Path) -> None:
    stages = [dict(stage) for stage in FULL]
    stages[1] = {"name": "logits", "capture": {"profile": "Exact", "topK": 300, "topk": 3}}
    done = kd("lint", str(manifest(tmp_path, stages=stages)))
    assert done.returncode == 64
    assert "spec.stages[1].capture.topK: 300" in done.stdout
    assert "topk" in done.stdout


def test_a_failure_is_one_sentence_and_its_class(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    (tmp_path / "student" / "model.safetensors").write_bytes(b"short")
    done = kd("plan", str(path))
    assert done.returncode == 65
    assert "Traceback" not in done.stderr
    assert "model.safetensors" in done.stderr


def test_planning_runs_nothing_and_prints_keys(tmp_path: Path) -> None:
    done = kd("plan", str(manifest(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("to do") >= 6
    assert not list((tmp_path / "store").glob("artifacts/*"))


@pytest.mark.parametrize("kind", ["DistillationJob", "ClusterDistillationRuntime"])
def test_the_schema_is_json_schema(kind: str) -> None:
    done = CliRunner().invoke(app, ["schema", kind])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["type"] == "object"


def test_what_a_store_holds_is_listed_and_traced(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store/")
    made = {}
    for key, inputs in (("a" * 64, {}), ("b" * 64, {"rows": "a" * 64})):
        writer = ArtifactWriter(
            store, key=key, stage_type="generate" if inputs else "ingest", writer=new_writer_id(), externals={"dataset": "d" * 64},
            inputs={role: (k, made[k].content_digest) for role, k in inputs.items()}, settings={}, recorded={},
        )  # fmt: skip
        writer.add_bytes(b"rows", "rows/0")
        made[key] = writer.commit(counts={"out": 7})
    listed = CliRunner().invoke(app, ["ls", "--store", f"file://{tmp_path}/store/"])
    assert "a" * 16 in listed.stdout
    assert "ingest" in listed.stdout
    traced = CliRunner().invoke(app, ["lineage", "bbbb", "--store", f"file://{tmp_path}/store/"])
    assert "rows: ingest aaaa" in traced.stdout
    assert "dataset: dddd" in traced.stdout


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["version"]).stdout.strip()


def test_an_engine_that_is_none_is_named_with_those_that_are(tmp_path: Path) -> None:
    done = kd("teacher", "serve", "--model", str(tmp_path), "--engine", "vllm")
    assert (done.returncode, done.stderr) == (
        64,
        "BadSettings: --engine vllm: is no engine; use one of VLLM, Transformers\n",
    )


MARKUP = "[/x] [b]bold[/b] :key: [link=http://x]"


def test_what_a_manifest_says_is_printed_as_it_is(tmp_path: Path) -> None:
    path = manifest(tmp_path, runtimeRef={"name": MARKUP})
    for command, stream in (("lint", "stdout"), ("plan", "stderr")):
        done = kd(command, str(path))
        assert done.returncode == 64, done.stderr
        assert f"spec.runtimeRef.name: {MARKUP} " in getattr(done, stream)


def test_only_one_place_makes_consoles_so_that_no_command_prints_markup() -> None:
    sources = (Path(kd_runtime.__file__).parent).rglob("*.py")
    assert [path.name for path in sources if "Console(" in path.read_text().replace("console(", "")] == ["consoles.py"]
