"""The loss as a module: tied and frozen weights, what it refuses, memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from losses.examples import case
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


@pytest.mark.runtime
@pytest.mark.parametrize("divergence", ["ForwardKL", "ReverseKL", "JSD"])
def test_extra_memory_is_under_a_tenth_of_a_dense_loss(divergence: str) -> None:
    """At a vocabulary of 49,152 and 2,048 positions; the gradients of states and weights apart on both sides."""
    vocab, width, positions, k = 49_152, 64, 2048, 32
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, width, generator=random).requires_grad_()
    weight = nn.Parameter(torch.randn(vocab, width, generator=random) / 8)
    labels = torch.randint(vocab, (positions,), generator=random)
    ids = torch.randint(vocab // k, (positions, k), generator=random) + torch.arange(k) * (vocab // k)
    lp = torch.log_softmax(torch.randn(positions, k + 1, generator=random), 1)
    on = torch.ones(positions, dtype=torch.bool)
    head = SparseKDHead(weight, vocab=vocab, divergence=divergence)

    def fast() -> Tensor:
        loss: Tensor = head(hidden, labels, ids, lp[:, :-1], lp[:, -1], on, on, kd_weight=0.5, ce_weight=0.5)[0]
        return loss

    def dense() -> Tensor:
        log_q = torch.log_softmax(hidden @ weight.t(), 1)
        tail = log_q.scatter(1, ids, -torch.inf).logsumexp(1)
        kd = (lp[:, :-1].exp() * (lp[:, :-1] - log_q.gather(1, ids))).sum(1) + lp[:, -1].exp() * (lp[:, -1] - tail)
        return (kd + nn.functional.nll_loss(log_q, labels, reduction="none")).sum() / 2

    gradients = (weight.numel() + hidden.numel()) * 4
    extra = {"fast": peak_bytes(fast) - gradients, "dense": peak_bytes(dense) - gradients}
    print({name: f"{size / 2**20:.0f} MiB" for name, size in extra.items()})
    assert extra["dense"] > positions * vocab * 4
    assert 10 * extra["fast"] < extra["dense"]
