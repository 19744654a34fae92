"""What `kd plan` says of a training rank's memory, against what real ranks hold at their peak."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training.tiny_runs import Made, TinyRun, make, settings

from kd_runtime.planning.headers import ModelHeader, read_header
from kd_runtime.planning.memory import AUTO_TOKENS, LIBRARIES, train_memory
from kd_runtime.planning.sources import open_model
from kd_runtime.training.task import MicroBatchBound

pytestmark = pytest.mark.runtime
TOLERANCE = 0.2
BETWEEN_MACHINES = 0.4
"""What the libraries hold differs as much: on one machine it was 135 MB more than on another with the same packages."""
QUICK_BF16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="without AVX-512, products in bf16 take 50 times as long"
)
ROWS = 72
"""Of about 30 tokens: two forward passes and more, so that gradients are added up."""


SMALL = {"hidden": 384, "layers": 6, "heads": 6, "keys": 2, "vocabulary": 16_384}
Added = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


def llama(folder: Path, models: Path, *, hidden: int, layers: int, heads: int, keys: int, vocabulary: int) -> Path:
    """An untrained model of that shape, its feed-forward layers as wide as SmolLM2's, with the tiny models' tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=3,
    )
    with torch.random.fork_rng(devices=[]):
        LlamaForCausalLM(config).save_pretrained(folder)
    for path in (models / "student").iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special")):
            shutil.copy(path, folder)
    return folder


def header_of(model: Path) -> ModelHeader:
    source = open_model(f"file://{model}")
    return read_header(source, list(source.files()))


def peak(run: TinyRun) -> int:
    """The most that rank 0 held."""
    timing: dict[str, Any] = json.loads((run.folder / "out" / "timing.json").read_text())
    return int(timing["memory"]["saved"])


@pytest.fixture(scope="module")
def libraries(rows: Any, tiny_models: Path, folder: Path) -> int:
    """What a rank holds here while a model of no size trains. It is the processor's: other kernels are loaded on others."""
    held, allocated = trained(rows(512), tiny_models / "student", folder / "tiny")
    print(f"libraries: {held - allocated:,} bytes, estimated {LIBRARIES:,}")
    return held - allocated


@pytest.fixture(scope="module")
def rows(folder: Path, tiny_models: Path) -> Any:
    made: dict[int, Made] = {}

    def of(vocabulary: int) -> Made:
        """The tiny teacher's logits, as if its vocabulary were so large."""
        if vocabulary not in made:
            path = folder / f"rows-{vocabulary}"
            path.mkdir()
            made[vocabulary] = make(path, tiny_models, ROWS, k=32, vocab=vocabulary)
            made[vocabulary].vocabulary = vocabulary
        return made[vocabulary]

    return of


def trained(
    made: Made, model: Path, folder: Path, ranks: int = 1, batch: int = ROWS, **changes: Any
) -> tuple[int, int]:
    """What a rank held beside the libraries at its peak, and what was estimated.

    Two steps are taken: in the second, activations come on top of the optimizer's moments.
    """
    train = settings(globalBatchSize=batch, maxSteps=2, **changes)
    run = TinyRun(made, model, folder, train, ranks, MicroBatchBound(tokens=AUTO_TOKENS[False]))
    run.gang(run.task(), stall_seconds=None).run()
    estimate = train_memory(header_of(model), train, ranks=ranks, on_gpu=False)
    return peak(run), estimate.allocated


@pytest.fixture(scope="module")
def added(rows: Any, tiny_models: Path, folder: Path, libraries: int) -> Added:
    def of(
        *,
        hidden: int,
        layers: int,
        heads: int,
        keys: int,
        vocabulary: int,
        ranks: int = 1,
        batch: int = ROWS,
        **changes: Any,
    ) -> tuple[int, int]:
        """What a model of that shape adds to the libraries, and what was estimated."""
        model = folder / f"{hidden}-{layers}"
        if not model.exists():
            llama(model, tiny_models, hidden=hidden, layers=layers, heads=heads, keys=keys, vocabulary=vocabulary)
        run = folder / f"run-{len(list(folder.iterdir()))}"
        held, allocated = trained(rows(vocabulary), model, run, ranks, batch, **changes)
        return held - libraries, allocated

    return of


def test_a_model_of_no_size_needs_the_libraries(libraries: int) -> None:
    assert libraries == pytest.approx(LIBRARIES, rel=BETWEEN_MACHINES)


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, {}),
        (1, {"gradientCheckpointing": True}),
        pytest.param(1, {"deepspeed": {"zeroStage": 1}}, marks=pytest.mark.further),
        pytest.param(1, {"deepspeed": {"zeroStage": 2}}, marks=pytest.mark.further),
        (1, {"deepspeed": {"zeroStage": 3}}),
        (2, {"deepspeed": {"zeroStage": 2}}),
    ],
)
def test_what_a_small_model_adds(added: Added, ranks: int, changes: dict[str, Any]) -> None:
    held, allocated = added(ranks=ranks, **SMALL, **changes)
    assert held == pytest.approx(allocated, rel=TOLERANCE)


def test_what_the_quickstarts_student_adds(added: Added) -> None:
    """SmolLM2-135M with 24 of its 30 layers, as examples/quickstart.yaml trains it."""
    held, allocated = added(hidden=576, layers=24, heads=9, keys=3, vocabulary=49_152, batch=40)
    assert held == pytest.approx(allocated, rel=TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"rank": 8}},
        pytest.param(
            {"lora": {"rank": 8, "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"]}}, marks=pytest.mark.further
        ),
        pytest.param({"lora": {"rank": 16}, "gradientCheckpointing": True}, marks=pytest.mark.further),
        pytest.param({"lora": {"rank": 8}, "precision": "bf16"}, marks=[QUICK_BF16, pytest.mark.further]),
        pytest.param({"precision": "bf16", "deepspeed": {"zeroStage": 1}}, marks=[QUICK_BF16, pytest.mark.further]),
        pytest.param({"precision": "bf16", "deepspeed": {"zeroStage": 2}}, marks=QUICK_BF16),
    ],
    ids=str,
)
def test_what_a_small_model_adds_with_lora_and_in_bf16(added: Added, changes: dict[str, Any]) -> None:
    held, allocated = added(**SMALL, **changes)
    assert held == pytest.approx(allocated, rel=TOLERANCE)


@pytest.mark.further
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"rank": 8}},
        pytest.param({"precision": "bf16", "deepspeed": {"zeroStage": 2}}, marks=QUICK_BF16),
    ],
    ids=str,
)
def test_what_a_larger_model_adds_with_lora_and_in_bf16(added: Added, changes: dict[str, Any]) -> None:
    """88 million parameters."""
    held, allocated = added(hidden=768, layers=12, heads=12, keys=4, vocabulary=16_384, **changes)
    assert held == pytest.approx(allocated, rel=TOLERANCE)
