"""Learning rates, DeepSpeed's configuration, which rows are chosen, and how failures of libraries are read."""

from __future__ import annotations

import numpy as np
import pytest
from training.tiny_runs import settings

from kd_runtime.api.failures import DataError, ExitClass, SettingsError, classify
from kd_runtime.api.job import MissingLogits, ScheduleName
from kd_runtime.training.engine import deepspeed_config
from kd_runtime.training.faults import recognised
from kd_runtime.training.schedule import learning_rate
from kd_runtime.training.selection import RowFacts, select


def rates(schedule, steps=20, warmup=0.1):
    return [learning_rate(step, steps, 1.0, schedule, warmup) for step in range(steps)]


@pytest.mark.parametrize("schedule", list(ScheduleName))
def test_the_rate_rises_to_its_peak_over_the_warm_up(schedule):
    assert rates(schedule)[:3] == pytest.approx([0.5, 1.0, 1.0])


def test_cosine_and_linear_fall_towards_zero_and_constant_stays():
    cosine, linear = rates(ScheduleName.Cosine), rates(ScheduleName.Linear)
    assert cosine[11] == pytest.approx(0.5) == linear[11]
    assert 0 < cosine[-1] < linear[-1] < 0.06
    assert rates(ScheduleName.Constant)[2:] == [1.0] * 18


def test_no_warm_up_starts_at_the_peak():
    assert rates(ScheduleName.Linear, warmup=0.0)[0] == 1.0


def test_deepspeed_config_is_merged_in():
    train = settings(deepspeed={"zeroStage": 2, "config": {"zero_optimization": {"overlap_comm": True}}})
    zero = deepspeed_config(train)["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"]) == (2, True)


@pytest.mark.parametrize(
    ("config", "path", "field"),
    [
        ({"train_batch_size": 8}, "train_batch_size", "globalBatchSize"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage", "deepspeed.zeroStage"),
        ({"optimizer": {"type": "Lion"}}, "optimizer", "train.optimizer"),
        ({"bf16": {"enabled": False}}, "bf16.enabled", "precision"),
    ],
)
def test_deepspeed_config_cannot_set_what_another_field_decides(config, path, field):
    with pytest.raises(SettingsError, match=rf"deepspeed\.config\.{path}: .*{field}"):
        deepspeed_config(settings(deepspeed={"zeroStage": 1, "config": config}))


def facts(**changes):
    columns = {
        "keys": ["k0", "k1", "k2", "k3"],
        "splits": ["train", "heldOut", "train", "train"],
        "sources": ["d:1", "d:2", "d:3", "d:4"],
        "truncated": [False] * 4,
        "parents": [1, 1, 2, 1],
        "tokens": np.asarray([10, 10, 200, 10]),
        "first_scored": np.asarray([5, 5, 5, 5]),
    }
    return RowFacts(**{**columns, **changes})


def chosen(rows=None, **changes):
    options = {"max_length": 100, "keep_truncated": False, "has_logits": None, **changes}
    return select(rows or facts(), **options)


def test_held_out_rows_are_not_trained_on_and_a_row_counts_as_often_as_it_has_parents():
    selection = chosen()
    assert selection.copies.tolist() == [1, 0, 2, 1]
    assert selection.lengths.tolist() == [10, 10, 100, 10]
    assert {k: selection.counts[k] for k in ("in", "done", "leftOut")} == {"in": 4, "done": 4, "leftOut": 0}


def test_truncated_answers_are_left_out_and_counted_unless_kept():
    cut = facts(truncated=[False, False, True, False])
    assert chosen(cut).counts == {"in": 4, "truncated": 2, "rejected": 0, "withoutTarget": 0} | {
        "leftOut": 2,
        "done": 2,
        "missing": 0,
    }
    assert chosen(cut, keep_truncated=True).counts["done"] == 4


def test_rows_that_the_logits_rejected_are_left_out_and_counted():
    selection = chosen(has_logits={"k0", "k2"}.__contains__, rejected={"k3"})
    assert selection.counts["rejected"] == 1
    assert selection.copies.tolist() == [1, 0, 2, 0]


def test_a_missing_row_is_an_error_with_its_key_and_source():
    with pytest.raises(DataError, match=r"1 rows are missing, the first is k3 \(d:4\)"):
        chosen(has_logits={"k0", "k2"}.__contains__)


def test_missing_rows_may_be_learnt_by_cross_entropy():
    selection = chosen(has_logits={"k0"}.__contains__, missing=MissingLogits.CrossEntropy)
    assert selection.has_targets.tolist() == [True, False, False, False]
    assert selection.counts["missing"] == 3


def test_rows_whose_targets_lie_beyond_max_length_are_left_out_and_counted():
    late = facts(first_scored=np.asarray([5, 5, 150, -1]))
    assert chosen(late).counts["withoutTarget"] == 3


def test_no_row_left_is_an_error_that_says_why():
    with pytest.raises(DataError, match="none of the 4 train rows can be trained on"):
        chosen(facts(truncated=[True] * 4))


MEMORY = ExitClass.AcceleratorOutOfMemory


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("[../gloo/pair.cc:1] Connection closed by peer [127.0.0.1]:1"), ExitClass.PeerLost),
        (RuntimeError("NCCL error in: x, unhandled system error"), ExitClass.Transient),
        (RuntimeError("NCCL error in: x\nLast error:\nFailed to CUDA calloc async 608 bytes"), MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MEMORY),
        (RuntimeError("kthvalue CUDA does not have a deterministic implementation, but"), ExitClass.BadSettings),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ExitClass.HostOutOfMemory),
        (MemoryError(), ExitClass.HostOutOfMemory),
        (RuntimeError("shape mismatch"), ExitClass.Bug),
        (SettingsError("x"), ExitClass.BadSettings),
    ],
)
def test_failures_of_libraries_get_their_class(error, kind):
    assert classify(recognised(error)) is kind
