"""Which vocabulary columns of a position need a value of their own: the teacher's head and the label, merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Columns:
    """The columns of C positions: K slots of the head, then one of the label.

    A slot that is no head entry (padding, or a position without KD) points at the label's column, and a head entry
    may itself be the label: slots that share a column must always carry the same value, so that writing them back is
    deterministic.
    """

    ids: Tensor
    """[C, K+1] long: the column of each slot."""
    in_head: Tensor
    """[C, K] bool: the slot is an entry of the teacher's head."""
    is_label: Tensor
    """[C, K] bool: the slot is an entry of the head, and the label."""
    label_in_head: Tensor
    """[C] bool: some entry of the head is the label."""

    def gather(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Head values [C, K] (of the label's column where a slot is no entry) and label values [C] of ``z`` [C, V]."""
        values = z.gather(1, self.ids)
        return values[:, :-1], values[:, -1]

    def fill_(self, z: Tensor, value: float) -> None:
        """Overwrite every merged column of ``z`` [C, V], in place."""
        z.scatter_(1, self.ids, value)

    def write_(self, z: Tensor, head: Tensor, label_outside: Tensor) -> None:
        """Put ``head`` [C, K] into the head's columns, and ``label_outside`` [C] into a label's that is no entry."""
        inside = (head * self.is_label).sum(1)
        label = torch.where(self.label_in_head, inside, label_outside)[:, None]
        z.scatter_(1, self.ids, torch.cat([torch.where(self.in_head, head, label), label], 1).to(z.dtype))


def merge(label_ids: Tensor, top_ids: Tensor, kd_mask: Tensor) -> Columns:
    """Merge ``label_ids`` [C] and ``top_ids`` [C, K] (negative = padding; ignored where ``kd_mask`` [C] is false)."""
    label = label_ids.long().clamp(min=0)[:, None]
    top = top_ids.long()
    in_head = (top >= 0) & kd_mask[:, None]
    is_label = in_head & (top == label)
    ids = torch.cat([torch.where(in_head, top, label), label], 1)
    return Columns(ids, in_head, is_label, is_label.any(1))
