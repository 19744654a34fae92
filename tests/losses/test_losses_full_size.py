"""At a vocabulary of 151,936 and 4,096 positions: gradients, and extra memory against a dense loss."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from losses.captured import PAIRS, Stored, dense, run, spec_of, stored, student, teacher_like
from losses.examples import DIVERGENCES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from kd_runtime.losses.head import SparseKDHead

pytestmark = pytest.mark.runtime

FULL, DISTINCT, COPIES = 151_936, 64, 64


@cache
def full_size(profile: str) -> tuple[Tensor, nn.Parameter, Stored]:
    """64 positions over the whole vocabulary of Qwen."""
    hidden, weight = student(DISTINCT, FULL, 32)
    return hidden, weight, stored(teacher_like(hidden @ weight.t()), spec_of(profile, FULL, k=32))


@pytest.mark.parametrize(("divergence", "profile"), PAIRS)
def test_gradients_at_full_size_are_those_of_a_float64_reference(divergence: str, profile: str) -> None:
    """Vocabulary 151,936 and 4,096 positions: 64 distinct ones, 64 times over, so that the reference fits in memory."""
    hidden, weight, targets = full_size(profile)
    many = hidden.detach().repeat(COPIES, 1).requires_grad_()
    found = torch.autograd.grad(run(many, weight, targets.repeated(COPIES), divergence)[0], [many, weight])
    expected = torch.autograd.grad(dense(hidden, weight, targets, divergence), [hidden, weight])
    assert len(found[0]) == 4096
    for one, other in ((found[0].view(COPIES, DISTINCT, -1), expected[0]), (found[1] / COPIES, expected[1])):
        bound = 1e-5 * float(other.abs().max())
        assert float((one - other).abs().max()) <= bound


class Allocations(TorchDispatchMode):
    """Bytes of the tensors that operations made, those that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        outputs = function(*arguments, **keywords or {})
        inputs = {t.untyped_storage().data_ptr() for t in tree_iter((arguments, keywords)) if isinstance(t, Tensor)}
        for output in tree_iter(outputs):
            if isinstance(output, Tensor):
                self._count(output, inputs)
        return outputs

    def _count(self, output: Tensor, inputs: set[int]) -> None:
        storage = output.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in inputs or address in self.known:
            return
        self.known.add(address)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, address, size)

    def _gone(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.alive -= size


def peak_bytes(run: Callable[[], Tensor]) -> int:
    """The most that the tensors made in a forward and backward pass took at a time."""
    with Allocations() as allocations:
        run().backward()
    return allocations.peak


VOCAB, WIDTH, POSITIONS, K = 151_936, 32, 4096, 32
DENSE_BYTES = 2 * POSITIONS * VOCAB * 4
"""Of a dense loss: the logits, and one more tensor of their size (log-probabilities, their gradient in its place)."""


@pytest.mark.parametrize(
    ("divergence", "temperature", "draws"),
    [
        ("ForwardKL", 1.0, 8),
        ("AdaptiveKL", 1.0, 0),
        *(pytest.param(name, 1.0, 0, marks=pytest.mark.further) for name in DIVERGENCES if name != "AdaptiveKL"),
        pytest.param("ForwardKL", 2.0, 0, marks=pytest.mark.further),
    ],
)
def test_extra_memory_is_under_a_tenth_of_a_dense_loss(divergence: str, temperature: float, draws: int) -> None:
    """At a vocabulary of 151,936 and 4,096 positions; the gradients of states and weights apart.

    Exact and Compact are the same to the loss: the reader gives both as logprobs. The dense loss is not run at this
    size, which takes 5 GB: two tensors of positions times vocabulary are less than it needs.
    """
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=random).requires_grad_()
    weight = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=random) / 8)
    labels = torch.randint(VOCAB, (POSITIONS,), generator=random)
    entries = K + draws
    ids = torch.randint(VOCAB // entries, (POSITIONS, entries), generator=random)
    ids += torch.arange(entries) * (VOCAB // entries)
    lp = torch.log_softmax(torch.randn(POSITIONS, entries + 1, generator=random), 1)
    tail = torch.full((POSITIONS,), -torch.inf) if draws else lp[:, -1]
    on = torch.ones(POSITIONS, dtype=torch.bool)
    head = SparseKDHead(weight, vocab=VOCAB, divergence=divergence, temperature=temperature)
    more = {"draws": draws, "entropy": torch.ones(POSITIONS)} if draws else {}

    def fast() -> Tensor:
        loss: Tensor = head(hidden, labels, ids, lp[:, :-1], tail, on, on, kd_weight=0.5, ce_weight=0.5, **more)[0]
        return loss

    extra = peak_bytes(fast) - (weight.numel() + hidden.numel()) * 4
    print(f"{divergence} T={temperature} M={draws}: {extra / 2**20:.0f} MiB, dense {DENSE_BYTES / 2**20:.0f} MiB")
    assert 10 * extra < DENSE_BYTES


def test_a_dense_loss_needs_two_tensors_of_positions_times_vocabulary() -> None:
    """What the bound above counts for it, measured where it is small enough to run."""
    vocab, positions = 20_000, 256
    hidden = torch.randn(positions, 16, requires_grad=True)
    weight = nn.Parameter(torch.randn(vocab, 16))
    ids, lp = torch.arange(K).expand(positions, K), torch.log_softmax(torch.randn(positions, K), 1)

    def dense() -> Tensor:
        log_q = torch.log_softmax(hidden @ weight.t(), 1)
        return (lp.exp() * (lp - log_q.gather(1, ids))).sum()

    extra = peak_bytes(dense) - (weight.numel() + hidden.numel()) * 4
    assert extra >= 2 * positions * vocab * 4
