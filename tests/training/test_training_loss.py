"""At fixed weights a row's targets and loss are its own: no order, accumulation, packing, rank or shard changes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training.tiny_runs import Made, make, selection_of, settings, write_shards

from kd_runtime.artifacts.rows import RowsReader
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.training.batches import MicroBatch, MicroBatchRule, collate, share_out
from kd_runtime.training.examples import Example, ExampleSource
from kd_runtime.training.order import Batch, TrainingOrder
from kd_runtime.training.student import Student, build_student

pytestmark = pytest.mark.runtime

ROWS = 24
FOUR_ROWS = MicroBatchRule(rows=4)


@dataclass(frozen=True)
class Way:
    """One way of going over the rows."""

    seed: int = 0
    batch_rows: int = 8
    rule: MicroBatchRule = FOUR_ROWS
    world: int = 1
    epoch: int = 0
    packing: bool = True
    shard_rows: int = 7


PLAIN = Way()
WAYS = {
    "shuffled otherwise": Way(seed=5),
    "accumulated over 4": Way(rule=MicroBatchRule(rows=2)),
    "not accumulated": Way(rule=MicroBatchRule(rows=8)),
    "by tokens": Way(rule=MicroBatchRule(tokens=100)),
    "two ranks": Way(world=2),
    "second epoch": Way(epoch=1),
    "padded": Way(packing=False),
    "padded, one row each": Way(packing=False, rule=MicroBatchRule(rows=1)),
    "shards of 1 row": Way(shard_rows=1),
    "one shard": Way(shard_rows=1000),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Made:
    return make(tmp_path_factory.mktemp("rows"), tiny_models, ROWS)


@pytest.fixture(scope="module")
def student(tiny_models: Path, made: Made) -> Student:
    return built(tiny_models / "student", made, packing=True)


def built(folder: Path, made: Made, *, packing: bool) -> Student:
    torch.manual_seed(0)
    student = build_student(folder, settings(packing=packing), made.vocabulary)
    return student.eval()


def source_of(made: Made, shards: list[Path], max_length: int = 128) -> ExampleSource:
    selection = selection_of(made, settings())
    reader = LogitsReader(shards, made.spec)
    return ExampleSource(RowsReader(made.row_files), reader, selection.has_targets, max_length, 8)


def micro_batches(way: Way, made: Made, source: ExampleSource) -> list[tuple[list[Example], MicroBatch]]:
    """All micro-batches of one epoch of one way, of all its ranks."""
    order = TrainingOrder(np.ones(ROWS, np.int32), way.seed, 4, way.batch_rows, way.epoch + 1)
    lengths = np.asarray([len(row.input_ids) for row in made.rows])
    steps: list[Batch] = [batch for batch in order.batches() if batch.epoch == way.epoch]
    found = []
    for batch in steps:
        for rank in share_out(lengths[batch.rows], way.world, way.rule, way.packing):
            for share in rank:
                examples = source.examples(batch.rows[share])
                found.append((examples, collate(examples, packing=way.packing, head_entries=made.spec.k)))
    return found


@torch.no_grad()
def losses(student: Student, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """KD and CE of each position."""
    _, sums = student.head(
        student.hidden(batch),
        batch.label_ids,
        batch.top_ids,
        batch.top_lp,
        batch.tail_lp,
        batch.kd_mask,
        batch.ce_mask,
        per_position=True,
    )
    assert sums.positions is not None
    return sums.positions["kd"], sums.positions["ce"]


def by_row(student: Student, way: Way, made: Made, source: ExampleSource) -> dict[str, tuple[float, float]]:
    """Each row's summed KD and CE."""
    found = {}
    for examples, batch in micro_batches(way, made, source):
        kd, ce = losses(student, batch)
        for number, example in enumerate(examples):
            mine = batch.row_of == number
            found[example.key] = (float(kd[mine].double().sum()), float(ce[mine].double().sum()))
    return found


def targets_by_row(way: Way, made: Made, source: ExampleSource) -> dict[str, tuple[bytes, ...]]:
    found = {}
    for examples, batch in micro_batches(way, made, source):
        for number, example in enumerate(examples):
            mine = batch.row_of == number
            planes = (batch.label_ids, batch.top_ids, batch.top_lp, batch.tail_lp)
            found[example.key] = tuple(plane[mine].numpy().tobytes() for plane in planes if plane is not None)
    return found


