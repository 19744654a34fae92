"""Rows become micro-batches: shared out to ranks, cut by rows or tokens, packed or padded, each target at its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_runtime.training.batches import MicroBatchRule, collate, longest, share_out
from kd_runtime.training.examples import Example

lengths_of_a_step = st.lists(st.integers(2, 300), min_size=1, max_size=40)
rules = st.one_of(
    st.builds(MicroBatchRule, rows=st.integers(1, 9)), st.builds(MicroBatchRule, tokens=st.integers(1, 900))
)


def example(length: int, first: int = 0, scored: tuple[int, ...] = (), entries: int = 0) -> Example:
    ids = np.arange(first, first + length, dtype=np.int64)
    positions = np.asarray(scored or range(1, length), np.int64)
    if not entries:
        return Example(str(first), ids, positions)
    top_ids = (positions[:, None] + np.arange(entries)).astype(np.int32)
    top_lp = np.full(top_ids.shape, -1.0, np.float32)
    return Example(str(first), ids, positions, top_ids, top_lp, np.full(len(positions), -2.0, np.float32))


@settings(max_examples=80, deadline=None)
@given(lengths_of_a_step, st.integers(1, 4), rules, st.booleans())
def test_every_row_of_a_step_is_in_one_micro_batch_and_ranks_have_equally_many(lengths, ranks, rule, packing):
    shares = share_out(np.asarray(lengths), ranks, rule, packing)
    assert len({len(share) for share in shares}) == 1
    rows = [int(row) for share in shares for micro_batch in share for row in micro_batch]
    assert sorted(rows) == list(range(len(lengths)))


@settings(max_examples=80, deadline=None)
@given(lengths_of_a_step, rules, st.booleans())
def test_a_micro_batch_stays_within_its_bound_or_is_one_row(lengths, rule, packing):
    for micro_batch in share_out(np.asarray(lengths), 1, rule, packing)[0]:
        sizes = [lengths[row] for row in micro_batch]
        tokens = sum(sizes) if packing else max(sizes) * len(sizes)
        within = len(sizes) <= rule.rows if rule.rows else tokens <= rule.tokens
        assert within or len(sizes) == 1


@settings(max_examples=60, deadline=None)
@given(lengths_of_a_step, rules, st.booleans())
def test_the_longest_micro_batch_of_all_rows_is_none_too_short(lengths, rule, packing):
    chosen = longest(np.asarray(lengths), rule, packing)
    tokens = sum(chosen) if packing else max(chosen) * len(chosen)
    assert max(lengths) == chosen.max() or tokens >= max(lengths)
    if rule.rows:
        assert sorted(chosen.tolist(), reverse=True) == sorted(lengths, reverse=True)[: rule.rows]


@pytest.mark.parametrize("packing", [True, False])
def test_a_target_pairs_with_the_hidden_state_one_before_its_token(packing):
    examples = [example(5, 100, (2, 4)), example(3, 200, (1, 2))]
    batch = collate(examples, packing=packing, head_entries=0)
    flat = batch.input_ids.reshape(-1)
    assert flat[batch.sources].tolist() == [101, 103, 200, 201]
    assert batch.label_ids.tolist() == [102, 104, 201, 202]
    assert batch.row_of.tolist() == [0, 0, 1, 1]
    assert batch.tokens == 8


def test_packed_positions_start_again_with_each_row():
    batch = collate([example(3), example(2)], packing=True, head_entries=0)
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.attention_mask is None


def test_padding_is_masked():
    batch = collate([example(3), example(2)], packing=False, head_entries=0)
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]


@pytest.mark.parametrize("packing", [True, False])
def test_every_tensor_has_memory_of_its_own_and_can_be_pinned(packing):
    """An H100's host refused a view of positions, and with it all training without packing."""
    batch = collate([example(3, entries=4), example(2)], packing=packing, head_entries=4)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert "position_ids" in tensors
    assert {name for name, value in tensors.items() if not value.is_contiguous()} == set()


def test_rows_without_logits_count_for_cross_entropy_alone():
    batch = collate([example(3, entries=4), example(3)], packing=True, head_entries=4)
    assert batch.kd_mask.tolist() == [True, True, False, False]
    assert batch.ce_mask.all()
    assert batch.top_ids is not None and batch.top_ids[2:].eq(-1).all()


def test_a_filler_counts_for_nothing():
    batch = collate([], packing=True, head_entries=4)
    assert (batch.tokens, int(batch.ce_mask.sum()), int(batch.kd_mask.sum())) == (0, 0, 0)
    assert batch.input_ids.shape == (1, 2)


def test_a_row_whose_targets_are_all_cut_off_has_no_position():
    empty = Example("", np.arange(4), np.zeros(0, np.int64))
    batch = collate([empty, example(3)], packing=True, head_entries=0)
    assert batch.row_of.tolist() == [1, 1]
    assert torch.equal(batch.label_ids, torch.tensor([1, 2]))
