"""Generate and capture as a plan runs them, against a teacher of the test's own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faulty_teacher import FaultyTeacher
from manifests import job

from kd_runtime.api.parse import parse_job
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import read_manifest
from kd_runtime.artifacts.rejects import Reject, read_rejects
from kd_runtime.artifacts.rows import Row, rows_of
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.artifacts.writer import new_writer_id
from kd_runtime.planning.plan import Plan
from kd_runtime.planning.resolve import build_plan
from kd_runtime.stages import capture, generate, ingest
from kd_runtime.stages.context import StageContext, StageOutcome, TeacherAddress
from kd_runtime.telemetry.progress import Reporter

STAGES = {"dataset": ingest.run, "answers": generate.run, "logits": capture.run}
KEY = "sesame"


@dataclass
class Listener(Reporter):
    """Keeps every report."""

    said: list[tuple[int, int, str]] = field(default_factory=list)

    def __init__(self, stage: str) -> None:
        super().__init__(stage, url="")
        self.said = []

    def update(self, completed: int, total: int, unit: str, **more: Any) -> None:
        """Note it."""
        self.said.append((completed, total, unit))
        super().update(completed, total, unit, **more)


@dataclass
class Questions:
    """A dataset of questions, a store, and the stages that ask about them."""

    folder: Path
    models: Path
    count: int = 12
    samples: int = 1
    workers: int = 1
    smoke: int | None = 4
    """Rows of the smoke unit; None: no smoke test."""
    spec: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    capture: dict[str, Any] = field(default_factory=lambda: {"profile": "Exact", "topK": 8})
    given: list[dict[str, Any]] | None = None
    """Rows with answers (fields instruction, response), in place of questions."""
    asked: list[dict[str, Any]] | None = None
    """Rows that the teacher is to answer, in place of questions."""
    dataset: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """A folder's."""
        return open_store(f"file://{self.folder / 'store'}/")

    def plan(self) -> Plan:
        """Of the settings as they are now."""
        rows = self.given or self.asked or [{"instruction": question(n)} for n in range(self.count)]
        data = self.folder / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        body = {"sampling": {"temperature": 0.7, "maxTokens": 24, "seed": 7}, "samplesPerPrompt": self.samples}
        stages: list[dict[str, Any]] = [{"name": "logits", "workers": self.workers, "capture": self.capture}]
        if self.given is None:
            stages.insert(0, {"name": "answers", "workers": self.workers, "generate": {**body, **self.generate}})
        preflight = {"mode": "Off"} if self.smoke is None else {"mode": "Auto", "smokeRows": self.smoke}
        spec = {"preflight": preflight, **self.spec}
        document = job(stages, self.models, data, f"file://{self.folder / 'store'}/", **spec)
        document["spec"]["dataset"]["maxRejectedRatio"] = 0.5
        document["spec"]["dataset"] |= self.dataset
        if self.given is not None:
            document["spec"]["dataset"]["fields"] = {"prompt": "instruction", "response": "response"}
        runtime = shipped_runtime("cpu")
        return build_plan(parse_job(document, runtime), runtime, self.store)[0]

    def run(self, stage: str, teacher: FaultyTeacher | None = None, *, index: int = 0) -> StageOutcome:
        """Run one worker of a stage, and what it reads before it if that is not there."""
        plan = self.plan()
        for source in plan.stage(stage).inputs.values():
            if read_manifest(self.store, plan.stage(source).key) is None:
                self.run(source, teacher)
        return STAGES[stage](self.context(plan, stage, teacher, index))

    def context(self, plan: Plan, stage: str, teacher: FaultyTeacher | None, index: int = 0) -> StageContext:
        """What the stage is handed."""
        work = self.folder / "work" / new_writer_id()
        work.mkdir(parents=True)
        return StageContext(
            plan,
            plan.stage(stage),
            self.store,
            Cache(self.folder / "cache"),
            new_writer_id(),
            Listener(stage),
            work,
            index=index,
            workers=1 if stage == "dataset" else self.workers,
            teacher=TeacherAddress(teacher.url, KEY) if teacher is not None else None,
        )

    def rows(self, outcome: StageOutcome) -> list[Row]:
        """Of an artifact."""
        assert outcome.manifest is not None
        return list(rows_of(Cache(self.folder / "cache"), self.store, outcome.manifest))

    def rejects(self, outcome: StageOutcome) -> list[Reject]:
        """Of an artifact."""
        assert outcome.manifest is not None
        return read_rejects(self.store, outcome.manifest)


def question(number: int) -> str:
    """The text of one row."""
    return f"What is {number}?"
