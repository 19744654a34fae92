"""Students learn from every profile, at its temperature, by every divergence that it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training.tiny_runs import TinyRun, make, settings

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize(
    ("spec", "objective"),
    [
        ({"profile": "Compact"}, {"divergence": "AdaptiveKL", "mass": 0.6}),
        ({"profile": "Compact", "temperatures": (2.0,), "entropy": True}, {"divergence": "Skew", "temperature": 2.0}),
        ({"profile": "Unbiased", "m": 4, "entropy": True}, {}),
        ({"profile": "Unbiased", "m": 4, "entropy": True, "temperatures": (2.0,)}, {"temperature": 2.0}),
    ],
)
def test_the_divergence_falls(
    spec: dict[str, Any], objective: dict[str, Any], tmp_path: Path, tiny_models: Path
) -> None:
    made = make(tmp_path / "made", tiny_models, 24, **spec)
    train = settings(epochs=4, objective={"alpha": 1.0, **objective})
    run = TinyRun(made, tiny_models / "student", tmp_path / "run", train)
    run.run()
    first, last = run.records[0], run.records[-1]
    assert last["kd"] < 0.9 * first["kd"]
    assert 0 < first["head_mass_teacher"] < 1
    assert last["agreement"] >= first["agreement"]
