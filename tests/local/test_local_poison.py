"""What fails in the same way at the same place three times in a row ends as poison (70), and not before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from local.test_local_attempts import Scripted, executor  # noqa: F401 - a fixture
from local.test_local_runs import Place
from manifests import tiny_train

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.result import StageResult
from kd_runtime.local.executor import StageFailed
from kd_runtime.local.poison import Repetition

CRASHING = Path(__file__).parent / "crashing"
E, S = ExitClass.TeacherUnreachable, ExitClass.Storage


@pytest.mark.parametrize(
    ("failures", "poison"),
    [
        ([(E, "unit 3")] * 3, True),
        ([(E, "unit 3")] * 2, False),
        ([(E, "unit 3"), (E, "unit 4"), (E, "unit 3"), (E, "unit 3")], False),
        ([(E, "unit 3"), (S, "unit 3"), (E, "unit 3"), (E, "unit 3")], False),
        ([(S, "unit 4"), (E, "unit 3"), (E, "unit 3"), (E, "unit 3")], True),
        ([(E, "")] * 5, False),
        ([(ExitClass.Drained, "step 4")] * 5, False),
        ([(ExitClass.Killed, "step 4")] * 5, False),
    ],
)
def test_only_the_third_of_its_kind_in_a_row_is_poison(failures: list[tuple[ExitClass, str]], poison: bool) -> None:
    repetition = Repetition()
    for kind, position in failures:
        result = repetition.judged(StageResult(exit_class=kind, message="why", position=position))
    assert (result.exit_class is ExitClass.Bug) == poison
    if poison:
        assert result.message.startswith("poison: TeacherUnreachable at unit 3 3 times in a row")
        assert result.message.endswith("why")


def test_the_executor_ends_the_stage_there(executor: Scripted) -> None:  # noqa: F811
    executor.failures, executor.vanishes, executor.position = {"answers": 99}, False, "unit 3"
    with pytest.raises(StageFailed, match="stage answers: poison: Transient at unit 3 3 times in a row") as ended:
        executor.run()
    assert ended.value.exit_class is ExitClass.Bug
    assert executor.attempts.count("answers") == 3


@pytest.mark.runtime
def test_a_rank_that_always_dies_at_one_step_is_poison(tmp_path: Path, tiny_models: Path) -> None:
    place = Place(tmp_path, tiny_models)
    stages = [{"name": "student", "train": tiny_train(method="SFT")}]
    policy = {"backoffLimit": 5, "backoff": {"baseSeconds": 1, "maxSeconds": 1}}
    manifest = place.write("poisoned", stages, dataset=place.given(), teacher=None, failurePolicy=policy)
    # A rank gives two signs before its first step, so it dies as it is about to tell of its fourth.
    crash = {"PYTHONPATH": str(CRASHING), "KD_TEST_CRASH": "training.rank|sign-0.new|6"}
    said = place.kd("run", str(manifest), code=70, **crash)
    assert "poison: Transient at step 4 3 times in a row" in said
    results = [json.loads(p.read_text()) for p in place.root.glob(".kd/runs/poisoned/results/student-*.json")]
    assert [result["exit_class"] for result in results] == [75, 75, 75]
