"""Greedy answers: what a model says to held-out prompts, and what is measured of an answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kd_runtime.evaluation.heldout import batches
from kd_runtime.evaluation.repeats import Repeat, longest_repeat
from kd_runtime.models.reasoning import without_reasoning

BATCH_TOKENS = 8192
"""Tokens of prompts and answers that are in the making at a time: bounds the memory of keys and values."""
BATCH_ROWS = 64

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Answer:
    """One answer: its text, whether it ended by itself, its tokens (the end's own not counted), and its longest repeat."""

    text: str
    ended: bool
    tokens: int
    repeat: Repeat

    def record(self, references: Sequence[str]) -> dict[str, Any]:
        """As a line of answers.jsonl has it; ``exactMatch`` is null where there is no reference."""
        match = exact_match(self.text, references) if references else None
        return {
            "text": self.text,
            "ended": self.ended,
            "tokens": self.tokens,
            "repeat": asdict(self.repeat),
            "exactMatch": match,
        }


def measured(text: str, ids: Sequence[int], ended: bool) -> Answer:
    """An answer from its text and token ids."""
    return Answer(text, ended, len(ids), longest_repeat(ids))


def exact_match(text: str, references: Sequence[str]) -> bool:
    """True where the text equals one reference: NFC, white space at the ends taken off and runs of it made one space.

    The text is compared without its reasoning, as ingest took it off the references.
    """
    return _plain(without_reasoning(text)) in {_plain(reference) for reference in references}


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


class Answerer:
    """Answers prompts greedily: no sampling, no penalties, whatever the model's own generation config says."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._ends = end_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        self._pad = int(pad) if pad is not None else (self._ends[0] if self._ends else 0)

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Ids], max_tokens: int, tick: Callable[[int], None]) -> list[Answer]:
        """An answer of at most ``max_tokens`` tokens for each prompt (token ids), in order.

        Prompts are batched by length with padding on the left; the batches depend on the prompts alone. ``tick`` is
        told the tokens of each step, so that a long batch is no silence.
        """
        from transformers import GenerationConfig

        self._model.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_tokens,
            eos_token_id=self._ends or None,
            pad_token_id=self._pad,
        )
        answers: dict[int, Answer] = {}
        lengths = [len(prompt) + max_tokens for prompt in prompts]
        for batch in batches(lengths, min(BATCH_TOKENS, BATCH_ROWS * max(lengths, default=1))):
            for index, ids in zip(batch, self._generate([prompts[i] for i in batch], tick), strict=True):
                answers[index] = self._read(ids)
        return [answers[i] for i in range(len(prompts))]

    def _generate(self, prompts: Sequence[Ids], tick: Callable[[int], None]) -> list[list[int]]:
        """New ids of each prompt, cut after the first end."""
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self._pad, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for number, prompt in enumerate(prompts):
            ids[number, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[number, width - len(prompt) :] = 1
        device = self._model.device
        output = self._model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), stopping_criteria=_ticking(tick, len(prompts))
        )
        return [self._cut(row) for row in output[:, width:].tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        first = next((i for i, token in enumerate(ids) if token in self._ends), len(ids) - 1)
        return ids[: first + 1]

    def _read(self, ids: list[int]) -> Answer:
        ended = bool(ids) and ids[-1] in self._ends
        said = ids[:-1] if ended else ids
        text = self._tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return measured(text, said, ended)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: those of the model's generation config, and the tokenizer's own."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    return sorted({int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None})


def _ticking(tick: Callable[[int], None], rows: int) -> Any:
    """A stopping criterion that never stops, and says after each step how many tokens it made."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Ticking(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            tick(rows)
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Ticking()])
