"""Two runs of one plan at once, from two machines: one artifact a stage, and both go on with it (contracts 2 and 4)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_teacher import FaultyTeacher
from stages.asking_runs import Questions

from kd_runtime.artifacts.lineage import list_artifacts
from kd_runtime.artifacts.manifest import manifest_name
from kd_runtime.artifacts.units import UnitStore
from kd_runtime.stages import asking, capture, generate
from kd_runtime.stages.context import StageContext, StageOutcome


@pytest.mark.parametrize("stage", ["answers", "logits"])
def test_whoever_commits_first_wins_and_the_other_goes_on_with_that(
    tmp_path: Path, tiny_models: Path, stage: str
) -> None:
    questions = Questions(tmp_path, tiny_models)
    if stage == "logits":
        questions.given = [{"instruction": f"Say {n}.", "response": f"{n}."} for n in range(12)]
    with FaultyTeacher() as teacher:
        questions.run("dataset")
        plan = questions.plan()
        contexts = [questions.context(plan, stage, teacher) for _ in range(2)]
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(asked, contexts)
    assert first.manifest == second.manifest and first.manifest is not None
    (stored,) = [m for m in list_artifacts(questions.store) if m.stage_type != "ingest"]
    assert stored == first.manifest
    names = {info.name for info in questions.store.list(f"artifacts/{stored.key}/")}
    assert names == {r.name for r in stored.objects if r.name.startswith("artifacts/")} | {manifest_name(stored.key)}
    assert all(count <= 2 for count in (teacher.pairs if stage == "answers" else teacher.rows).values())
    alone = Questions(tmp_path / "alone", tiny_models, given=questions.given)
    alone.folder.mkdir()
    with FaultyTeacher() as teacher:
        undisturbed = alone.run(stage, teacher).manifest
    assert undisturbed and undisturbed.counts == stored.counts
    if stage == "answers":
        assert undisturbed.content_digest == stored.content_digest


def asked(context: StageContext) -> StageOutcome:
    return (generate if context.stage.name == "answers" else capture).run(context)


def test_a_run_that_finds_units_of_another_asks_only_the_rest(
    tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has asked the smoke unit, and half of the rest, when this one begins."""
    questions = Questions(tmp_path, tiny_models)
    cut = asking.cut_units
    monkeypatch.setattr(asking, "cut_units", lambda pairs: cut(pairs, 2))
    with FaultyTeacher() as teacher:
        questions.run("dataset")
        plan = questions.plan()
        half = replace(questions.context(plan, "answers", teacher), workers=2)
        assert asked(half).manifest is None
        before = len(teacher.chats)
        outcome = asked(questions.context(plan, "answers", teacher))
    assert before == 8 and len(teacher.chats) == 12 and set(teacher.pairs.values()) == {1}
    assert outcome.counts["done"] == 12
    units = UnitStore(questions.store, str(plan.stage("answers").asking_key), "w")
    assert len({ref.commit.writer for ref in units.covered().values()}) == 2
