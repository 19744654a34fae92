"""One step of a small model whose head the loss owns, under a ZeRO stage: prints the loss and the weights after it."""

from __future__ import annotations

import json
import sys

import deepspeed
import torch
from losses.examples import case
from torch import Tensor, nn

from kd_runtime.losses.head import SparseKDHead


class Student(nn.Module):
    """An embedding, a layer, and an output head that is tied to the embedding where ``tied``."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.embedding = nn.Embedding(208, 12)
        self.body = nn.Linear(12, 12)
        self.lm_head = nn.Linear(12, 208, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random) / 3
        if tied:
            self.lm_head.weight = self.embedding.weight
        self.loss = SparseKDHead(self.lm_head, vocab=203, divergence="JSD")

    def forward(self, ids: Tensor, *targets: Tensor) -> Tensor:
        """The loss of ``ids`` [P]."""
        loss, _ = self.loss(torch.tanh(self.body(self.embedding(ids))), *targets, kd_weight=0.05, ce_weight=0.03)
        return loss


def main(stage: int, tied: bool) -> None:
    """Run two steps and print what came of them."""
    deepspeed.init_distributed(dist_backend="gloo")
    model = Student(tied)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    unique = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(unique, lr=1.0), config=config)
    built = case(dtype=torch.float32)
    head, tail = built.targets()
    targets = (built.labels, built.top_ids, head, tail, built.kd_mask, built.ce_mask)
    losses = []
    for _ in range(2):
        loss = engine(torch.arange(23), *targets)
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        norms = [float(parameter.detach().double().norm()) for parameter in (model.lm_head.weight, model.body.weight)]
    print("RESULT " + json.dumps(losses + norms))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "tied")
