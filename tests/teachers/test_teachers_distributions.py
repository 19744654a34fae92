"""Tail masses, entropies and draws are those of the whole distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_runtime.logits.spec import ShardSpec
from kd_runtime.teachers.distributions import beyond_head, uniforms_of_row
from kd_runtime.teachers.transformers_engine import head_mask, score_positions

VOCAB = 300


def logprobs(positions: int = 5, vocab: int = VOCAB) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.log_softmax(2 * torch.randn(positions, vocab, generator=random), 1)


def test_tail_mass_at_each_temperature() -> None:
    lp, spec = logprobs(), ShardSpec("Exact", 4, 0, (0.5, 2.0), VOCAB)
    inside = head_mask(lp, 4)
    found = beyond_head(lp, inside, spec, np.zeros((5, 0)))
    assert set(found) == {"tail_tau"}
    for column, temperature in enumerate(spec.temperatures):
        expected = (lp.double().exp() ** (1 / temperature) * ~inside).sum(1).log()
        np.testing.assert_allclose(found["tail_tau"][:, column], expected, atol=1e-6)


@pytest.mark.parametrize(("temperatures", "at"), [((), 1.0), ((2.0,), 2.0)])
def test_unbiased_takes_entropy_and_draws_at_its_own_temperature(temperatures: tuple[float, ...], at: float) -> None:
    lp, spec = logprobs(), ShardSpec("Unbiased", 4, 6, temperatures, VOCAB, entropy=True)
    found = beyond_head(lp, head_mask(lp, 4), spec, np.random.default_rng(0).random((5, 6)))
    tempered = torch.log_softmax(lp.double() / at, 1)
    np.testing.assert_allclose(found["entropy"], -(tempered.exp() * tempered).sum(1), atol=1e-6)
    assert found["draws"].shape == (5, 6)


def test_the_entropy_of_other_profiles_is_that_at_one() -> None:
    lp = logprobs()
    spec = ShardSpec("Exact", 4, 0, (2.0,), VOCAB, entropy=True)
    found = beyond_head(lp, head_mask(lp, 4), spec, np.zeros((5, 0)))["entropy"]
    np.testing.assert_allclose(found, -(lp.exp() * lp).double().sum(1), atol=1e-5)


@pytest.mark.parametrize("temperatures", [(), (0.5,), (2.0,)])
def test_draws_follow_the_tail(temperatures: tuple[float, ...]) -> None:
    lp, draws = logprobs(1), 200_000
    inside = head_mask(lp, 4)
    spec = ShardSpec("Unbiased", 4, 8, temperatures, VOCAB, entropy=True)
    uniforms = np.random.default_rng(0).random((1, draws))
    found = beyond_head(lp, inside, spec, uniforms)["draws"][0]
    tail = torch.softmax((lp.double() / spec.own_temperature).masked_fill(inside, -torch.inf), 1)[0].numpy()
    counts = np.bincount(found, minlength=VOCAB)
    assert not counts[inside[0].numpy()].any()
    enough = draws * tail > 5
    expected = draws * tail[enough]
    assert 0.75 < ((counts[enough] - expected) ** 2 / expected).sum() / enough.sum() < 1.25


def test_the_ends_of_the_unit_interval_are_tokens_of_the_tail() -> None:
    lp = logprobs()
    inside = head_mask(lp, 4)
    inside[:, -3:], inside[:, :2] = True, True
    spec = ShardSpec("Unbiased", 4, 2, (), VOCAB, entropy=True)
    ends = np.tile([0.0, np.nextafter(1.0, 0)], (5, 1))
    np.testing.assert_array_equal(beyond_head(lp, inside, spec, ends)["draws"] >= 0, True)
    for position, drawn in enumerate(beyond_head(lp, inside, spec, ends)["draws"]):
        assert not inside[position, drawn].any()
        assert drawn[0] < drawn[1]


def test_without_a_tail_nothing_is_drawn() -> None:
    lp = logprobs(vocab=4)
    spec = ShardSpec("Unbiased", 4, 3, (), 4, entropy=True)
    found = score_positions(lp, torch.zeros(5, dtype=torch.long), spec, np.random.default_rng(0).random((5, 3)))
    assert (found["draws"] == -1).all()
    assert np.isneginf(found["tail_lp"]).all()


def test_uniforms_depend_on_key_position_and_seed_alone() -> None:
    one = uniforms_of_row(b"a" * 16, 9, 4, seed=0)
    np.testing.assert_array_equal(one, uniforms_of_row(b"a" * 16, 9, 4, seed=0))
    np.testing.assert_array_equal(one[:3], uniforms_of_row(b"a" * 16, 3, 4, seed=0))
    assert not (one == uniforms_of_row(b"a" * 16, 9, 4, seed=1)).any()
    assert not (one == uniforms_of_row(b"b" * 16, 9, 4, seed=0)).any()
