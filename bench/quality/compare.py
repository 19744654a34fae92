"""What a profile costs in quality: one teacher, one pruned student, equal rows and steps, several seeds, six ways to learn.

python bench/quality/compare.py [--model DIR] [--steps 60] [--rows 320] [--held-out 40] [--seeds 3] [--out bench/quality]

The teacher answers the examples' instructions; students learn its answers by cross-entropy (SFT), or its distributions
over them: Exact and Compact (K=32), Unbiased (K=16, M=8), the 10 likeliest renormalised (as EasyDistill's paper reads),
and the full distribution. Writes results.md and results.png: on held-out rows, KL from the teacher's whole distribution
and perplexity of its answers, mean and range over the seeds. On two cores it takes an hour or more.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_runtime.logits.build import build_planes
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.losses.head import SparseKDHead
from kd_runtime.models.loading import load_causal_lm
from kd_runtime.models.pruning import block_influence, keep_layers, most_influential
from kd_runtime.planning.tokenizers import vocabulary_size
from kd_runtime.teachers.transformers_engine import TransformersEngine
from kd_runtime.teachers.wire import ScoreRow

BATCH_ROWS, PROMPT_TOKENS, ANSWER_TOKENS = 8, 96, 64
WAYS = ("SFT", "Exact", "Compact", "Unbiased", "renormalised top 10", "full distribution")


@dataclass(frozen=True)
class Item:
    """A row: N ids, which of them are the answer, and the teacher's targets of each way that stores some."""

    ids: Tensor
    """[N]"""
    positions: Tensor
    """[P]: the answer's tokens."""
    targets: dict[str, tuple[Tensor, Tensor, Tensor]]
    """Way -> head ids [P, K], logprobs [P, K], tail [P]."""


def specs(vocab: int) -> dict[str, ShardSpec]:
    """What each way that stores something stores."""
    return {
        "Exact": ShardSpec("Exact", 32, vocab=vocab),
        "Compact": ShardSpec("Compact", 32, vocab=vocab),
        "Unbiased": ShardSpec("Unbiased", 16, 8, vocab=vocab, entropy=True),
        "renormalised top 10": ShardSpec("Exact", 10, vocab=vocab),
    }


@torch.no_grad()
def answered(engine: TransformersEngine, questions: Sequence[str], vocab: int) -> list[Item]:
    """The teacher's own greedy answers, and what each way keeps of its distributions over them."""
    model, items = engine._model, []
    for number, question in enumerate(questions):
        prompt = engine.render([{"role": "user", "content": question}])[:PROMPT_TOKENS]
        options = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, "pad_token_id": 0}
        ids = model.generate(torch.tensor([prompt]), **options)[0]
        scored = np.arange(len(ids)) >= len(prompt)
        row = ScoreRow(number.to_bytes(16, "little"), ids.numpy().astype(np.uint32), scored)
        targets = {way: stored(engine, row, spec, way) for way, spec in specs(vocab).items()}
        items.append(Item(ids, torch.from_numpy(np.flatnonzero(scored)), targets))
    return items


def stored(engine: TransformersEngine, row: ScoreRow, spec: ShardSpec, way: str) -> tuple[Tensor, Tensor, Tensor]:
    """Captured, through the planes, and read back."""
    read = build_planes(spec, [engine.score(row, spec)]).row(0).with_draws()
    assert read.top_ids is not None and read.top_lp is not None and read.tail_lp is not None
    ids, lp, tail = torch.from_numpy(read.top_ids).long(), torch.from_numpy(read.top_lp), torch.from_numpy(read.tail_lp)
    if way.startswith("renormalised"):
        lp, tail = lp.log_softmax(1), torch.full_like(tail, -torch.inf)
    return ids, lp, tail


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


def sparse_loss(way: str, student: Any, vocab: int) -> Callable[[Sequence[Item]], Tensor]:
    """The loss of every way but the full distribution: the runtime's own path."""
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


def full_loss(teacher: Any, student: Any, vocab: int) -> Callable[[Sequence[Item]], Tensor]:
    """Forward KL between whole distributions, dense."""

    def loss(items: Sequence[Item]) -> Tensor:
        with torch.no_grad():
            log_p = logprobs(teacher, items, vocab)
        return nn.functional.kl_div(logprobs(student, items, vocab), log_p, reduction="batchmean", log_target=True)

    return loss


def logprobs(model: Any, items: Sequence[Item], vocab: int) -> Tensor:
    """[P, V]"""
    return (hidden(model, items) @ model.get_output_embeddings().weight[:vocab].t()).log_softmax(1)


