"""What a teacher gave, through the planes of each profile, into the loss: zero at equality, gradients, unbiasedness."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from losses.examples import DIVERGENCES, PARAMETERS
from torch import Tensor, nn

from kd_runtime.api.failures import SettingsError
from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.losses import reference
from kd_runtime.losses.head import LossSums, SparseKDHead
from kd_runtime.teachers.distributions import uniforms_of_row
from kd_runtime.teachers.transformers_engine import score_positions

PAIRS = [(name, profile) for profile in ("Exact", "Compact") for name in DIVERGENCES] + [("ForwardKL", "Unbiased")]


@dataclass(frozen=True)
class Stored:
    """A teacher's targets as the reader gives them, as tensors."""

    ids: Tensor
    lp: Tensor
    tail: Tensor
    entropy: Tensor | None
    draws: int
    labels: Tensor


def spec_of(profile: str, vocab: int, temperature: float = 1.0, k: int = 16) -> ShardSpec:
    unbiased = profile == "Unbiased"
    others = () if temperature == 1 else (temperature,)
    return ShardSpec(profile, k, 8 if unbiased else 0, others, vocab, entropy=unbiased)


def stored(lp: Tensor, spec: ShardSpec, temperature: float = 1.0, key: bytes = bytes(16), repeats: int = 1) -> Stored:
    """Teacher logprobs [P, V], each position ``repeats`` times over, captured and read back."""
    lp = lp.float().repeat_interleave(repeats, 0)
    labels = lp.argmax(1)
    uniforms = uniforms_of_row(key, len(lp), spec.m, seed=0)
    parts = [
        score_positions(lp[at : at + 64], labels[at : at + 64], spec, uniforms[at : at + 64])
        for at in range(0, len(lp), 64)
    ]
    fields = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ids = np.concatenate([[0], labels.numpy()])
    row = build_planes(spec, [TeacherRow(key, ids, np.arange(len(ids)) > 0, **fields)]).row(0, temperature).with_draws()
    assert row.top_ids is not None
    entropy = None if row.entropy is None else torch.from_numpy(row.entropy)
    head = (torch.from_numpy(row.top_ids).long(), torch.from_numpy(row.top_lp), torch.from_numpy(row.tail_lp))
    return Stored(*head, entropy, spec.m, labels)


def student(positions: int, vocab: int, width: int = 24, seed: int = 0) -> tuple[Tensor, nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(vocab, width, generator=random) / 2)
    return torch.randn(positions, width, generator=random).requires_grad_(), weight


def teacher_like(logits: Tensor, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.log_softmax(logits.detach() + torch.randn(logits.shape, generator=random), 1)


def run(
    hidden: Tensor, weight: nn.Parameter, targets: Stored, divergence: str, temperature: float = 1.0
) -> tuple[Tensor, LossSums]:
    head = SparseKDHead(
        weight, vocab=len(weight), divergence=divergence, parameters=PARAMETERS, temperature=temperature
    )
    on = torch.ones(len(hidden), dtype=torch.bool)
    arguments = (hidden, targets.labels, targets.ids, targets.lp, targets.tail, on, on)
    loss, sums = head(
        *arguments, kd_weight=0.7, ce_weight=0.3, entropy=targets.entropy, draws=targets.draws, per_position=True
    )
    return loss, sums


def dense(hidden: Tensor, weight: nn.Parameter, targets: Stored, divergence: str, temperature: float = 1.0) -> Tensor:
    """The loss of :func:`run` in float64 over whole distributions, but for a constant where there are draws."""
    z = hidden.double() @ weight.double().t()
    log_q = torch.log_softmax(z / temperature, 1)
    ids = targets.ids.clamp(min=0)
    if targets.draws:
        t = torch.where(targets.ids >= 0, targets.lp.double().exp(), 0)
        kd = -(t * log_q.gather(1, ids)).sum(1)
    else:
        log_p = torch.cat([targets.lp, targets.tail[:, None]], 1).double().clamp(min=-1e4)
        kd = reference.divergence(divergence, PARAMETERS)(log_p, reference.bucketed(log_q, ids))
    return 0.7 * temperature**2 * kd.sum() + 0.3 * reference.ce_loss(z, targets.labels).sum()


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
    """The mean within 1e-6 (Exact at T = 1) or 1e-3 (Compact, and other T). TVD grows with the rounding itself, where
    the others grow with its square: within 1e-3 and 3e-2 there."""
    hidden, weight, targets = at_equality(profile, temperature)
    _, sums = run(hidden, weight, targets, divergence, temperature)
    bound = 1e-6 if profile == "Exact" and temperature == 1 else 1e-3
    if divergence == "TVD":
        bound = (1e-3 if profile == "Exact" else 3e-2) * temperature**2
    assert abs(float(sums.kd)) / len(hidden) <= bound


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


FULL, DISTINCT, COPIES = 151_936, 64, 64


@cache
def full_size(profile: str) -> tuple[Tensor, nn.Parameter, Stored]:
    """64 positions over the whole vocabulary of Qwen."""
    hidden, weight = student(DISTINCT, FULL, 32)
    return hidden, weight, stored(teacher_like(hidden @ weight.t()), spec_of(profile, FULL, k=32))


@pytest.mark.runtime
@pytest.mark.parametrize(("divergence", "profile"), PAIRS)
def test_gradients_at_full_size_are_those_of_a_float64_reference(divergence: str, profile: str) -> None:
    """Vocabulary 151,936 and 4,096 positions: 64 distinct ones, 64 times over, so that the reference fits in memory."""
    hidden, weight, targets = full_size(profile)
    many = hidden.detach().repeat(COPIES, 1).requires_grad_()
    tiled = Stored(
        *(each.repeat(COPIES, *[1] * (each.dim() - 1)) for each in (targets.ids, targets.lp, targets.tail)),
        None if targets.entropy is None else targets.entropy.repeat(COPIES),
        targets.draws,
        targets.labels.repeat(COPIES),
    )
    found = torch.autograd.grad(run(many, weight, tiled, divergence)[0], [many, weight])
    expected = torch.autograd.grad(dense(hidden, weight, targets, divergence), [hidden, weight])
    assert len(found[0]) == 4096
    for one, other in ((found[0].view(COPIES, DISTINCT, -1), expected[0]), (found[1] / COPIES, expected[1])):
        bound = 1e-5 * float(other.abs().max())
        assert float((one - other).abs().max()) <= bound
