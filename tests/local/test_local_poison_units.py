"""A row that a teacher never answers: at its third attempt the run ends as poison, names unit and row, and keeps all else."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from faulty_teacher import Asked, FaultyTeacher, cut_short, error, free_port
from local.test_local_attempts import Scripted, executor  # noqa: F401 - a fixture
from local.test_local_ends import never
from local.test_local_runs import Place
from stages.asking_runs import Questions, question
from starlette.responses import Response

from kd_runtime.api.failures import ExitClass, TeacherError
from kd_runtime.api.poison import SMOKE_UNIT
from kd_runtime.api.result import StageResult
from kd_runtime.artifacts.units import cut_units, request_seed
from kd_runtime.local.executor import Executor, StageFailed
from kd_runtime.local.poison import Repetition
from kd_runtime.planning.plan import PlannedStage
from kd_runtime.stages import asking, generate

SEED = 0
SMOKE = 4
UNIT = 256
FOREVER = 99
DOWN = ExitClass.TeacherUnreachable


def first_of(unit: int) -> int:
    """The number of a unit's first row."""
    return SMOKE + unit * UNIT


@dataclass
class Run:
    """A job of questions, asked of a teacher that fails some of them for as many attempts as ``poisoned`` says."""

    place: Place
    port: int
    """The teacher's: its address is part of what is asked."""
    name: str
    rows: list[int]
    poisoned: dict[int, int]
    """Question -> attempts that it fails."""
    workers: int = 1
    asked: list[str] = field(default_factory=list)
    asked_again: list[str] = field(default_factory=list)
    """Questions that were asked although they had been committed before the attempt."""
    _committed: dict[int, set[int]] = field(default_factory=dict)
    """Attempts that are over -> the seeds of what was committed when the next one first asked."""

    def fault(self, asked: Asked) -> Response | None:
        self.asked.append(asked.question)
        over = len(self.places())
        if over not in self._committed:
            self._committed[over] = answered(self.place)
        if asked.body["seed"] in self._committed[over]:
            self.asked_again.append(asked.question)
        fails = over < self.poisoned.get(int(asked.question.split()[2].rstrip("?")), 0)
        return (cut_short() if asked.number % 2 else error(500, "out of order")) if fails else None

    def places(self, index: int = 0) -> list[str]:
        """Where each attempt of a worker failed."""
        files = sorted(self.place.root.glob(f".kd/runs/{self.name}/results/answers-*-{index}.json"))
        return [json.loads(path.read_text())["position"] for path in files]

    def kd(self, code: int = 0) -> str:
        """Type `kd run`; what it says, on one line."""
        self.place.questions.write_text("".join(json.dumps({"instruction": question(n)}) + "\n" for n in self.rows))
        generate = {"keepTruncated": True, "sampling": {"seed": SEED}}
        with FaultyTeacher(self.fault, port=self.port) as teacher:
            external = {"baseURL": f"{teacher.url}/v1", "model": "teacher", "outageTimeoutSeconds": 1}
            manifest = self.place.write(
                self.name,
                [{"name": "answers", "workers": self.workers, "generate": generate}],
                teacher={"external": external},
                preflight={"smokeRows": SMOKE},
                failurePolicy={"backoffLimit": 5, "backoff": {"baseSeconds": 1, "maxSeconds": 1}},
            )
            return " ".join(self.place.kd("run", str(manifest), code=code).split())


def answered(place: Place) -> set[int]:
    """The seeds of all that the store holds answers to."""
    commits = [json.loads(path.read_text()) for path in place.root.glob("store/answers/*/*.json")]
    return {request_seed(SEED, row, sample) for commit in commits for row, sample in commit["done"]}


@pytest.mark.runtime
def test_a_row_that_is_never_answered_ends_the_run_as_poison_and_without_it_the_run_goes_on(
    tmp_path: Path, tiny_models: Path
) -> None:
    """Of two workers one has the row, while the other fails in two units and then ends well."""
    place, bad, rows = Place(tmp_path, tiny_models), first_of(1) + 7, list(range(first_of(2) + 10))
    port = free_port()
    first = Run(place, port, "poison", rows, {bad: FOREVER, first_of(0) + 1: 1, first_of(2) + 1: 2}, workers=2)
    said = first.kd(code=70)
    assert "stage answers: poison: TeacherUnreachable at unit 1 3 times in a row" in said
    assert f"unit 1, no answer to questions.jsonl:{bad + 1}: teacher at" in said
    assert "unless it answers nobody, correct them or take them out of the dataset and run again" in said
    assert (first.places(0), first.places(1)) == (["unit 0", "unit 2", ""], ["unit 1"] * 3)
    assert set(first.asked) == {question(n) for n in rows} and not first.asked_again
    assert len(answered(place)) == len(rows) - 1

    # Without it, and with a new one that fails twice in its unit: two are no poison.
    new = rows[-1] + 1
    second = Run(place, port, "again", [n for n in rows if n != bad] + [new], {new: 2})
    second.kd()
    assert second.places() == ["unit 2", "unit 2", ""]
    assert set(second.asked) == {question(new)}


