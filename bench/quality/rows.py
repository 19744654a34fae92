"""The rows of the comparison: the teacher's own answers, and what each way of learning keeps of its distributions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.models.pruning import block_influence
from kd_runtime.teachers.distributions import uniforms_of_row
from kd_runtime.teachers.transformers_engine import TransformersEngine, score_positions

ANSWER_TOKENS, BATCH = 64, 16
SYSTEM = "Answer."
"""Short, because every row pays for it."""


@dataclass(frozen=True)
class Item:
    """A row: N ids, which of them are the answer, and the teacher's targets of each way that stores some."""

    ids: Tensor
    """[N]"""
    positions: Tensor
    """[P]: the answer's tokens."""
    hidden: Tensor
    """[P, H]: the teacher's last hidden states before them, from which its whole distributions follow."""
    targets: dict[str, tuple[Tensor, Tensor, Tensor]]
    """Way -> head ids [P, K], logprobs [P, K], tail [P]."""


@dataclass(frozen=True)
class Rows:
    """What all students are trained and judged on."""

    trained: list[Item]
    held_out: list[Item]
    influence: list[float]
    """Of each of the teacher's layers, by which the student is pruned."""


def specs(vocab: int) -> dict[str, ShardSpec]:
    """What each way that stores something stores."""
    return {
        "Exact": ShardSpec("Exact", 32, vocab=vocab),
        "Compact": ShardSpec("Compact", 32, vocab=vocab),
        "Unbiased": ShardSpec("Unbiased", 16, 8, vocab=vocab, entropy=True),
        "renormalised top 10": ShardSpec("Exact", 10, vocab=vocab),
    }


@torch.no_grad()
def made(model_dir: Path, data: Path, trained: int, held_out: int) -> Rows:
    """Have the teacher answer ``trained + held_out`` instructions, sampled at temperature 1, and keep what it thinks."""
    engine = TransformersEngine.load(model_dir, "float32", 512)
    with data.open(encoding="utf-8", newline="\n") as lines:
        questions = [str(json.loads(line)["instruction"]) for line in islice(lines, trained + held_out)]
    torch.manual_seed(0)
    items = [item for at in range(0, len(questions), BATCH) for item in _answered(engine, questions[at : at + BATCH])]
    influence = block_influence(engine._model, [item.ids.tolist() for item in items[held_out : held_out + 16]])
    return Rows(items[held_out:], items[:held_out], influence)


def _answered(engine: TransformersEngine, questions: Sequence[str]) -> Iterator[Item]:
    model: Any = engine._model
    asked = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}] for question in questions]
    prompts = [engine.render(messages) for messages in asked]
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"max_new_tokens": ANSWER_TOKENS, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    answers = model.generate(padded, attention_mask=mask, pad_token_id=0, **options)[:, width:]
    for prompt, answer in zip(prompts, answers, strict=True):
        ends = [at for at, token in enumerate(answer.tolist()) if token in engine._ends]
        kept = answer[: ends[0] + 1] if ends else answer
        yield _scored(model, torch.cat([torch.tensor(prompt), kept]), len(prompt), engine.vocab)


def _scored(model: Any, ids: Tensor, prompt: int, vocab: int) -> Item:
    """One pass of the teacher over a row serves every way."""
    positions = torch.arange(prompt, len(ids))
    hidden = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0, positions - 1]
    lp = (hidden @ model.get_output_embeddings().weight[:vocab].t()).log_softmax(1)
    targets = {way: _stored(lp, ids, prompt, spec, way) for way, spec in specs(vocab).items()}
    return Item(ids, positions, hidden.clone(), targets)


def _stored(lp: Tensor, ids: Tensor, prompt: int, spec: ShardSpec, way: str) -> tuple[Tensor, Tensor, Tensor]:
    """Captured, through the planes, and read back."""
    key = np.resize(ids.numpy().astype(np.uint8), 16).tobytes()
    fields = score_positions(lp, ids[prompt:], spec, uniforms_of_row(key, len(lp), spec.m, seed=0))
    row = TeacherRow(key, ids.numpy(), np.arange(len(ids)) >= prompt, **fields)
    read = build_planes(spec, [row]).row(0).with_draws()
    assert read.top_ids is not None and read.top_lp is not None and read.tail_lp is not None
    head, tail = torch.from_numpy(read.top_lp), torch.from_numpy(read.tail_lp)
    if way.startswith("renormalised"):
        head, tail = head.log_softmax(1), torch.full_like(tail, -torch.inf)
    return torch.from_numpy(read.top_ids).long(), head, tail