def train(student: Any, loss: Callable[[Sequence[Item]], Tensor], items: Sequence[Item], args: Any, seed: int) -> None:
    """AdamW with a cosine; the order of rows depends on the seed alone."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.rate, betas=(0.9, 0.95), weight_decay=0.05)
    order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(len(items)) for epoch in range(1000)])
    for step in range(args.steps):
        chosen = [items[i] for i in order[step * BATCH_ROWS : (step + 1) * BATCH_ROWS]]
        warm = min(1.0, (step + 1) / max(1, args.steps // 10))
        optimizer.param_groups[0]["lr"] = args.rate * warm * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        loss(chosen).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def held_out(teacher: Any, student: Any, items: Sequence[Item], vocab: int) -> tuple[float, float]:
    """KL from the teacher's whole distribution, nats a token, and perplexity of the answers."""
    kl = ce = count = 0.0
    for start in range(0, len(items), BATCH_ROWS):
        some = items[start : start + BATCH_ROWS]
        log_p, log_q = logprobs(teacher, some, vocab), logprobs(student, some, vocab)
        kl += float((log_p.exp() * (log_p - log_q)).sum())
        ce -= float(log_q.gather(1, labels_of(some)[:, None]).sum())
        count += len(log_q)
    return kl / count, math.exp(ce / count)


def runs(args: argparse.Namespace) -> Iterator[tuple[str, int, float, float]]:
    """(way, seed, KL, perplexity) of the student before training, then of every way and seed."""
    engine, vocab = TransformersEngine.load(args.model, "float32", 512), vocabulary_size(args.model)
    teacher = engine._model
    lines = args.data.read_text().splitlines()[: args.rows + args.held_out]
    items = answered(engine, [json.loads(line)["instruction"] for line in lines], vocab)
    trained, kept_out = items[args.held_out :], items[: args.held_out]
    influence = block_influence(teacher, [item.ids.tolist() for item in trained[:16]])
    kept = most_influential(influence, round(args.keep * len(influence)))

    def fresh() -> Any:
        student = load_causal_lm(args.model, "float32")
        keep_layers(student, kept)
        return student.train()

    yield "untrained", 0, *held_out(teacher, fresh(), kept_out, vocab)
    for seed in range(args.seeds):
        for way in WAYS:
            student = fresh()
            full = way == "full distribution"
            loss = full_loss(teacher, student, vocab) if full else sparse_loss(way, student, vocab)
            train(student, loss, trained, args, seed)
            yield way, seed, *held_out(teacher, student.eval(), kept_out, vocab)


def report(found: list[tuple[str, int, float, float]], args: argparse.Namespace) -> str:
    """The table."""
    ways = dict.fromkeys(way for way, *_ in found)
    lines = [
        f"`{args.model.name}`, {args.rows} rows, {args.steps} steps of {BATCH_ROWS} rows, {args.seeds} seeds; held out: "
        f"{args.held_out} rows. Mean (least to most).\n",
        "| way | KL, nats a token | perplexity of the teacher's answers |",
        "|---|---|---|",
    ]
    for way in ways:
        cells = []
        for column in (2, 3):
            values = [float(one[column]) for one in found if one[0] == way]
            cells.append(f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
        lines.append(f"| {way} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def plot(found: list[tuple[str, int, float, float]], path: Path) -> None:
    """KL by way, a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = [way for way in WAYS if any(one[0] == way for one in found)]
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for at, way in enumerate(ways):
        values = [kl for name, _, kl, _ in found if name == way]
        axes.scatter([at] * len(values), values, color="tab:blue", alpha=0.6)
        axes.hlines(statistics.mean(values), at - 0.25, at + 0.25, color="black")
    axes.set_xticks(range(len(ways)), ways)
    axes.set_ylabel("held-out KL(teacher ‖ student), nats a token")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run all, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("examples/.models/smollm2-135m-instruct"))
    parser.add_argument("--data", type=Path, default=Path("examples/data/instructions.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("bench/quality"))
    for name, default in {"steps": 60, "rows": 320, "held-out": 40, "seeds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=float, default=0.7, help="share of the layers that the student keeps")
    parser.add_argument("--rate", type=float, default=2e-4)
    args = parser.parse_args()
    found = []
    for one in runs(args):
        print(f"{one[0]:22} seed {one[1]}  KL {one[2]:.4f}  perplexity {one[3]:.4f}", flush=True)
        found.append(one)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.md").write_text(report(found, args))
    plot(found, args.out / "results.png")


if __name__ == "__main__":
    main()
