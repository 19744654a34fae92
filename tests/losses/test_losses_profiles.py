"""What a teacher gave, through the planes of each profile, into the loss: zero at equality, gradients, unbiasedness."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from losses.captured import PAIRS, Stored, dense, run, spec_of, stored, student, teacher_like
from torch import Tensor, nn

from kd_runtime.api.failures import SettingsError
from kd_runtime.losses import reference
from kd_runtime.losses.head import SparseKDHead

pytestmark = pytest.mark.usefixtures("each_row_pass")


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(("divergence", "profile"), PAIRS)
def test_gradients_are_those_of_a_float64_reference(divergence: str, profile: str, temperature: float) -> None:
    """In float32 and on the very targets that the planes gave."""
    hidden, weight = student(40, 900)
    logits = hidden @ weight.t()
    targets = stored(teacher_like(logits), spec_of(profile, 900, temperature), temperature)
    loss, _ = run(hidden, weight, targets, divergence, temperature)
    found = torch.autograd.grad(loss, [hidden, weight])
    dense_loss = dense(hidden, weight, targets, divergence, temperature)
    for one, expected in zip(found, torch.autograd.grad(dense_loss, [hidden, weight]), strict=True):
        bound = 3e-6 * float(expected.abs().max()) + 1e-6
        torch.testing.assert_close(one, expected, rtol=0, atol=bound)


@cache
def at_equality(profile: str, temperature: float) -> tuple[Tensor, nn.Parameter, Stored]:
    """A student, and targets that are its own distributions through the planes."""
    hidden, weight = student(100, 2048, 64)
    hidden = (hidden.detach() * 0.7).requires_grad_()
    lp = torch.log_softmax((hidden @ weight.t()).detach(), 1)
    return hidden, weight, stored(lp, spec_of(profile, 2048, temperature, k=32), temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(("divergence", "profile"), PAIRS[:-1])
def test_zero_where_the_student_is_the_teacher(divergence: str, profile: str, temperature: float) -> None:
    """The mean within 1e-6 (Exact at T = 1) or 1e-3 (Compact, and other T). TVD, which grows with the rounding itself,
    is measured to the nearest that is stored alike: it has no slope there either."""
    hidden, weight, targets = at_equality(profile, temperature)
    _, sums = run(hidden, weight, targets, divergence, temperature)
    bound = 1e-6 if profile == "Exact" and temperature == 1 else 1e-3
    assert abs(float(sums.kd)) / len(hidden) <= bound
    if divergence == "TVD":
        assert float(sums.kd) == 0


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("profile", ["Exact", "Compact"])
def test_total_variation_gives_away_no_more_than_what_storing_rounds(profile: str, temperature: float) -> None:
    """Against the same targets taken at their word: less by at most the entries' bounds, and never more."""
    hidden, weight = student(40, 900)
    targets = stored(teacher_like(hidden @ weight.t()), spec_of(profile, 900, temperature), temperature)
    _, found = run(hidden, weight, targets, "TVD", temperature)
    _, plain = run(hidden, weight, replace(targets, rounding=None), "TVD", temperature)
    assert found.positions is not None and plain.positions is not None
    given = plain.positions["kd"] - found.positions["kd"]
    assert targets.rounding is not None
    off = (targets.rounding + 2**-11 * 20 / temperature) * 2  # no entry's logprob is below -20 here
    assert bool((given > 0).any()) and bool((given >= -1e-6).all())
    assert bool((given <= temperature**2 * torch.expm1(off)).all())


def test_total_variation_alone_tells_the_rounding_where_it_is_not_told_of_it() -> None:
    hidden, weight, targets = at_equality("Compact", 1.0)
    _, sums = run(hidden, weight, replace(targets, rounding=None), "TVD")
    assert float(sums.kd) / len(hidden) > 1e-4


