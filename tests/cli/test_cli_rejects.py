"""`kd rejects list` and `export` name every record that a dataset lost, by file and line, whether that was fatal or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import FULL, job
from stages.test_stages_ingest_rejects import BAD, GOOD
from typer.testing import CliRunner

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.writer import new_writer_id
from kd_runtime.cli.main import app
from kd_runtime.local.folder import RunFolder, RunState
from kd_runtime.local.manifest import load_job
from kd_runtime.local.run import plan_manifest
from kd_runtime.stages import ingest
from kd_runtime.stages.context import StageContext
from kd_runtime.telemetry.progress import Reporter

LINES = [line for bad, _, _ in BAD.values() for line in (bad, json.dumps(GOOD).encode())]
WANTED = {f"d.jsonl:{2 * number + 1}": reason for number, (_, reason, _) in enumerate(BAD.values())}
"""Source -> reason: every second line is bad."""


def write(folder: Path, models: Path, ratio: float, lines: list[bytes]) -> Path:
    (folder / "d.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    document = job(FULL[:3], models, folder / "d.jsonl", f"file://{folder}/store/")
    fields = {"prompt": "question", "response": "answer"}
    document["spec"]["dataset"] |= {"fields": fields, "maxRejectedRatio": ratio}
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return folder / "job.yaml"


def run_ingest(manifest: Path) -> dict[str, int]:
    """The first stage of `kd run`, in this process."""
    local = load_job(manifest)
    planned = plan_manifest(manifest, None, probe=False)
    planned.store.put(f"plans/{planned.plan.digest}.json", planned.plan.encoded())
    RunFolder(local.run_folder).keep(RunState("run", planned.plan.digest))
    work = manifest.parent / "work" / new_writer_id()
    work.mkdir(parents=True)
    context = StageContext(
        planned.plan, planned.plan.stage("dataset"), planned.store, Cache(local.folder / "cache"), new_writer_id(),
        Reporter("dataset", url=""), work,
    )  # fmt: skip
    return ingest.run(context).counts


def kd(*arguments: str, **environment: str) -> str:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300", **environment})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def listed(manifest: Path) -> list[dict[str, Any]]:
    out = manifest.parent / "out.jsonl"
    kd("rejects", "export", str(manifest), str(out))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_kind_of_bad_record_is_listed_by_file_and_line(tmp_path: Path, tiny_models: Path) -> None:
    manifest = write(tmp_path, tiny_models, 0.6, LINES)
    counts = run_ingest(manifest)
    assert (counts["in"], counts["done"], counts["rejected"]) == (len(LINES), len(BAD), len(BAD))
    assert {entry["source"]: entry["reason"] for entry in listed(manifest)} == WANTED
    assert set(Counter(WANTED.values())) == {"BadJSON", "NotUTF8", "WrongField", "Empty", "TooLong"}
    text = kd("rejects", "list", str(manifest))
    for source, reason in WANTED.items():
        assert any(source in line and reason in line for line in text.splitlines()), source
    assert text.rstrip().endswith(f"{len(BAD)} rejected rows")
    assert f"{len(BAD)} rejected rows, 3 shown" in kd("rejects", "list", str(manifest), "--limit", "3")


def test_more_than_the_policy_allows_is_fatal_and_still_listed_until_it_is_mended(
    tmp_path: Path, tiny_models: Path
) -> None:
    manifest = write(tmp_path, tiny_models, 0.1, LINES)
    for _ in range(2):  # an attempt's list takes the place of the one before
        with pytest.raises(DataError, match=rf"{len(BAD)} of {len(LINES)} rows are rejected .*first: d.jsonl:1 "):
            run_ingest(manifest)
        assert {entry["source"]: entry["reason"] for entry in listed(manifest)} == WANTED
        assert len(listed(manifest)) == len(BAD)
    run_ingest(write(tmp_path, tiny_models, 0.6, LINES))
    assert not [path for path in (tmp_path / "store").rglob("*") if "work" in path.parts]
    assert len(listed(manifest)) == len(BAD)


def test_what_looks_like_markup_is_shown_as_it_is(tmp_path: Path, tiny_models: Path) -> None:
    good = json.dumps(GOOD).encode()
    manifest = write(tmp_path, tiny_models, 0.6, [good, b'{"[/bold]": "[red]", "answer": "x"}'])
    run_ingest(manifest)
    assert "the row has [/bold], answer" in kd("rejects", "list", str(manifest))


def test_a_stage_that_is_not_there_is_named(tmp_path: Path, tiny_models: Path) -> None:
    manifest = write(tmp_path, tiny_models, 0.6, LINES[-2:])
    run_ingest(manifest)
    with pytest.raises(
        SettingsError, match="--stage answer: the job has no such stage; its stages are dataset, answers"
    ):
        kd("rejects", "list", str(manifest), "--stage", "answer")
    with pytest.raises(SettingsError, match="--stage dataset: is no stage that asks a teacher"):
        kd("rejects", "retry", str(manifest), "--stage", "dataset")


@pytest.mark.runtime
def test_kd_run_ends_with_65_and_names_file_and_line_before_any_teacher_starts(
    tmp_path: Path, tiny_models: Path
) -> None:
    lines = [json.dumps(GOOD).encode(), b'{"question": "x", "answer"']
    manifest = write(tmp_path, tiny_models, 0.1, lines)
    done = subprocess.run(
        [sys.executable, "-m", "kd_runtime.cli.main", "run", str(manifest)],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    assert done.returncode == 65
    assert "maxRejectedRatio: 1 of 2 rows are rejected" in done.stderr and "d.jsonl:2 BadJSON" in done.stderr
    assert not list((tmp_path / ".kd/runs/tiny/logs").glob("teacher*"))
    assert [entry["source"] for entry in listed(manifest)] == ["d.jsonl:2"]
