"""An input that is made anew, or vanishes, under a stage: nothing is trained on a mixture (contract 2)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_teacher import FaultyTeacher
from stages.asking_runs import Questions

from kd_runtime.api.failures import ExitClass, TransientError
from kd_runtime.api.result import StageResult
from kd_runtime.artifacts.lineage import Presence, lineage
from kd_runtime.artifacts.manifest import Manifest, ObjectRef, delete_artifact, read_manifest
from kd_runtime.artifacts.rows import RowsWriter
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id
from kd_runtime.planning.lookup import Lookup, look_up


@pytest.fixture
def questions(tmp_path: Path, tiny_models: Path) -> Questions:
    return Questions(tmp_path, tiny_models)


def make_anew(questions: Questions) -> None:
    """Delete the dataset's artifact, and make another under its key that lacks the last row."""
    plan, store = questions.plan(), questions.store
    rows = questions.rows(questions.run("dataset"))
    delete_artifact(store, plan.stage("dataset").key)
    writer = RowsWriter(questions.folder / "anew")
    for row in rows[:-1]:
        writer.append(row)
    artifact = ArtifactWriter(store, key=plan.stage("dataset").key, stage_type="ingest", writer=new_writer_id())
    for path in writer.close():
        artifact.add_file(path, f"rows/{path.name}")
    artifact.commit(counts={"in": 11, "done": 11, "rejected": 0, "out": 11})


@pytest.mark.runtime
def test_a_kept_child_of_an_input_that_was_made_anew_is_stale_and_made_again(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        first = questions.run("answers", teacher).manifest
        make_anew(questions)
        plan = questions.plan()
        state = look_up(plan, questions.store)["answers"]
        assert state.state is Lookup.Stale and "input rows (dataset) has other content now" in state.why
        result = stage_run(questions, "answers", teacher)
    again = read_manifest(questions.store, plan.stage("answers").key)
    assert first and again and result.exit_class is ExitClass.Done and result.manifest_sha256 == again.sha256
    assert (first.counts["done"], again.counts["done"]) == (12, 11)
    assert again.inputs["rows"].content_digest != first.inputs["rows"].content_digest
    assert len(teacher.chats) == 12  # its answers were there
    assert questions.store.exists(f"history/{first.sha256}.json")
    assert look_up(plan, questions.store)["answers"].state is Lookup.Found
    assert [node.presence for _, node in lineage(questions.store, again.key).inputs] == [Presence.Present]


@pytest.mark.runtime
def test_a_reader_whose_object_vanished_ends_with_75_and_names_it(questions: Questions) -> None:
    _, rows = without_its_rows(questions)
    with FaultyTeacher() as teacher:
        result = stage_run(questions, "answers", teacher)
        assert not teacher.chats
    assert result.exit_class is ExitClass.Transient
    assert f"{rows.name}: is not there; plan again" in result.message


@pytest.mark.runtime
def test_an_artifact_that_lost_an_object_is_none_and_is_made_again(questions: Questions) -> None:
    first, rows = without_its_rows(questions)
    state = look_up(questions.plan(), questions.store)["dataset"]
    assert (state.state, state.manifest, state.lost) == (Lookup.ToDo, None, rows.name)
    assert f"its object {rows.name} is gone" in state.why
    with FaultyTeacher() as teacher:
        result = stage_run(questions, "dataset", teacher)
    again = look_up(questions.plan(), questions.store)["dataset"]
    assert result.exit_class is ExitClass.Done and again.state is Lookup.Found and again.manifest
    assert again.manifest.content_digest == first.content_digest and again.manifest.sha256 == result.manifest_sha256
    assert questions.store.exists(f"history/{first.sha256}.json")


def test_a_reader_whose_input_was_collected_meanwhile_says_plan_again(questions: Questions) -> None:
    plan = questions.plan()
    questions.run("dataset")
    with FaultyTeacher() as teacher:
        context = questions.context(plan, "answers", teacher)
        delete_artifact(questions.store, plan.stage("dataset").key)
        with pytest.raises(TransientError, match=r"input 'rows' \(stage 'dataset'.* is not in .*; plan again"):
            context.input("rows")


def without_its_rows(questions: Questions) -> tuple[Manifest, ObjectRef]:
    """The dataset's manifest, and the one object of rows that it names and that is gone."""
    manifest = questions.run("dataset").manifest
    assert manifest
    (rows,) = manifest.select("rows/")
    questions.store.delete(rows.name)
    return manifest, rows


def stage_run(questions: Questions, stage: str, teacher: FaultyTeacher) -> StageResult:
    """`kd stage run`, as an executor types it."""
    plan, folder = questions.plan(), questions.folder
    questions.store.put(f"plans/{plan.digest}.json", plan.encoded())
    environment = {
        **os.environ,
        "KD_TEACHER_URL": teacher.url,
        "KD_TEACHER_KEY": "sesame",
        "KD_RESULT_FILE": str(folder / "result"),
    }
    arguments = [
        "--store",
        questions.store.uri,
        "--plan",
        plan.digest,
        "--stage",
        stage,
        "--cache",
        str(folder / "new"),
    ]
    subprocess.run(
        [sys.executable, "-m", "kd_runtime.cli.main", "stage", "run", *arguments], env=environment, check=False
    )
    result = StageResult.read(folder / "result")
    assert result is not None
    return result
