"""Training on a card: it learns what it learns on a CPU, goes on to the same bits, and says so where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.tiny_runs import Made, TinyRun, gang_that, gone_on, kill_all, make, settings

from kd_runtime.api.failures import ExitClass
from kd_runtime.models.loading import load_causal_lm
from kd_runtime.training.gang import GangError

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here: training on CUDA is not run"),
]

Runs = Callable[..., TinyRun]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Made:
    return make(tmp_path_factory.mktemp("rows"), tiny_models, 21, parents=(2,))


@pytest.fixture(scope="module")
def prepared(made: Made, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    def run(**changes: Any) -> TinyRun:
        return TinyRun(made, tiny_models / "student", tmp_path_factory.mktemp("run"), settings(epochs=2, **changes))

    return run


@pytest.fixture(scope="module")
def on_cpu(prepared: Runs) -> Iterator[TinyRun]:
    """The same on this machine's CPU, in fp32, unsharded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        run = prepared().run()
    assert not run.accelerator_bytes
    yield run


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_it_learns_what_it_learns_on_a_cpu(prepared: Runs, on_cpu: TinyRun, stage: int) -> None:
    run = prepared(deepspeed={"zeroStage": stage}).run()
    assert run.accelerator_bytes
    for record, expected in zip(run.records, on_cpu.records, strict=True):
        assert record == pytest.approx(expected, rel=2e-3, abs=1e-4)
    weights, others = load_file(run.weights), load_file(on_cpu.weights)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert float((value - others[name]).abs().mean()) < 2e-4, name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_learns_at_every_zero_stage(prepared: Runs, on_cpu: TinyRun, stage: int) -> None:
    run = prepared(precision="bf16", deepspeed={"zeroStage": stage}, gradientCheckpointing=stage > 1).run()
    assert run.records[-1]["loss"] == pytest.approx(on_cpu.records[-1]["loss"], rel=0.02)
    assert load_causal_lm(run.weights.parent).dtype == torch.bfloat16


@pytest.mark.parametrize("changes", [{"lora": {"rank": 4, "alpha": 8}}, {"packing": False}, {"method": "SFT"}])
def test_additions_padding_and_labels_alone_are_learned_alike(
    prepared: Runs, changes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(**changes).run()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for record, expected in zip(run.records, prepared(**changes).run().records, strict=True):
        assert record == pytest.approx(expected, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"deepspeed": {"zeroStage": 0}},
        {"deepspeed": {"zeroStage": 2}, "precision": "bf16"},
        {"deepspeed": {"zeroStage": 3}, "precision": "bf16", "gradientCheckpointing": True},
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(prepared: Runs, changes: Any) -> None:
    changes = {**changes, "maxSteps": 60, "checkpoint": {"everySteps": 2}}
    undisturbed = prepared(**changes).run()
    killed = prepared(**changes)
    with pytest.raises(GangError):
        gang_that(killed, kill_all).run()
    gone_on(killed)
    assert killed.records == undisturbed.records
    assert killed.sha256 == undisturbed.sha256


def test_a_card_that_is_full_ends_the_gang_with_class_71(prepared: Runs) -> None:
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - (700 << 20), dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(GangError, match="an accelerator ran out of memory") as ended:
            prepared(deepspeed={"zeroStage": 2}, precision="bf16").run()
    finally:
        del held
        torch.cuda.empty_cache()
    assert ended.value.exit_class is ExitClass.AcceleratorOutOfMemory
