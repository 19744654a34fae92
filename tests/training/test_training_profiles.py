"""Students learn from every profile, at its temperature, by every divergence that it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training.tiny_runs import TinyRun, make, settings

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize(
    ("spec", "objective", "epochs"),
    [
        ({"profile": "Compact"}, {"divergence": "AdaptiveKL", "mass": 0.6}, 4),
        (
            {"profile": "Compact", "temperatures": (2.0,), "entropy": True},
            {"divergence": "Skew", "temperature": 2.0},
            4,
        ),
        ({"profile": "Compact"}, {"divergence": "TVD"}, 12),  # its gradient is bounded: far off it is slow
        ({"profile": "Unbiased", "m": 4, "entropy": True}, {}, 4),
        ({"profile": "Unbiased", "m": 4, "entropy": True, "temperatures": (2.0,)}, {"temperature": 2.0}, 4),
    ],
)
def test_the_divergence_falls(
    spec: dict[str, Any], objective: dict[str, Any], epochs: int, tmp_path: Path, tiny_models: Path
) -> None:
    made = make(tmp_path / "made", tiny_models, 24, **spec)
    train = settings(epochs=epochs, objective={"alpha": 1.0, **objective})
    run = TinyRun(made, tiny_models / "student", tmp_path / "run", train)
    run.run()
    first, last = run.records[0], run.records[-1]
    assert last["kd"] < 0.9 * first["kd"]
    assert 0 < first["head_mass_teacher"] < 1
    assert last["agreement"] >= first["agreement"]


def test_schedules_and_entropy_weights_are_trained_by_and_logged(tmp_path: Path, tiny_models: Path) -> None:
    made = make(tmp_path / "made", tiny_models, 24, profile="Compact", temperatures=(2.0,), entropy=True)
    objective = {
        "divergence": "JSD",
        "alphaSchedule": {"start": 1.0, "end": 0.5},
        "betaSchedule": {"start": 0.2, "end": 0.8},
        "temperatureSchedule": {"start": 2.0, "end": 1.0},
        "entropyWeighting": "Uncertain",
    }
    train = settings(epochs=3)
    train = train.model_copy(update={"objective": type(train.objective).model_validate(objective)})
    run = TinyRun(made, tiny_models / "student", tmp_path / "run", train).run()
    assert [record["temperature"] for record in run.records[::4]] == [2.0, 1.0, 1.0]
    assert run.records[0]["alpha"] == 1.0 and run.records[-1]["alpha"] == 0.5
    assert run.records[0]["beta"] == 0.2 and run.records[-1]["beta"] == 0.8
    assert run.records[0]["loss"] != pytest.approx(run.records[0]["kd"], rel=1e-3)
    assert run.records[-1]["ce"] < run.records[0]["ce"]


def test_two_ranks_weigh_by_entropy_as_one_does(tmp_path: Path, tiny_models: Path) -> None:
    made = make(tmp_path / "made", tiny_models, 24, entropy=True)
    train = settings(objective={"entropyWeighting": "Confident"})
    runs = [TinyRun(made, tiny_models / "student", tmp_path / str(n), train, n).run() for n in (1, 2)]
    for one, two in zip(runs[0].records, runs[1].records, strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-6)
