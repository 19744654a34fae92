"""One step on the longest micro-batch that a run can have, before the run: what does not fit ends here (contract 9)."""

from __future__ import annotations

import numpy as np

from kd_runtime.training.batches import MicroBatch, collate, longest
from kd_runtime.training.examples import Example
from kd_runtime.training.loop import Trainer


def rehearse(trainer: Trainer) -> None:
    """Forward, backward and an optimizer step. The engine is not to be used afterwards: its weights have moved."""
    batch = longest_batch(trainer).to(trainer.place.device)
    trainer.engine.set_gradient_accumulation_boundary(True)
    loss, _ = trainer.engine(batch, 1e-3 if trainer.head_entries else 0.0, 1e-3, 1e-3)
    trainer.engine.backward(loss, scale_wrt_gas=False)
    trainer.engine.step()


def longest_batch(trainer: Trainer) -> MicroBatch:
    """A micro-batch as large as any of the run, every token of it scored."""
    trained = trainer.lengths[trainer.order.copies > 0]
    lengths = longest(
        np.repeat(trained, trainer.order.copies[trainer.order.copies > 0]), trainer.rule, trainer.train.packing
    )
    examples = [_filled(int(length), trainer.head_entries) for length in lengths]
    return collate(examples, packing=trainer.train.packing, head_entries=trainer.head_entries)


def _filled(length: int, entries: int) -> Example:
    positions = np.arange(1, length)
    ids = np.ones(length, np.int64)
    if not entries:
        return Example("", ids, positions)
    shape = (len(positions), entries)
    top_ids = np.broadcast_to(np.arange(entries, dtype=np.int32), shape)
    flat = np.full(shape, -np.log(entries + 1), np.float32)
    return Example("", ids, positions, top_ids, flat, flat[:, 0])