# ---- the executor, with workers of a line each ---------------------------------------------------------------------------


class Failing(Scripted):
    """An executor whose first worker fails in the smoke unit, for which the second waits."""

    def _attempt(self, stage: PlannedStage, attempt: int, progress_url: str) -> StageResult:
        if stage.name != "answers":
            return super()._attempt(stage, attempt, progress_url)
        self.attempts.append(stage.name)
        return Executor._attempt(self, stage, attempt, progress_url)

    def _command(self, stage: PlannedStage, attempt: int, index: int) -> list[str]:
        result = StageResult(exit_class=DOWN, position=SMOKE_UNIT, message="why").encoded()
        fails = f"import os, pathlib; pathlib.Path(os.environ['KD_RESULT_FILE']).write_bytes({result!r}); os._exit(69)"
        return [sys.executable, "-c", "import time; time.sleep(600)" if index else fails]


def test_other_workers_are_ended_where_the_smoke_unit_fails(executor: Scripted) -> None:  # noqa: F811
    (stage,) = executor.plan.spec.stages
    spec = executor.plan.spec.model_copy(update={"stages": (stage.model_copy(update={"workers": 2}),)})
    plan = executor.plan.model_copy(update={"spec": spec})
    failing = Failing(plan, executor.store, executor.folder, executor.cache, executor.display)
    failing.attempts, failing.failures, failing.vanishes = [], {}, False
    with pytest.raises(StageFailed, match="stage answers: poison: TeacherUnreachable at smoke unit 3 times in a row"):
        failing.run()
    assert failing.attempts.count("answers") == 3


# ---- one worker's attempts, in this process -----------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Questions:
    """Twelve: a smoke unit of four, then units of three."""
    monkeypatch.setattr(asking, "cut_units", lambda pairs: cut_units(pairs, 3))
    hosted = {
        "model": {"uri": f"file://{tiny_models / 'teacher'}"},
        "engine": "VLLM",
        "dtype": "float32",
        "maxModelLen": 256,
        "outageTimeoutSeconds": 1,
    }
    made = Questions(tmp_path, tiny_models, spec={"teacher": {"hosted": hosted}})
    made.run("dataset")
    return made


def failed(questions: Questions, teacher: FaultyTeacher, attempt: int) -> TeacherError:
    context = replace(questions.context(questions.plan(), "answers", teacher), attempt=attempt)
    with pytest.raises(TeacherError) as raised:
        generate.run(context)
    return raised.value


def test_a_row_that_brings_the_teacher_down_fails_at_one_unit_though_two_are_asked_at_once(
    questions: Questions,
) -> None:
    def dies(asked: Asked) -> Response | None:
        if asked.question == question(8):
            teacher.die()
            return never(asked)
        return None

    teacher, seen = FaultyTeacher(dies, port=free_port()), []
    for attempt in (1, 1, 2):  # a pod that its Job starts anew has the same number
        with teacher:
            failure = failed(questions, teacher, attempt)
        seen.append(failure.position)
    assert seen[1:] == ["unit 1"] * 2
    assert str(failure).startswith("unit 1, no answer to data.jsonl:9")


def test_of_two_units_that_fail_at_once_it_is_the_first_whichever_gives_up_first(questions: Questions) -> None:
    broken = {question(5), question(8)}
    teacher = FaultyTeacher(lambda asked: error(500) if asked.question in broken else None)
    with teacher:
        assert failed(questions, teacher, 1).position == "unit 0"
        broken.remove(question(5))
        assert failed(questions, teacher, 2).position == "unit 1"


def test_a_teacher_that_is_not_there_is_no_units_fault(questions: Questions) -> None:
    teacher = FaultyTeacher()
    teacher.url = f"http://127.0.0.1:{free_port()}"
    failure = failed(questions, teacher, 1)
    assert failure.position == "" and str(failure).startswith("teacher at")


def test_what_one_worker_fails_at_does_not_hide_anothers_poison() -> None:
    def at(position: str, kind: ExitClass = DOWN) -> StageResult:
        return StageResult(exit_class=kind, position=position, message="why")

    def ends(attempts: list[tuple[StageResult | None, ...]]) -> list[ExitClass]:
        repetition: Any = Repetition()
        return [repetition.judged(next(filter(None, workers)), workers).exit_class for workers in attempts]

    hidden = [(at("unit 0"), at("unit 3")), (at("unit 2"), at("unit 3")), (at("unit 4"), at("unit 3"))]
    assert ends(hidden) == [DOWN, DOWN, ExitClass.Bug]
    passed = [(None, at("unit 3")), (at("unit 0"), None), (at("unit 0"), at("unit 3"))]
    assert ends(passed) == [DOWN] * 3
    apart = [(at("unit 0"), at("unit 3")), (at("unit 0"), at("unit 5")), (at("unit 2"), at("unit 3"))]
    assert ends(apart) == [DOWN] * 3
