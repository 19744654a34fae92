"""The loss as a module: tied and frozen weights, what it refuses, memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from losses.examples import DIVERGENCES, case
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from kd_runtime.api.failures import SettingsError
from kd_runtime.losses.divergences import Parameters
from kd_runtime.losses.head import SparseKDHead


def test_a_tied_weight_gets_both_gradients() -> None:
    built = case(padding=0)
    embedding = nn.Embedding(*built.weight.shape)
    embedding.weight = built.weight
    head = built.head()
    assert head.weight is embedding.weight
    ids = torch.arange(23)

    def loss(dense: bool) -> Tensor:
        hidden = torch.tanh(embedding(ids))
        at = built.with_(hidden=hidden)
        return at.dense() if dense else at.fast()[0]

    (found,) = torch.autograd.grad(loss(False), [embedding.weight])
    (expected,) = torch.autograd.grad(loss(True), [embedding.weight])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_frozen_weight_gets_none() -> None:
    built = case()
    expected = built.gradients(built.fast()[0])[0]
    built.weight.requires_grad_(False)
    loss, _ = built.fast()
    loss.backward()
    assert built.weight.grad is None
    torch.testing.assert_close(built.hidden.grad, expected)


def test_a_head_alone_is_trained_on_fixed_states() -> None:
    built = case()
    expected = built.gradients(built.fast()[0])[1]
    built.with_(hidden=built.hidden.detach()).fast()[0].backward()
    torch.testing.assert_close(built.weight.grad, expected)


def test_targets_without_a_head_cannot_be_distilled() -> None:
    built = case()
    with pytest.raises(SettingsError, match=r"profile Label .*capture with profile Exact"):
        built.head()(built.hidden, built.labels, None, None, None, built.kd_mask, built.ce_mask, kd_weight=1.0)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    built = case()
    with pytest.raises(SettingsError, match=r"token id 203 is outside the vocabulary of 203"):
        built.with_(labels=torch.full((23,), 203)).fast()


class Adapted(nn.Module):
    """As PEFT wraps a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(4, 9)


class Quantised(nn.Module):
    """As a quantised layer keeps its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(9, 2, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize(
    ("head", "settings", "message"),
    [
        (Adapted(), {}, "take lm_head out"),
        (Quantised(), {}, r"Quantised of torch\.uint8.*unquantised"),
        (nn.ReLU(), {}, "ReLU"),
        (nn.Linear(4, 9), {"divergence": "Wasserstein"}, "use one of ForwardKL, ReverseKL, JSD"),
        (
            nn.Linear(4, 9),
            {"divergence": "JSD", "parameters": Parameters(beta=0.0)},
            r"objective\.beta: 0\.0 .*use divergence ForwardKL",
        ),
        (nn.Linear(4, 9), {"divergence": "JSD", "parameters": Parameters(beta=1.0)}, r"objective\.beta: 1\.0"),
        (nn.Linear(4, 9), {"divergence": "Skew", "parameters": Parameters(skew=1.0)}, r"objective\.skew: 1\.0"),
        (nn.Linear(4, 9), {"divergence": "AdaptiveKL", "parameters": Parameters(mass=0.0)}, r"objective\.mass: 0\.0"),
        (nn.Linear(4, 9), {"divergence": "AlphaBeta", "parameters": Parameters(a=0.0, b=0.0)}, "not both 0"),
        (nn.Linear(4, 9), {"divergence": "Custom"}, r"objective\.function: is missing"),
        (nn.Linear(4, 9), {"temperature": 0.0}, r"objective\.temperature: 0\.0 is not positive"),
    ],
)
def test_what_cannot_be_done_is_refused(head: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SparseKDHead(head, vocab=9, **settings)


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


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("divergence", "temperature", "draws"),
    [*((name, 1.0, 0) for name in DIVERGENCES), ("ForwardKL", 2.0, 0), ("ForwardKL", 1.0, 8)],
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


@pytest.mark.runtime
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
