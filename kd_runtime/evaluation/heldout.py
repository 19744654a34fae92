"""What a model makes of held-out rows: divergence from the teacher, agreement and likelihood at every scored position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kd_runtime.api.failures import SettingsError
from kd_runtime.artifacts.rows import Row
from kd_runtime.logits.targets import RowTargets
from kd_runtime.losses.head import SparseKDHead
from kd_runtime.models.logit_rules import LogitRules, check_logits

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of one forward pass, padding counted."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RowScores:
    """One model's values at a row's P scored positions, in nats; what needs a teacher's head is None without one."""

    ce: FloatArray
    """[P] negative logprob of the row's own token."""
    kl: FloatArray | None = None
    """[P] forward KL from the teacher, over its head and the tail bucket."""
    agree: FloatArray | None = None
    """[P] 1 where the likeliest token is the teacher's; ties count as equal."""
    head_mass: FloatArray | None = None
    """[P] probability on the teacher's head."""


Lookup = Callable[[Row], RowTargets | None]


class Examiner:
    """Runs one model over rows, in float32, and never forms more than one chunk of [positions, vocabulary].

    ``vocabulary`` is the tokenizer's true size.

    Raises:
        SettingsError: the model's output head is smaller than the vocabulary, or of a kind that is not supported, or
            the model makes other logits of it than `LogitRules` say.
    """

    def __init__(self, model: Any, vocabulary: int) -> None:
        self._model = model
        embeddings = model.get_output_embeddings()
        rows = int(embeddings.weight.shape[0])
        if rows < vocabulary:
            raise SettingsError(
                f"model: its output head has {rows} tokens, the rows' tokenizer {vocabulary}; use its own tokenizer"
            )
        check_logits(model, vocabulary, self.device, "model")
        rules = LogitRules.of(model.config)
        self._head = SparseKDHead(
            embeddings, vocab=vocabulary, divergence="ForwardKL", logit_scale=rules.scale, softcap=rules.softcap
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self._model.device
        return device

    @torch.inference_mode()
    def score(self, rows: Sequence[Row], lookup: Lookup, tick: Callable[[int], None]) -> list[RowScores]:
        """Scores of every row, in the rows' order; ``tick`` is told the tokens of each batch that is done."""
        scores: list[RowScores | None] = [None] * len(rows)
        for batch in batches([len(row.input_ids) for row in rows], BATCH_TOKENS[self.device.type]):
            chosen = [rows[i] for i in batch]
            for index, result in zip(batch, self._batch(chosen, lookup), strict=True):
                scores[index] = result
            tick(sum(len(row.input_ids) for row in chosen))
        return [score for score in scores if score is not None]

    def _batch(self, rows: Sequence[Row], lookup: Lookup) -> Iterator[RowScores]:
        hidden = self._hidden(rows)
        for number, row in enumerate(rows):
            yield self._row(hidden[number], row, lookup(row))

    def _hidden(self, rows: Sequence[Row]) -> Tensor:
        """Last hidden states [B, N, H] of rows padded on the right."""
        longest = max(len(row.input_ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row.input_ids)] = torch.from_numpy(row.input_ids.astype(np.int64))
            mask[number, : len(row.input_ids)] = 1
        output = self._model.base_model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False
        )
        states: Tensor = output.last_hidden_state
        return states

    def _row(self, hidden: Tensor, row: Row, targets: RowTargets | None) -> RowScores:
        positions = np.flatnonzero(row.scored)
        if not len(positions):
            return RowScores(np.empty(0, np.float32))
        labels = self._tensor(row.input_ids[positions])
        everywhere = torch.ones(len(positions), dtype=torch.bool, device=self.device)
        states = hidden[self._tensor(positions - 1)]
        if targets is None or targets.top_ids is None or targets.top_lp is None or targets.tail_lp is None:
            values = self._values(states, labels, (None, None, None), ~everywhere, everywhere)
            return RowScores(values["ce"])
        top = (self._tensor(targets.top_ids), self._floats(targets.top_lp), self._floats(targets.tail_lp))
        values = self._values(states, labels, top, everywhere, everywhere)
        return RowScores(values["ce"], values["kd"], values["top1_agree"], values["student_head_mass"])

    def _values(
        self,
        states: Tensor,
        labels: Tensor,
        top: tuple[Tensor | None, Tensor | None, Tensor | None],
        kd_mask: Tensor,
        ce_mask: Tensor,
    ) -> dict[str, FloatArray]:
        _, sums = self._head(
            states, labels, *top, kd_mask, ce_mask, kd_weight=float(top[0] is not None), per_position=True
        )
        assert sums.positions is not None
        return {name: value.float().cpu().numpy() for name, value in sums.positions.items()}

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self.device)

    def _floats(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(array, np.float32)).to(self.device)


def batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in batches of similar lengths, the longest first; length times count stays within ``limit`` (or one row)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        count = max(1, limit // max(lengths[order[start]], 1))
        yield order[start : start + count]
        start += count
