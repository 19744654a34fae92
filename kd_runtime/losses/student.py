"""The student's distribution over a chunk of positions, at one temperature, and the gradients of its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_runtime.losses.columns import Columns
from kd_runtime.losses.rows import Remainder

FLOOR = -1e4
"""Log of a probability that is zero, where an infinity would turn 0 * log 0 into NaN."""


@dataclass(frozen=True)
class LogitGradient:
    """The gradient of something by the logits u: ``row`` [C] times exp(u - maximum) outside the merged columns."""

    row: Tensor
    """[C]: factor of the columns that are not merged."""
    head: Tensor
    """[C, K]: the gradient in the head's columns."""
    label: Tensor
    """[C]: the gradient in the label's column, where it lies outside the head."""

    def times(self, scale: Tensor) -> LogitGradient:
        """The gradient times a weight [C] of each position."""
        return LogitGradient(self.row * scale, self.head * scale[:, None], self.label * scale)


@dataclass(frozen=True)
class Student:
    """softmax(u) of C positions, u the logits over the temperature; sums are kept apart so that nothing cancels."""

    columns: Columns
    head: Tensor
    """[C, K]: u in the slots of the head; the label's where a slot is no entry."""
    label: Tensor
    """[C]: u of the label."""
    remainder: Remainder
    log_head: Tensor
    """[C]: log of the head's sum of exp(u)."""
    log_tail: Tensor
    """[C]: the same of all other columns: the remainder, and the label where it lies outside the head."""
    log_sum: Tensor
    """[C]: the same of all columns."""

    @classmethod
    def of(cls, remainder: Remainder, head: Tensor, label: Tensor, columns: Columns) -> Student:
        """Put together what a pass over the rows read and the values of the merged columns, all of u."""
        log_head = torch.where(columns.in_head, head, -torch.inf).logsumexp(1)
        outside = torch.where(columns.label_in_head, -torch.inf, label)
        log_tail = torch.logaddexp(remainder.log_sum, outside)
        return cls(columns, head, label, remainder, log_head, log_tail, torch.logaddexp(log_head, log_tail))

    def categories(self) -> Tensor:
        """log q [C, K+1] of head and tail; FLOOR where there is none."""
        head = torch.where(self.columns.in_head, self.head - self.log_sum[:, None], FLOOR)
        return torch.cat([head, (self.log_tail - self.log_sum)[:, None]], 1).clamp(min=FLOOR)

    def kd_gradient(self, h: Tensor, log_q: Tensor) -> LogitGradient:
        """The gradient of a divergence with ``h`` [C, K+1] = q dD/dq, at ``log_q`` [C, K+1] of :meth:`categories`."""
        total, h_tail = h.sum(1), h[:, -1]
        log_tail = self.log_tail.clamp(min=FLOOR)

        def outside(u: Tensor) -> Tensor:
            return (u - log_tail).exp() * h_tail - (u - self.log_sum).exp() * total

        head = h[:, :-1] - log_q[:, :-1].exp() * total[:, None]
        return LogitGradient(outside(self.remainder.maximum), head, outside(self.label))

    def ce_gradient(self) -> LogitGradient:
        """The gradient of -log q of the label: q - 1 at the label, q elsewhere."""
        row = (self.remainder.maximum - self.log_sum).exp()
        head = (self.head - self.log_sum[:, None]).exp() - self.columns.is_label.to(self.head.dtype)
        return LogitGradient(row, head, (self.label - self.log_sum).exp() - 1)

    def largest(self) -> Tensor:
        """[C]: the largest u of all columns."""
        return torch.cat([self.head, self.label[:, None], self.remainder.maximum[:, None]], 1).amax(1)

    def overlap(self, size: int) -> Tensor:
        """[C]: share of the head's k entries that are among the student's k largest (ties count as among them).

        The head are the first ``size`` slots; entries of the others are its rivals, as is all else.
        """
        if self.remainder.largest is None:
            return torch.zeros_like(self.label)
        in_head, columns = self.columns.in_head[:, :size], self.columns
        ranked = torch.where(in_head, self.head[:, :size], -torch.inf).sort(1, descending=True).values.contiguous()
        rivals = self.remainder.largest.contiguous()
        above = rivals.shape[1] - torch.searchsorted(rivals, ranked, right=True)
        above = above + ((self.label[:, None] > ranked) & ~columns.label_in_head[:, None])
        if size < self.head.shape[1]:
            others = torch.where(columns.in_head[:, size:], self.head[:, size:], -torch.inf)
            above = above + (others[:, None, :] > ranked[:, :, None]).sum(2)
        above = above + torch.arange(ranked.shape[1], device=ranked.device)
        count = in_head.sum(1, keepdim=True)
        among = (above < count) & (torch.arange(ranked.shape[1], device=ranked.device) < count)
        return among.sum(1) / count[:, 0].clamp(min=1)

    def entropy(self) -> Tensor:
        """[C]: entropy in nats over all columns."""
        log_share = self.remainder.maximum - self.log_sum
        rest = log_share.exp() * (self.remainder.weighted + log_share * self.remainder.total)
        log_q = self.categories()[:, :-1]
        merged = (log_q.exp() * log_q).sum(1)
        log_label = self.label - self.log_sum
        label = torch.where(self.columns.label_in_head, 0, log_label.exp() * log_label)
        return -(rest + merged + label)
