"""Whole runs of a gang on the tiny models: every ZeRO stage, SFT, KD, LoRA, both precisions, and the model that they leave."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training.tiny_runs import Made, TinyRun, make, settings

from kd_runtime.api.failures import ExitClass
from kd_runtime.models.loading import load_causal_lm
from kd_runtime.training.gang import GangError
from kd_runtime.training.task import MicroBatchBound

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Made:
    return make(tmp_path_factory.mktemp("rows"), tiny_models, 21, parents=(2,))


@pytest.fixture
def train(made: Made, tiny_models: Path, tmp_path: Path) -> Any:
    def run(ranks: int = 1, bound: MicroBatchBound | None = None, name: str = "run", **changes: Any) -> TinyRun:
        tiny = TinyRun(made, tiny_models / "student", tmp_path / name, settings(**changes), ranks)
        if bound is not None:
            tiny.bound = bound
        return tiny.run()

    return run


@pytest.fixture(scope="module")
def reference(made: Made, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """KD for two epochs on one rank, unsharded."""
    folder = tmp_path_factory.mktemp("reference")
    return TinyRun(made, tiny_models / "student", folder, settings(epochs=2)).run()


def assert_equal_runs(run: TinyRun, reference: TinyRun, tolerance: float = 1e-5) -> None:
    """Same records, and weights of which few differ by more than rounding."""
    for record, expected in zip(run.records, reference.records, strict=True):
        assert record == pytest.approx(expected, rel=tolerance, abs=1e-6)
    weights, others = load_file(run.weights), load_file(reference.weights)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.allclose(value, others[name], atol=2e-4), name


def test_the_log_has_what_the_report_draws(reference: TinyRun) -> None:
    assert [record["step"] for record in reference.records] == [1, 2, 3, 4, 5, 6]
    assert [record["epoch"] for record in reference.records] == [0, 0, 0, 1, 1, 1]
    assert [record["rows"] for record in reference.records] == [8, 8, 6, 8, 8, 6]
    names = {"step", "epoch", "rows", "tokens", "kd", "ce", "loss", "lr", "grad_norm", "agreement", "overlap"}
    assert names | {"head_mass_teacher", "head_mass_student"} <= reference.records[0].keys()
    first, last = reference.records[0], reference.records[-1]
    assert last["kd"] < first["kd"] and last["ce"] < first["ce"]


def test_the_model_left_is_one_that_transformers_loads(reference: TinyRun, tiny_models: Path) -> None:
    model = load_causal_lm(reference.weights.parent)
    untrained = load_causal_lm(tiny_models / "student")
    assert model.config.architectures == untrained.config.architectures
    assert model.dtype == torch.float32
    assert reference.weights.stat().st_mode & 0o777 == 0o644
    assert not torch.equal(model.get_input_embeddings().weight, untrained.get_input_embeddings().weight)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_at_every_zero_stage_do_what_one_rank_does(train: Any, reference: TinyRun, stage: int) -> None:
    assert_equal_runs(train(2, epochs=2, deepspeed={"zeroStage": stage}), reference)


@pytest.mark.parametrize(
    "changes",
    [{"deepspeed": {"zeroStage": 3, "offloadOptimizer": "CPU", "offloadParameters": "CPU"}}, {"packing": False}],
    ids=["offloaded", "padded"],
)
def test_neither_offload_nor_padding_changes_what_is_learnt(train: Any, reference: TinyRun, changes: Any) -> None:
    assert_equal_runs(train(epochs=2, **changes), reference)


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputing_activations_changes_nothing(train: Any, reference: TinyRun, stage: int) -> None:
    assert_equal_runs(train(epochs=2, gradientCheckpointing=True, deepspeed={"zeroStage": stage}), reference)


def test_one_row_a_forward_pass_and_uneven_ranks_change_nothing(train: Any, reference: TinyRun) -> None:
    assert_equal_runs(train(2, MicroBatchBound(tokens=60), epochs=2, deepspeed={"zeroStage": 2}), reference)


@pytest.mark.parametrize("stage", [*(pytest.param(n, marks=pytest.mark.further) for n in (0, 1, 3)), 2])
def test_bf16_learns_at_every_zero_stage(train: Any, reference: TinyRun, stage: int) -> None:
    run = train(2, epochs=2, precision="bf16", deepspeed={"zeroStage": stage})
    assert run.records[-1]["loss"] < run.records[0]["loss"]
    assert run.records[-1]["loss"] == pytest.approx(reference.records[-1]["loss"], rel=0.02)
    assert load_causal_lm(run.weights.parent).dtype == torch.bfloat16


def test_sft_learns_labels_alone(train: Any) -> None:
    run = train(method="SFT", epochs=3)
    assert "kd" not in run.records[0]
    assert run.records[-1]["ce"] < run.records[0]["ce"]
    assert run.records[0]["loss"] == run.records[0]["ce"]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_lora_trains_the_backbone_and_is_merged(train: Any, tiny_models: Path, ranks: int, stage: int) -> None:
    lora = {"rank": 4, "alpha": 8}
    run = train(ranks, epochs=3, lora=lora, deepspeed={"zeroStage": stage}, gradientCheckpointing=True)
    assert run.records[-1]["loss"] < run.records[0]["loss"]
    before, after = load_file(tiny_models / "student" / "model.safetensors"), load_file(run.weights)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("proj" in name for name in changed)
    assert (run.weights.parent.parent / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("divergence", ["ReverseKL", "JSD"])
def test_other_divergences_are_learnt(train: Any, divergence: str) -> None:
    run = train(epochs=3, objective={"divergence": divergence, "alpha": 1.0})
    assert run.records[-1]["kd"] < run.records[0]["kd"]
    assert run.records[0]["loss"] == run.records[0]["kd"]


def test_alpha_1_on_a_set_that_can_be_learnt_by_heart_reaches_a_small_divergence(train: Any) -> None:
    run = train(
        maxSteps=250,
        objective={"alpha": 1.0},
        optimizer={"learningRate": 1e-2, "weightDecay": 0.0},
        schedule={"name": "Cosine", "warmupRatio": 0.05},
        globalBatchSize=22,
        bound=MicroBatchBound(rows=22),
    )
    assert run.records[-1]["kd"] < 0.05


def test_a_loss_that_is_no_number_ends_with_a_remedy(made: Made, tiny_models: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_models / "student", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    run = TinyRun(made, broken, tmp_path / "run", settings())
    with pytest.raises(GangError, match=r"the loss became nan at step 1 of 3; lower optimizer.learningRate") as ended:
        run.run()
    assert ended.value.exit_class is ExitClass.BadSettings


def test_a_wrong_target_module_is_a_setting_to_change(train: Any) -> None:
    with pytest.raises(GangError, match=r"train\.lora\.targetModules: nosuch") as ended:
        train(lora={"rank": 4, "targetModules": ["nosuch"]})
    assert ended.value.exit_class is ExitClass.BadSettings
