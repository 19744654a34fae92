"""Time and extra memory of the distillation loss against plain cross-entropy and a dense KD loss, forward and backward.

python bench/loss.py [--hidden 576] [--vocabs 49152,151936] [--positions 1024] [--k 32] [--rounds 4] [--dtype float32]
                     [--device cuda] [--deterministic]

Goals: forward KL with cross-entropy takes at most 1.25 times cross-entropy alone, and under a tenth of a dense KD
loss's extra memory. Weights, their gradient and that of the hidden states are apart on both sides. ``--deterministic``
asks PyTorch for algorithms that give the same bits each time, as training does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from measuring import ROUNDS, Figure, Goal, at_most, extra_bytes, medians, resident_rise
from torch import Tensor, nn

from kd_runtime.losses.head import SparseKDHead

DIVERGENCES = ("ForwardKL", "ReverseKL", "JSD", "Skew", "ReverseSkew", "AdaptiveKL", "AlphaBeta", "TVD")


def cross_entropy(hidden: Tensor, weight: nn.Parameter, labels: Tensor) -> Tensor:
    """Plain cross-entropy on dense logits."""
    return nn.functional.cross_entropy((hidden @ weight.t()).float(), labels)


def dense_kd(hidden: Tensor, weight: nn.Parameter, labels: Tensor, ids: Tensor, lp: Tensor, tail: Tensor) -> Tensor:
    """Forward KL with tail bucket and cross-entropy, halves, on dense log-probabilities."""
    log_q = torch.log_softmax((hidden @ weight.t()).float(), 1)
    rest = log_q.scatter(1, ids, -torch.inf).logsumexp(1)
    kd = (lp.exp() * (lp - log_q.gather(1, ids))).sum(1) + tail.exp() * (tail - rest)
    return (kd.mean() + nn.functional.nll_loss(log_q, labels)) / 2


def variants(args: argparse.Namespace, vocab: int) -> tuple[dict[str, Callable[[], None]], int]:
    """A forward and backward pass by name, and the bytes of the gradients that every one of them makes."""
    torch.manual_seed(0)
    torch.set_default_device(args.device)
    dtype = getattr(torch, args.dtype)
    hidden = torch.randn(args.positions, args.hidden).to(dtype).requires_grad_()
    weight = nn.Parameter((torch.randn(vocab, args.hidden) * 0.05).to(dtype))
    labels = torch.randint(0, vocab, (args.positions,))
    width = vocab // args.k
    ids = torch.randint(width, (args.positions, args.k)) + torch.arange(args.k) * width
    full = torch.log_softmax(torch.randn(args.positions, args.k + 1) * 3, 1)
    lp, tail = full[:, :-1], full[:, -1]
    mask, weights = torch.ones(args.positions, dtype=torch.bool), 0.5 / args.positions

    def passes(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            hidden.grad = weight.grad = None
            loss().backward()  # type: ignore[no-untyped-call]
            if args.device == "cuda":
                torch.cuda.synchronize()
            hidden.grad = weight.grad = None

        return run

    found = {
        "cross-entropy": passes(lambda: cross_entropy(hidden, weight, labels)),
        "dense KD": passes(lambda: dense_kd(hidden, weight, labels, ids, lp, tail)),
    }
    settings = [(name, 1.0) for name in args.divergences.split(",")]
    for name, temperature in [*settings, ("ForwardKL", 2.0)]:
        head = SparseKDHead(weight, vocab=vocab, divergence=name, temperature=temperature)

        def loss(head: SparseKDHead = head) -> Tensor:
            return head(hidden, labels, ids, lp, tail, mask, mask, kd_weight=weights, ce_weight=weights)[0]

        found[f"{name} T={temperature:g}"] = passes(loss)
    return found, (weight.numel() + hidden.numel()) * weight.element_size()


def figures(args: argparse.Namespace) -> Iterator[Figure | Goal]:
    """Seconds and extra memory of each variant, and the goals."""
    torch.use_deterministic_algorithms(args.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False
    for vocab in (int(text) for text in args.vocabs.split(",")):
        steps, gradients = variants(args, vocab)
        seconds = medians(steps, args.rounds)
        rise = card_rise if args.device == "cuda" else resident_rise
        extra = {name: risen - gradients for name, risen in extra_bytes(steps, args.rounds, rise).items()}
        where = f"V={vocab:,}, {args.dtype}"
        on = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
        table = f"Loss, {where}, H={args.hidden}, {args.positions:,} positions, {on}"
        for name in steps:
            values = {
                "s": seconds[name],
                "x cross-entropy": seconds[name] / seconds["cross-entropy"],
                "MiB extra": extra[name] / 2**20,
                "x dense KD": extra[name] / extra["dense KD"],
            }
            yield Figure(table, name, values)
        name = "ForwardKL T=1"
        yield at_most(f"time of the loss over cross-entropy's, {where}", seconds[name] / seconds["cross-entropy"], 1.25)
        yield at_most(f"extra memory of the loss over a dense one's, {where}", extra[name] / extra["dense KD"], 0.1)


def card_rise(step: Callable[[], object]) -> int:
    """How far the card's memory in use rises above what it was while a step runs, bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options; those of `make bench` by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"hidden": 576, "positions": 1024, "k": 32, "rounds": ROUNDS}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocabs", default="49152,151936")
    parser.add_argument("--divergences", default=",".join(DIVERGENCES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--deterministic", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    for found in figures(parsed()):
        print(found, flush=True)
