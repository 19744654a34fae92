"""Which checkpoint a train stage goes on from: one of the same rows and steps, or none (contracts 2 and 8)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from manifests import job, tiny_train

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.parse import parse_job
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import read_manifest, retire
from kd_runtime.artifacts.rows import RowsWriter, rows_of
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id
from kd_runtime.planning.plan import Plan
from kd_runtime.planning.resolve import build_plan
from kd_runtime.stages import ingest, train
from kd_runtime.stages.context import StageContext
from kd_runtime.telemetry.progress import Reporter
from kd_runtime.training import checkpoints
from kd_runtime.training.gang import GangError, Placement
from kd_runtime.training.task import RankTask

DONE = 2


@dataclass
class Training:
    """A dataset with answers and an SFT stage on it, whose gangs are drained after `DONE` steps of theirs."""

    folder: Path
    models: Path
    tasks: list[RankTask] = field(default_factory=list)
    """What each gang was told."""
    said: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        """A folder's."""
        return open_store(f"file://{self.folder / 'store'}/")

    def plan(self) -> Plan:
        """Of 12 rows, 4 a step."""
        data = self.folder / "data.jsonl"
        rows = [{"instruction": f"What is {n}?", "response": f"It is {n}."} for n in range(12)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        body = tiny_train(method="SFT", objective=None, epochs=4)
        document = job(
            [{"name": "student", "train": body}], self.models, data, self.store.uri, preflight={"mode": "Off"}
        )
        document["spec"]["dataset"] |= {"fields": {"prompt": "instruction", "response": "response"}}
        document["spec"]["dataset"] |= {"holdout": {"fraction": 0.0}}
        del document["spec"]["teacher"]
        runtime = shipped_runtime("cpu")
        return build_plan(parse_job(document, runtime), runtime, self.store)[0]

    def context(self, stage: str) -> StageContext:
        """What the stage is handed."""
        plan, work = self.plan(), self.folder / new_writer_id()
        work.mkdir()
        reporter = Reporter(stage, url="")
        return StageContext(plan, plan.stage(stage), self.store, self.cache, new_writer_id(), reporter, work)

    @property
    def cache(self) -> Cache:
        """A folder's."""
        return Cache(self.folder / "cache")

    def drained(self) -> RankTask:
        """Run the train stage until it is drained; what its gang was told."""
        if read_manifest(self.store, self.plan().stage("dataset").key) is None:
            ingest.run(self.context("dataset"))
        with pytest.raises(GangError):
            train.run(self.context("student"))
        return self.tasks[-1]

    def gang(self, ctx: StageContext, task: RankTask, placement: Placement, *, drains: bool = True) -> RankTask:
        """Stands for `train._run`: a checkpoint, and exit class 80."""
        self.tasks.append(task)
        step = task.resume_step + DONE
        state = ctx.work / "a.pt"
        state.write_bytes(b"%d" % step)
        prefix = checkpoints.step_prefix(ctx.stage.key, ctx.writer, step)
        refs = checkpoints.upload(ctx.store, prefix, ctx.work, ["a.pt"], lambda: None)
        checkpoint = checkpoints.Checkpoint(
            step=step,
            world_size=1,
            trajectory=task.trajectory,
            micro_batch={"rows": 4},
            threads=1,
            writer=ctx.writer,
            objects=tuple(refs),
        )
        checkpoints.commit(ctx.store, ctx.stage.key, checkpoint, task.train.checkpoint.keep_last)
        raise GangError(ExitClass.Drained, "drained")

    def say(self, ctx: StageContext, message: str) -> None:
        """Stands for `train._say`."""
        self.said.append(message)

    def without_the_last_rows(self, count: int) -> None:
        """Make the dataset's artifact anew, under its key, with less in it."""
        key = self.plan().stage("dataset").key
        manifest = read_manifest(self.store, key)
        assert manifest is not None
        rows = list(rows_of(self.cache, self.store, manifest))[:-count]
        retire(self.store, key)
        writer = RowsWriter(self.folder / "anew")
        for row in rows:
            writer.append(row)
        artifact = ArtifactWriter(self.store, key=key, stage_type="ingest", writer=new_writer_id())
        for path in writer.close():
            artifact.add_file(path, f"rows/{path.name}")
        artifact.commit(counts={"in": len(rows), "done": len(rows), "rejected": 0, "out": len(rows)})


@pytest.fixture
def training(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    made = Training(tmp_path, tiny_models)
    monkeypatch.setattr(train, "_run", made.gang)
    monkeypatch.setattr(train, "_say", made.say)
    return made


def resumed(task: RankTask) -> tuple[int, bool]:
    return task.resume_step, task.resume is not None


def test_it_goes_on_where_the_last_attempt_was_drained(training: Training) -> None:
    assert [resumed(training.drained()) for _ in range(3)] == [(0, False), (DONE, True), (2 * DONE, True)]
    assert training.tasks[0].trajectory.steps == 12


@pytest.mark.parametrize("gone", [1, 8])
def test_it_starts_anew_where_an_input_has_other_content_under_its_key(training: Training, gone: int) -> None:
    """With 1 row less there are as many steps, in another order; with 8 less fewer than were done."""
    before = training.drained().trajectory
    training.drained()
    training.without_the_last_rows(gone)
    task = training.drained()
    assert resumed(task) == (0, False)
    assert task.trajectory.steps == (12 if gone == 1 else 4)
    was, now = (each.inputs["rows"].content_digest[:12] for each in (before, task.trajectory))
    assert len(training.said) == 3  # it went on once, and passed over two
    assert all(f"input rows had content {was} when it was written, and has {now} now" in s for s in training.said[1:])


def test_what_the_manifest_will_record_of_the_inputs_is_what_a_checkpoint_records(training: Training) -> None:
    task, planned = training.drained(), training.plan().stage("dataset")
    manifest: Any = read_manifest(training.store, planned.key)
    recorded = {role: (ref.key, ref.content_digest) for role, ref in task.trajectory.inputs.items()}
    assert recorded == {"rows": (planned.key, manifest.content_digest)}
