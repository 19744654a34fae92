"""What of an objective changes from step to step, and how entropy weighs positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kd_runtime.api.train import EntropyWeighting, Objective
from kd_runtime.training.batches import collate
from kd_runtime.training.examples import Example
from kd_runtime.training.schedule import moment


def objective(**fields: object) -> Objective:
    return Objective.model_validate(fields)


def test_without_schedules_nothing_changes() -> None:
    given = objective(alpha=0.3, temperature=2.0, beta=0.4)
    assert {moment(given, step, 10, (1.0, 2.0)) for step in range(10)} == {moment(given, 0, 10, (1.0, 2.0))}
    assert vars(moment(given, 0, 10, (1.0, 2.0))) == {"alpha": 0.3, "temperature": 2.0, "beta": 0.4}


def test_schedules_are_linear_from_the_first_step_to_the_last() -> None:
    given = objective(alphaSchedule={"start": 1.0, "end": 0.5}, betaSchedule={"start": 0.1, "end": 0.9})
    found = [moment(given, step, 5, (1.0,)) for step in range(5)]
    assert [each.alpha for each in found] == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5])
    assert [each.beta for each in found] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert moment(given, 0, 1, (1.0,)).alpha == 1.0


def test_a_temperature_is_the_nearest_that_was_captured() -> None:
    given = objective(temperatureSchedule={"start": 4.0, "end": 1.0})
    found = [moment(given, step, 7, (1.0, 2.0, 4.0)).temperature for step in range(7)]
    assert found == [4.0, 4.0, 2.0, 2.0, 2.0, 1.0, 1.0]


def example(positions: int, entropy: list[float] | None) -> Example:
    ids, at = np.arange(positions + 1), np.arange(1, positions + 1)
    if entropy is None:
        return Example("a", ids, at)
    head = np.zeros((positions, 2), np.int32), np.zeros((positions, 2), np.float32), np.zeros(positions, np.float32)
    return Example("b", ids, at, *head, np.array(entropy, np.float32))


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [(EntropyWeighting.Confident, [0, 1, np.exp(-2)]), (EntropyWeighting.Uncertain, [0, 0, 1 - np.exp(-2)])],
)
def test_entropy_weighs_positions_that_have_a_teacher(weighting: EntropyWeighting, expected: list[float]) -> None:
    batch = collate([example(1, None), example(2, [0.0, 2.0])], packing=True, head_entries=2, weighting=weighting)
    assert batch.kd_weights is not None
    torch.testing.assert_close(batch.kd_weights, torch.tensor(expected, dtype=torch.float32))
    filler = collate([], packing=True, head_entries=2, weighting=weighting)
    assert filler.kd_weights is not None and not filler.kd_weights.any()


def test_without_weighting_there_are_no_weights() -> None:
    assert collate([example(2, [0.0, 2.0])], packing=True, head_entries=2).kd_weights is None
