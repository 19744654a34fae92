"""From the rows of a step to tensors: which rank takes which rows, in which micro-batches, packed or padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kd_runtime.api.train import EntropyWeighting
from kd_runtime.training.examples import Example
from kd_runtime.training.order import deal

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatchRule:
    """How many rows one forward pass takes: at most ``rows``, or as many as stay within ``tokens`` (at least one)."""

    rows: int | None = None
    tokens: int | None = None

    def cut(self, lengths: npt.NDArray[np.integer], packing: bool) -> list[Ints]:
        """Cut rows, given longest first, into micro-batches of consecutive ones. Tokens count with their padding."""
        batches: list[list[int]] = []
        filled = 0
        for index, length in enumerate(lengths):
            size = int(length) if packing or not batches or not filled else int(lengths[batches[-1][0]])
            if not batches or self._full(len(batches[-1]), filled, size):
                batches.append([])
                filled, size = 0, int(length)
            batches[-1].append(index)
            filled += size
        return [np.asarray(batch, np.int64) for batch in batches]

    def _full(self, rows: int, tokens: int, more: int) -> bool:
        return (self.rows is not None and rows >= self.rows) or (
            self.tokens is not None and tokens + more > self.tokens
        )

    def facts(self) -> dict[str, int]:
        """For manifests and checkpoints: the one bound that is set."""
        return {"rows": self.rows} if self.rows is not None else {"tokens": self.tokens or 0}


def share_out(lengths: npt.NDArray[np.integer], ranks: int, rule: MicroBatchRule, packing: bool) -> list[list[Ints]]:
    """For each rank, its micro-batches of one step as positions in the step's rows.

    Every rank gets as many micro-batches as the one with most (ZeRO's collectives need that): empty ones at the end.
    """
    lengths = np.asarray(lengths, np.int64)
    shares = [[share[cut] for cut in rule.cut(lengths[share], packing)] for share in deal(lengths, ranks)]
    count = max(len(share) for share in shares)
    return [share + [np.zeros(0, np.int64)] * (count - len(share)) for share in shares]


def longest(lengths: npt.NDArray[np.integer], rule: MicroBatchRule, packing: bool) -> Ints:
    """Lengths of the rows of the largest micro-batch that ``rule`` can make of rows with ``lengths``."""
    ordered = np.sort(np.asarray(lengths, np.int64))[::-1]
    if rule.tokens is None or not len(ordered):
        return ordered[: rule.rows]
    # The first cut is full of the longest rows; later cuts fill the budget better but have more, shorter rows.
    cuts = [ordered[cut] for cut in rule.cut(ordered, packing)]
    return max(cuts, key=lambda cut: int(cut.sum() if packing else cut[0] * len(cut)))


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: B sequences of T tokens (B = 1 where packed), P scored positions, K entries of the head."""

    input_ids: Tensor
    """[B, T] int64."""
    position_ids: Tensor
    """[B, T] int64: from 0 in each row."""
    attention_mask: Tensor | None
    """[B, T] bool where padded; None where packed."""
    row_lengths: tuple[int, ...]
    """Tokens of each row, in order."""
    sources: Tensor
    """[P] int64: where in [B * T] the hidden state lies that a target pairs with: one before its token."""
    row_of: Tensor
    """[P] int64: which row a position belongs to."""
    label_ids: Tensor
    """[P] int64."""
    top_ids: Tensor | None
    """[P, K] int64, or None where no row has logits."""
    top_lp: Tensor | None
    tail_lp: Tensor | None
    rounding: Tensor | None
    """[P] float32: what storing rounded of the targets, where every row with logits says it."""
    entropy: Tensor | None
    """[P] float32: the teacher's, where every row with logits has it."""
    kd_weights: Tensor | None
    """[P] float32: how much each position's divergence counts, 0 without logits; None: all alike."""
    kd_mask: Tensor
    """[P] bool: positions with a teacher's distribution."""
    ce_mask: Tensor
    """[P] bool: positions whose label counts."""
    tokens: int
    """Real tokens: neither padding nor filler."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on ``device``; from pinned memory the copies run beside what the device computes."""
        return self if device.type == "cpu" else self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> MicroBatch:
        """The same in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        tensors: dict[str, Any] = {
            f.name: change(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)


def collate(
    examples: Sequence[Example], *, packing: bool, head_entries: int, weighting: EntropyWeighting | None = None
) -> MicroBatch:
    """Tensors of one micro-batch; ``head_entries`` is K, 0 without logits; ``weighting`` needs the teacher's entropy.

    No example at all gives a filler of two tokens whose one position counts for nothing.
    """
    if not examples:
        filler = Example("", np.zeros(2, np.int64), np.ones(1, np.int64))
        batch = collate([filler], packing=packing, head_entries=head_entries, weighting=weighting)
        return replace(batch, ce_mask=torch.zeros_like(batch.ce_mask), tokens=0)
    lengths = [len(e.input_ids) for e in examples]
    lay_out = _packed if packing else _padded
    input_ids, position_ids, mask, starts = lay_out(examples, lengths)
    has_head = np.concatenate([np.full(len(e.positions), e.top_ids is not None) for e in examples])
    top_ids, top_lp, tail_lp = _heads(examples, head_entries) if head_entries else (None, None, None)
    labels = np.concatenate([e.input_ids[e.positions] for e in examples])
    sources = np.concatenate([e.positions - 1 + start for e, start in zip(examples, starts, strict=True)])
    kd_mask = torch.from_numpy(has_head) & bool(head_entries)
    entropy = _of_positions(examples, lambda e: e.entropy)
    row_of = np.repeat(np.arange(len(examples)), [len(e.positions) for e in examples])
    return MicroBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=mask,
        row_lengths=tuple(lengths),
        sources=torch.from_numpy(sources),
        row_of=torch.from_numpy(row_of),
        label_ids=torch.from_numpy(labels),
        top_ids=top_ids,
        top_lp=top_lp,
        tail_lp=tail_lp,
        rounding=_of_positions(examples, lambda e: e.rounding),
        entropy=entropy,
        kd_weights=None if weighting is None else _weights(entropy, kd_mask, weighting),
        kd_mask=kd_mask,
        ce_mask=torch.ones(len(labels), dtype=torch.bool),
        tokens=sum(lengths),
    )


def _packed(examples: Sequence[Example], lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None, Ints]:
    ids = torch.from_numpy(np.concatenate([e.input_ids for e in examples]))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return ids, positions, None, np.cumsum([0, *lengths[:-1]])


def _padded(examples: Sequence[Example], lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None, Ints]:
    width = max(lengths)
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    for line, example in zip(ids, examples, strict=True):
        line[: len(example.input_ids)] = torch.from_numpy(example.input_ids)
    positions = torch.arange(width).repeat(len(examples), 1)  # memory of its own: pinning refuses a view
    mask = positions < torch.tensor(lengths)[:, None]
    return ids, positions, None if bool(mask.all()) else mask, np.arange(len(examples)) * width


def _of_positions(
    examples: Sequence[Example], of: Callable[[Example], npt.NDArray[np.float32] | None]
) -> Tensor | None:
    """[P]; 0 at rows without logits, None where a row with logits lacks it."""
    having = [e for e in examples if e.top_ids is not None]
    if not having or any(of(e) is None for e in having):
        return None
    parts = [np.zeros(len(e.positions), np.float32) if (own := of(e)) is None else own for e in examples]
    return torch.from_numpy(np.concatenate(parts))


def _weights(entropy: Tensor | None, kd_mask: Tensor, weighting: EntropyWeighting) -> Tensor:
    """[P]: exp(-H) or 1 - exp(-H) of the teacher's entropy H in nats; 0 at positions without logits."""
    if entropy is None:
        return torch.zeros(len(kd_mask))
    weights = torch.exp(-entropy) if weighting is EntropyWeighting.Confident else -torch.expm1(-entropy)
    return torch.where(kd_mask, weights, 0.0)


def _heads(examples: Sequence[Example], entries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Heads of all rows [P, K]; rows without logits get entries that stand for none (id -1)."""

    def joined(of: Callable[[Example], npt.NDArray[np.generic] | None], empty: npt.NDArray[np.generic]) -> Tensor:
        parts = [of(e) for e in examples]
        filled = [
            np.broadcast_to(empty, (len(e.positions), *empty.shape)) if part is None else part
            for e, part in zip(examples, parts, strict=True)
        ]
        return torch.from_numpy(np.concatenate(filled))

    return (
        joined(lambda e: e.top_ids, np.full(entries, -1, np.int32)).long(),
        joined(lambda e: e.top_lp, np.full(entries, -np.inf, np.float32)),
        joined(lambda e: e.tail_lp, np.zeros((), np.float32)),
    )
