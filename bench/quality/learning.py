"""How a student learns in each way, at equal rows and steps, and how far from the teacher it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rows import Item, specs
from torch import Tensor, nn

from kd_runtime.losses.head import SparseKDHead

WAYS = ("SFT", "Exact", "Compact", "Unbiased", "renormalised top 10", "full distribution")
Loss = Callable[[Sequence[Item]], Tensor]


@dataclass(frozen=True)
class Course:
    """What is equal for every way."""

    steps: int
    batch_rows: int
    rate: float


def hidden(model: Any, items: Sequence[Item]) -> Tensor:
    """Hidden states [P, H] before the answers' tokens."""
    width = max(len(item.ids) for item in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, item in enumerate(items):
        ids[line, : len(item.ids)], mask[line, : len(item.ids)] = item.ids, 1
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return torch.cat([states[line, item.positions - 1] for line, item in enumerate(items)])


def labels_of(items: Sequence[Item]) -> Tensor:
    """[P]"""
    return torch.cat([item.ids[item.positions] for item in items])


def loss_of(way: str, student: Any, teacher_head: Tensor) -> Loss:
    """Mean over positions: cross-entropy (SFT) or forward KL from what ``way`` keeps of the teacher."""
    return _full(student, teacher_head) if way == "full distribution" else _sparse(way, student, len(teacher_head))


def _sparse(way: str, student: Any, vocab: int) -> Loss:
    """Every way but the full distribution goes the runtime's own path."""
    head = SparseKDHead(student.get_output_embeddings(), vocab=vocab)
    draws = specs(vocab)[way].m if way != "SFT" else 0

    def loss(items: Sequence[Item]) -> Tensor:
        states, labels = hidden(student, items), labels_of(items)
        on = torch.ones(len(labels), dtype=torch.bool)
        if way == "SFT":
            return head(states, labels, None, None, None, ~on, on, kd_weight=0.0, ce_weight=1 / len(labels))[0]
        given = [torch.cat(parts) for parts in zip(*(item.targets[way] for item in items), strict=True)]
        return head(states, labels, *given, on, ~on, kd_weight=1 / len(labels), draws=draws)[0]

    return loss


def _full(student: Any, teacher_head: Tensor) -> Loss:
    """Whole distributions, dense."""

    def loss(items: Sequence[Item]) -> Tensor:
        log_q = student_logprobs(student, items, len(teacher_head))
        log_p = teacher_logprobs(items, teacher_head)
        return nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    return loss


def teacher_logprobs(items: Sequence[Item], teacher_head: Tensor) -> Tensor:
    """[P, V]"""
    return (torch.cat([item.hidden for item in items]) @ teacher_head.t()).log_softmax(1)


def student_logprobs(student: Any, items: Sequence[Item], vocab: int) -> Tensor:
    """[P, V]"""
    return (hidden(student, items) @ student.get_output_embeddings().weight[:vocab].t()).log_softmax(1)


def train(student: Any, loss: Loss, items: Sequence[Item], course: Course, seed: int) -> None:
    """AdamW, a tenth of warm-up, a cosine; the order of rows depends on the seed alone."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=course.rate, betas=(0.9, 0.95), weight_decay=0.05)
    epochs = -(-course.steps * course.batch_rows // len(items))
    order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(len(items)) for epoch in range(epochs)])
    for step in range(course.steps):
        chosen = [items[i] for i in order[step * course.batch_rows : (step + 1) * course.batch_rows]]
        warm = min(1.0, (step + 1) / max(1, course.steps // 10))
        optimizer.param_groups[0]["lr"] = course.rate * warm * 0.5 * (1 + math.cos(math.pi * step / course.steps))
        loss(chosen).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def judged(student: Any, items: Sequence[Item], teacher_head: Tensor, batch_rows: int = 8) -> tuple[float, float]:
    """KL from the teacher's whole distribution, nats a token, and perplexity of the teacher's answers."""
    kl = ce = count = 0.0
    for start in range(0, len(items), batch_rows):
        some = items[start : start + batch_rows]
        log_p, log_q = teacher_logprobs(some, teacher_head), student_logprobs(student, some, len(teacher_head))
        kl += float((log_p.exp() * (log_p - log_q)).sum())
        ce -= float(log_q.gather(1, labels_of(some)[:, None]).sum())
        count += len(log_q)
    return kl / count, math.exp(ce / count)