def test_unbiased_reports_the_cross_entropy_above_the_teachers_entropy() -> None:
    """Its mean over draws is the divergence of the whole distributions, although no single target is the teacher's."""
    hidden, weight = student(6, 500)
    logits = hidden @ weight.t()
    lp = teacher_like(logits)
    targets = stored(lp, spec_of("Unbiased", 500), repeats=2000)
    _, sums = run(hidden.detach().repeat_interleave(2000, 0), weight, targets, "ForwardKL")
    assert sums.positions is not None
    found = sums.positions["kd"].view(6, 2000)
    expected = reference.forward_kl(lp.double(), torch.log_softmax(logits.detach().double(), 1))
    error = found.std(1) / 2000**0.5 + 2e-3
    assert bool(((found.mean(1) - expected).abs() < 4 * error).all())


def test_the_mean_gradient_of_draws_is_that_of_the_whole_distribution() -> None:
    """16 fixed random projections, each within 4 standard errors; and the ids drawn pass a chi-squared test."""
    repeats, vocab = 5000, 2000
    hidden, weight = student(1, vocab)
    logits = hidden @ weight.t()
    lp = teacher_like(0.5 * logits)
    spec = spec_of("Unbiased", vocab)
    targets = stored(lp, spec, repeats=repeats)
    many = hidden.detach().repeat_interleave(repeats, 0).requires_grad_()
    head = SparseKDHead(weight, vocab=vocab)
    on = torch.ones(repeats, dtype=torch.bool)
    loss, _ = head(many, targets.labels, targets.ids, targets.lp, targets.tail, on, ~on, draws=spec.m)
    (found,) = torch.autograd.grad(loss, [many])
    whole = (torch.softmax(logits.detach().double(), 1) - lp.double().exp()) @ weight.detach().double()
    directions = torch.randn(16, hidden.shape[1], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    projected, expected = found.double() @ directions.t(), (whole @ directions.t())[0]
    error = projected.std(0) / repeats**0.5
    assert bool(((projected.mean(0) - expected).abs() < 4 * error).all())
    assert bool((projected.std(0) > 0).all())

    inside = torch.zeros(vocab, dtype=torch.bool)
    inside[targets.ids[0, : spec.k]] = True
    tail = torch.softmax(lp.double()[0].masked_fill(inside, -torch.inf), 0)
    drawn, mass = targets.ids[:, spec.k :], targets.lp[:, spec.k :].double().exp()
    per_draw = mass.sum(1, keepdim=True) / spec.m
    counts = torch.zeros(vocab, dtype=torch.float64).index_add_(
        0, drawn.clamp(min=0).flatten(), torch.where(drawn >= 0, mass / per_draw, 0).flatten()
    )
    wanted = repeats * spec.m * tail
    often = wanted > 5
    assert int(often.sum()) > 1000
    chi_squared = ((counts - wanted).square() / wanted)[often].sum() / often.sum()
    assert 0.9 < float(chi_squared) < 1.1


def test_statistics_of_draws_are_those_of_the_head_alone() -> None:
    hidden, weight = student(60, 400)
    lp = teacher_like(0.3 * hidden @ weight.t())
    _, drawn = run(hidden, weight, stored(lp, spec_of("Unbiased", 400)), "ForwardKL")
    _, plain = run(hidden, weight, stored(lp, spec_of("Exact", 400)), "ForwardKL")
    for name in (
        "teacher_head_mass",
        "student_head_mass",
        "top1_agree",
        "topk_overlap",
        "student_entropy",
        "positions",
    ):
        torch.testing.assert_close(drawn.stats[name], plain.stats[name], rtol=1e-5, atol=1e-4, msg=name)


def test_only_forward_kl_is_unbiased_on_draws() -> None:
    hidden, weight = student(4, 100)
    targets = stored(teacher_like(hidden @ weight.t()), spec_of("Unbiased", 100))
    with pytest.raises(SettingsError, match=r"objective\.divergence: ReverseKL is biased on draws .*use ForwardKL"):
        run(hidden, weight, targets, "ReverseKL")
