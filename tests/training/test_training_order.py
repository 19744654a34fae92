"""Training's order depends on the rows artifact and the seed alone, and a step's number is all that resuming needs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_runtime.training.order import BLOCK_ROWS, TrainingOrder, deal, shuffled, splitmix64


def order(copies, seed=0, window=2, batch=8, epochs=1, max_steps=None):
    return TrainingOrder(np.asarray(copies), seed, window, batch, epochs, max_steps)


def rows_of(training_order, start=0):
    return [int(row) for batch in training_order.batches(start) for row in batch.rows]


copies_lists = st.lists(st.integers(0, 3), min_size=1, max_size=1200)


@settings(max_examples=40, deadline=None)
@given(copies_lists, st.integers(0, 2**40), st.integers(1, 5), st.integers(1, 200))
def test_each_epoch_shows_every_row_as_often_as_it_has_parents(copies, seed, window, batch):
    run = order(copies, seed, window, batch, epochs=2)
    once = {row: n for row, n in enumerate(copies) if n}
    for epoch in range(2):
        seen = Counter(int(r) for b in run.batches() if b.epoch == epoch for r in b.rows)
        assert seen == once


@settings(max_examples=40, deadline=None)
@given(copies_lists, st.integers(0, 99), st.integers(1, 5), st.integers(1, 200), st.data())
def test_resuming_at_any_step_gives_the_same_rest(copies, seed, window, batch, data):
    run = order(copies, seed, window, batch, epochs=2)
    start = data.draw(st.integers(0, run.steps))
    whole = [b.rows.tolist() for b in run.batches()]
    assert [b.rows.tolist() for b in order(copies, seed, window, batch, epochs=2).batches(start)] == whole[start:]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2000), st.integers(0, 99), st.integers(1, 4), st.data())
def test_leaving_rows_out_does_not_move_the_others(count, seed, window, data):
    left_out = set(data.draw(st.lists(st.integers(0, count - 1), max_size=20)))
    copies = [0 if row in left_out else 1 + row % 2 for row in range(count)]
    everything = rows_of(order([1 + row % 2 for row in range(count)], seed, window))
    assert rows_of(order(copies, seed, window)) == [row for row in everything if row not in left_out]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_batch_size_cuts_the_same_sequence(batch):
    assert rows_of(order([1] * 1000, batch=batch)) == rows_of(order([1] * 1000, batch=1000))


def test_the_last_batch_of_an_epoch_is_kept_and_smaller():
    run = order([1] * 20, batch=8, epochs=2)
    assert [len(b.rows) for b in run.batches()] == [8, 8, 4, 8, 8, 4]


def test_max_steps_bounds_the_run_and_goes_past_one_epoch():
    run = order([1] * 20, batch=8, epochs=None, max_steps=7)
    assert run.steps == 7
    assert [b.epoch for b in run.batches()] == [0, 0, 0, 1, 1, 1, 2]


def test_rows_stay_within_their_window_of_blocks():
    run = order([1] * (BLOCK_ROWS * 8), window=2)
    rows = np.asarray(rows_of(run))
    for start in range(0, len(rows), 2 * BLOCK_ROWS):
        assert len(set(rows[start : start + 2 * BLOCK_ROWS] // BLOCK_ROWS)) == 2


def test_epochs_and_seeds_differ():
    two = rows_of(order([1] * 100, epochs=2))
    assert two[:100] != two[100:]
    assert rows_of(order([1] * 100, seed=1)) != two[:100]


def test_the_order_of_a_seed_never_changes():
    # Written down once: a changed value means that old checkpoints would resume into another order.
    assert [int(x) for x in splitmix64(np.arange(2, dtype=np.uint64))] == [16294208416658607535, 10451216379200822465]
    assert shuffled(10, 7, 0).tolist() == [8, 5, 3, 2, 9, 7, 6, 0, 1, 4]


def test_no_row_at_all_is_no_step():
    assert order([0, 0]).steps == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 500), max_size=70), st.integers(1, 5))
def test_ranks_share_a_batch_without_gap_or_overlap_and_evenly(lengths, ranks):
    shares = deal(np.asarray(lengths, np.int64), ranks)
    assert sorted(i for share in shares for i in share.tolist()) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in share) for share in shares]
    assert max(totals) - min(totals) <= max(lengths, default=0)