@pytest.mark.parametrize("name", WAYS)
def test_targets_are_bit_identical_and_losses_agree(
    name: str, made: Made, student: Student, tiny_models: Path, tmp_path: Path
) -> None:
    way = WAYS[name]
    shards = write_shards(tmp_path, tiny_models / "teacher", made.rows, made.spec, way.shard_rows)
    source, plain_source = source_of(made, shards), source_of(made, made.shards)
    targets = targets_by_row(way, made, source)
    assert len(targets) == ROWS
    assert targets == targets_by_row(PLAIN, made, plain_source)
    used = student if way.packing else built(tiny_models / "student", made, packing=False)
    rows, plain = by_row(used, way, made, source), by_row(student, PLAIN, made, plain_source)
    for key, values in plain.items():
        assert rows[key] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_truncation_changes_no_loss_of_the_positions_kept(
    packing: bool, made: Made, student: Student, tiny_models: Path
) -> None:
    used = student if packing else built(tiny_models / "student", made, packing=False)
    whole, cut = source_of(made, made.shards), source_of(made, made.shards, max_length=20)
    everything = np.arange(ROWS)
    kd, ce = losses(used, long := collate(whole.examples(everything), packing=packing, head_entries=made.spec.k))
    kd_cut, ce_cut = losses(used, short := collate(cut.examples(everything), packing=packing, head_entries=made.spec.k))
    assert 0 < len(kd_cut) < len(kd)
    for row in range(ROWS):
        kept = int((short.row_of == row).sum())
        mine, mine_cut = torch.nonzero(long.row_of == row)[:kept, 0], short.row_of == row
        assert torch.equal(long.top_lp[mine], short.top_lp[mine_cut])
        assert torch.allclose(kd[mine], kd_cut[mine_cut], rtol=1e-5, atol=1e-6)
        assert torch.allclose(ce[mine], ce_cut[mine_cut], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["rows", "sdpa", "eager"])
def test_a_packed_neighbour_changes_no_other_rows_loss(attention: str, made: Made, tiny_models: Path) -> None:
    student = built(tiny_models / "student", made, packing=True)
    if attention != "rows":
        student.language_model.set_attn_implementation(attention)
        student.own_attention = False
    examples = source_of(made, made.shards).examples(np.arange(4))
    other = replace(examples[1], input_ids=(examples[1].input_ids + 7) % made.vocabulary)
    before, after = (
        collate(rows, packing=True, head_entries=made.spec.k)
        for rows in (examples, [examples[0], other, *examples[2:]])
    )
    (kd, ce), (kd_after, ce_after) = losses(student, before), losses(student, after)
    neighbours = before.row_of != 1
    assert torch.equal(kd[neighbours], kd_after[neighbours])
    assert torch.equal(ce[neighbours], ce_after[neighbours])
    assert not torch.equal(ce[~neighbours], ce_after[~neighbours])


def test_the_divergence_is_zero_where_the_student_is_the_teacher(tmp_path: Path, made: Made, tiny_models: Path) -> None:
    student = built(tiny_models / "teacher", made, packing=True)
    batch = collate(source_of(made, made.shards).examples(np.arange(ROWS)), packing=True, head_entries=made.spec.k)
    kd, _ = losses(student, batch)
    assert abs(float(kd.mean())) < 1e-6
    assert float(kd.abs().max()) < 5e-6


def test_a_student_whose_logits_are_not_those_of_its_loss_is_refused(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd_runtime.api.failures import SettingsError

    student.check_logits(torch.device("cpu"))
    monkeypatch.setattr(student.language_model.config, "logit_scale", 2.0, raising=False)
    with pytest.raises(SettingsError, match=r"^spec\.student\.model: the logits of Qwen3ForCausalLM .*scale 2"):
        student.check_logits(torch.device("cpu"))


def test_packing_is_checked_on_the_model_itself(made: Made, student: Student) -> None:
    from kd_runtime.api.failures import SettingsError

    student.check_packing(torch.device("cpu"))
    leaking = student.backbone.forward

    def without_positions(**arguments: object) -> object:
        return leaking(**{**arguments, "position_ids": None, "row_lengths": (int(arguments["input_ids"].shape[1]),)})

    student.backbone.forward = without_positions
    try:
        with pytest.raises(SettingsError, match=r"train\.packing: .*see each other"):
            student.check_packing(torch.device("cpu"))
    finally:
        del student.backbone.forward
