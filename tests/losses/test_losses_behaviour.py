"""What the loss promises beyond its formula: zero at equality, independence of chunks and neighbours, ties, statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from losses.examples import DIVERGENCES, case
from torch import nn

from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.losses.head import SparseKDHead

pytestmark = pytest.mark.usefixtures("each_row_pass")

ON = torch.ones(1, dtype=torch.bool)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_zero_where_the_student_is_the_stored_teacher(divergence: str) -> None:
    """The teacher goes through f16 planes and the reader's normalisation; value and gradient all but vanish."""
    vocab, k, positions = 4096, 32, 128
    random = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(vocab, 64, generator=random) / 3)
    hidden = torch.randn(positions, 64, generator=random).requires_grad_()
    lp = torch.log_softmax((hidden @ weight.t()).detach().double(), 1)
    top = lp.topk(k)
    spec = ShardSpec("Exact", k, vocab=vocab)
    row = TeacherRow(
        key=bytes(16),
        input_ids=np.arange(positions + 1),
        scored=np.arange(positions + 1) > 0,
        lab_lp=lp[:, 0].numpy(),
        lab_rank=np.ones(positions),
        top_ids=top.indices.numpy(),
        top_lp=top.values.numpy(),
    )
    targets = build_planes(spec, [row]).row(0)
    stored = [torch.from_numpy(array) for array in (targets.top_ids, targets.top_lp, targets.tail_lp)]
    head = SparseKDHead(weight, vocab=vocab, divergence=divergence)
    masks = (ON.expand(positions), ~ON.expand(positions))
    assert targets.rounding is not None
    rounding = torch.from_numpy(targets.rounding)
    labels = torch.zeros(positions, dtype=torch.long)
    loss, sums = head(hidden, labels, *stored, *masks, rounding=rounding, per_position=True)
    assert sums.positions is not None
    assert float(sums.positions["kd"].abs().max()) <= 1e-6
    loss.backward()
    log_half = 2.0**-10
    assert hidden.grad is not None
    assert float(hidden.grad.norm(dim=1).max()) <= 2 * log_half * float(weight.detach().norm(dim=1).mean())
    assert float(sums.stats["top1_agree"]) == positions
    assert float(sums.stats["topk_overlap"]) == positions


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_exactly_zero_where_the_targets_are_not_rounded(divergence: str) -> None:
    built = case(divergence=divergence, ce_weight=0.0)
    built = built.with_(teacher=built.logits().detach())
    loss, _ = built.fast()
    assert abs(float(loss.detach())) < 1e-12
    if divergence != "TVD":  # its slope jumps there
        assert all(float(gradient.abs().max()) < 1e-12 for gradient in built.gradients(loss))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_chunks_do_not_matter(divergence: str) -> None:
    built = case(positions=50, dtype=torch.float32, divergence=divergence)
    whole, sums = built.fast(1000)
    expected = built.gradients(whole)
    for chunk in (1, 7, 16, 49, 50):
        loss, found = built.fast(chunk)
        torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
        torch.testing.assert_close(found.kd, sums.kd, rtol=1e-6, atol=0)
        for one, other in zip(built.gradients(loss), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_neighbour_changes_no_other_position() -> None:
    built = case(dtype=torch.float32)
    _, before = built.fast()
    changed = built.hidden.detach().clone()
    changed[3] += 1
    _, after = built.with_(hidden=changed.requires_grad_()).fast()
    assert before.positions is not None and after.positions is not None
    others = torch.arange(len(changed)) != 3
    for name in before.positions:
        assert torch.equal(before.positions[name][others], after.positions[name][others])
    assert not torch.equal(before.positions["ce"][3], after.positions["ce"][3])


def test_masked_positions_may_hold_anything() -> None:
    built = case()
    head, tail = built.targets()
    ids = built.top_ids.clone()
    clean = built.fast()[0]
    kd_off, ce_off = ~built.kd_mask, ~built.ce_mask & ~built.kd_mask
    head[kd_off], tail[kd_off], ids[kd_off] = torch.nan, torch.nan, -1
    labels = torch.where(ce_off, -100, built.labels)
    given = {"kd_weight": built.kd_weight, "ce_weight": built.ce_weight}
    dirty, sums = built.head()(built.hidden, labels, ids, head, tail, built.kd_mask, built.ce_mask, **given)
    torch.testing.assert_close(dirty, clean)
    for one, other in zip(built.gradients(dirty), built.gradients(built.fast()[0]), strict=True):
        torch.testing.assert_close(one, other)
    assert int(sums.kd_count) == int(built.kd_mask.sum())
    assert int(sums.ce_count) == int(built.ce_mask.sum())


def test_a_shorter_head_is_padded_with_negative_ids() -> None:
    built = case(k=4)
    head, tail = built.targets()
    given = {"kd_weight": built.kd_weight, "ce_weight": built.ce_weight}
    masks = (built.kd_mask, built.ce_mask)
    ids = torch.cat([built.top_ids, torch.full((23, 3), -1)], 1)
    padded = torch.cat([head, torch.zeros(23, 3)], 1)
    loss, sums = built.head()(built.hidden, built.labels, ids, padded, tail, *masks, **given)
    expected, plain = built.fast()
    torch.testing.assert_close(loss, expected)
    for name in plain.stats:
        torch.testing.assert_close(sums.stats[name], plain.stats[name])


def test_without_a_head_it_is_cross_entropy() -> None:
    built = case(padding=0)
    none = torch.zeros(23, dtype=torch.bool)
    masks = (none, built.ce_mask)
    loss, sums = built.head()(built.hidden, built.labels, None, None, None, *masks, kd_weight=0.0, ce_weight=1.0)
    expected = nn.functional.cross_entropy(
        built.hidden @ built.weight.t(), torch.where(built.ce_mask, built.labels, -100), reduction="sum"
    )
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(built.gradients(loss), built.gradients(expected), strict=True):
        torch.testing.assert_close(found, wanted)
    assert float(sums.kd) == 0
    assert int(sums.kd_count) == 0


def test_no_positions_give_a_loss_of_zero_with_gradients() -> None:
    built = case(positions=0)
    loss, _ = built.fast()
    assert float(loss.detach()) == 0
    assert [float(gradient.abs().sum()) for gradient in built.gradients(loss)] == [0, 0]


def test_extreme_logits_stay_finite() -> None:
    for divergence in DIVERGENCES:
        for factor in (1e3, -1e3):
            built = case(dtype=torch.float32, divergence=divergence)
            built = built.with_(hidden=(built.hidden.detach() * factor).requires_grad_())
            loss, _ = built.fast()
            assert torch.isfinite(loss)
            assert all(torch.isfinite(gradient).all() for gradient in built.gradients(loss))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_head_that_is_the_whole_vocabulary_has_no_tail(divergence: str) -> None:
    built = case(vocab=9, k=9, divergence=divergence)
    loss, _ = built.fast()
    assert torch.isfinite(loss)
    for found, expected in zip(built.gradients(loss), built.gradients(built.dense_without_tail()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_padded_rows_of_the_weight_take_no_part() -> None:
    built = case(padding=5)
    with torch.no_grad():
        built.weight[-5:] = 1e6
    loss, _ = built.fast()
    _, gradient = built.gradients(loss)
    assert float(gradient[-5:].abs().max()) == 0
    torch.testing.assert_close(loss, built.dense())


def test_statistics_are_those_of_dense_logits() -> None:
    built = case(positions=200, vocab=1000, k=5)
    built = built.with_(teacher=0.3 * built.teacher + built.logits().detach())
    _, sums = built.fast(64)
    z, ids = built.logits().detach(), built.top_ids
    log_q, log_p = torch.log_softmax(z, 1), torch.log_softmax(built.teacher, 1)
    mine = z.topk(5).indices
    expected = {
        "kd": None,
        "ce": -log_q.gather(1, built.labels[:, None])[:, 0],
        "teacher_head_mass": log_p.gather(1, ids).exp().sum(1),
        "student_head_mass": log_q.gather(1, ids).exp().sum(1),
        "top1_agree": (z.argmax(1) == ids[:, 0]).double(),
        "topk_overlap": (mine[:, :, None] == ids[:, None, :]).any(2).double().mean(1),
        "student_entropy": -(log_q.exp() * log_q).sum(1),
    }
    assert sums.positions is not None
    assert set(sums.positions) == set(expected)
    on, either = built.kd_mask, built.kd_mask | built.ce_mask
    for name, values in expected.items():
        if values is None:
            continue
        mask = either if name in ("ce", "student_entropy") else on
        torch.testing.assert_close(sums.positions[name][mask], values[mask], msg=name)
        if name in sums.stats:
            torch.testing.assert_close(sums.stats[name], values[mask].sum(), msg=name)
    assert 0 < float(sums.stats["top1_agree"]) < int(on.sum())
    assert int(sums.stats["positions"]) == int(either.sum())


def test_ties_count_as_agreement() -> None:
    head = SparseKDHead(nn.Parameter(torch.eye(6)), vocab=6)
    tied_student = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    lp = torch.log(torch.tensor([[0.4, 0.3]]))
    tail, label = torch.log(torch.tensor([0.3])), torch.tensor([5])

    def agree(hidden: torch.Tensor, ids: list[int], lp: torch.Tensor) -> float:
        return float(head(hidden, label, torch.tensor([ids]), lp, tail, ON, ON)[1].stats["top1_agree"])

    assert agree(tied_student, [1, 4], lp) == 1
    assert agree(tied_student, [2, 1], lp) == 0
    tied_teacher = torch.log(torch.tensor([[0.35, 0.35]]))
    assert agree(tied_student, [2, 1], tied_teacher) == 1


def test_evaluation_forms_no_gradient() -> None:
    built = case()
    with torch.no_grad():
        loss, _ = built.fast()
    assert not loss.requires_grad
    torch.testing.assert_close(loss, built.fast()[0].detach())
