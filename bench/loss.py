"""Time of the distillation loss against plain cross-entropy and a dense KD loss, forward and backward.

python bench/loss.py [--hidden 576] [--vocab 49152] [--positions 1024] [--k 32] [--rounds 4] [--chunks 128,256,512]

Medians over interleaved rounds, so that a noisy neighbour hits every variant alike. Ratios are to cross-entropy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd_runtime.losses.head import SparseKDHead


def cross_entropy(hidden: Tensor, weight: nn.Parameter, labels: Tensor) -> Tensor:
    """Plain cross-entropy on dense logits."""
    return nn.functional.cross_entropy(hidden @ weight.t(), labels)


def dense_kd(hidden: Tensor, weight: nn.Parameter, labels: Tensor, ids: Tensor, lp: Tensor, tail: Tensor) -> Tensor:
    """Forward KL with tail bucket and cross-entropy, halves, on dense log-probabilities."""
    log_q = torch.log_softmax(hidden @ weight.t(), 1)
    rest = log_q.scatter(1, ids, -torch.inf).logsumexp(1)
    kd = (lp.exp() * (lp - log_q.gather(1, ids))).sum(1) + tail.exp() * (tail - rest)
    return (kd.mean() + nn.functional.nll_loss(log_q, labels)) / 2


def measure(step: Callable[[], Tensor]) -> float:
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    step().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"hidden": 576, "vocab": 49_152, "positions": 1024, "k": 32, "rounds": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--chunks", default="256")
    args = parser.parse_args()
    torch.manual_seed(0)
    hidden = torch.randn(args.positions, args.hidden, requires_grad=True)
    weight = nn.Parameter(torch.randn(args.vocab, args.hidden) * 0.05)
    labels = torch.randint(0, args.vocab, (args.positions,))
    ids = torch.rand(args.positions, args.vocab).topk(args.k).indices
    full = torch.log_softmax(torch.randn(args.positions, args.k + 1) * 3, 1)
    lp, tail = full[:, :-1], full[:, -1]
    mask, weights = torch.ones(args.positions, dtype=torch.bool), 0.5 / args.positions
    variants: dict[str, Callable[[], Tensor]] = {
        "cross-entropy": lambda: cross_entropy(hidden, weight, labels),
        "dense KD": lambda: dense_kd(hidden, weight, labels, ids, lp, tail),
    }
    for chunk in (int(text) for text in args.chunks.split(",")):
        for name in ("ForwardKL", "ReverseKL", "JSD"):
            head = SparseKDHead(weight, vocab=args.vocab, divergence=name, chunk_positions=chunk)
            variants[f"{name} chunk {chunk}"] = lambda head=head: head(  # type: ignore[misc]
                hidden, labels, ids, lp, tail, mask, mask, kd_weight=weights, ce_weight=weights
            )[0]
    times: dict[str, list[float]] = {name: [] for name in variants}
    for step in variants.values():
        measure(step)
    for _ in range(args.rounds):
        for name, step in variants.items():
            hidden.grad = weight.grad = None
            times[name].append(measure(step))
    base = statistics.median(times["cross-entropy"])
    for name, values in times.items():
        seconds = statistics.median(values)
        print(f"{name:24} {seconds:7.3f} s  {seconds / base:5.2f} x cross-entropy")


if __name__ == "__main__":
    main()
