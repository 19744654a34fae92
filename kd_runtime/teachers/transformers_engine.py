"""The Transformers engine: one model that renders, generates and scores, one request at a time.

It is the reference for what vLLM answers and the fallback where vLLM does not run. Nothing is batched, so that no bit
of an answer depends on what else is asked at the time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kd_runtime.logits.build import TeacherRow
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.models.loading import load_causal_lm, load_tokenizer
from kd_runtime.teachers.distributions import beyond_head, uniforms_of_row
from kd_runtime.teachers.wire import BadRequest, ScoreRow

CHUNK_POSITIONS = 512
"""Positions whose logits exist at once while scoring; a constant, because it decides the last bits of a sum."""
RANKED_POSITIONS = 64
"""Positions whose whole distributions are ranked at once (some 40 bytes an entry)."""


@dataclass(frozen=True)
class Ask:
    """One generation: prompt ids and how to sample."""

    ids: list[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """What the model said."""

    text: str
    finish_reason: str
    """stop | length"""
    prompt_tokens: int
    completion_tokens: int


class Gone(Exception):
    """The client went away: nobody waits for the rest."""


class TransformersEngine:
    """A causal language model in this process. Its methods are called by one thread at a time."""

    def __init__(self, model: Any, tokenizer: Any, max_model_len: int) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self.max_model_len = max_model_len
        self.vocab = int(model.config.get_text_config().vocab_size)
        self._ends = _end_ids(model, tokenizer)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @classmethod
    def load(
        cls, model_dir: Path, dtype: str, max_model_len: int | None, *, trust_remote_code: bool = False
    ) -> TransformersEngine:
        """Load a Hugging Face directory. ``max_model_len`` None: what the model's config says.

        Raises:
            SettingsError: it holds no model or no tokenizer that transformers loads.
        """
        model = load_causal_lm(model_dir, dtype, trust_remote_code=trust_remote_code)
        if torch.cuda.is_available():
            model = model.to("cuda")
        longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 4096)
        tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
        return cls(model, tokenizer, min(max_model_len or longest, longest))

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation in the model's own chat template.

        Raises:
            BadRequest: the template refuses the messages.
        """
        import jinja2

        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
            raise BadRequest(f"the chat template refuses the messages: {error}") from error
        return self.tokenize(text, add_special_tokens=False)

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        return list(self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    @torch.inference_mode()
    def complete(self, ask: Ask, wanted: Callable[[], bool] = lambda: True) -> Completion:
        """Generate. The same ask gives the same answer, whatever else is asked.

        ``wanted`` is looked at before each token; Gone is raised where it says no.

        Raises:
            BadRequest: the prompt leaves no room for an answer, or is empty.
        """
        room = self.max_model_len - len(ask.ids)
        if room < 1:
            raise BadRequest(
                f"the prompt has {len(ask.ids)} tokens; "
                f"this model's maximum context length is {self.max_model_len} tokens"
            )
        if not ask.ids:
            raise BadRequest("the prompt is empty")
        if ask.max_tokens > self.max_model_len:  # as vLLM does
            raise BadRequest(
                f"max_tokens {ask.max_tokens} exceeds this model's maximum context length of {self.max_model_len} tokens"
            )
        budget = min(ask.max_tokens, room)
        out: list[int] = []
        for token in self._tokens(ask, budget):
            if not wanted():
                raise Gone
            if token in self._ends:
                return self._completion(ask, out, "stop", extra=1)
            out.append(token)
            if ask.stop and (cut := self._stopped(out, ask.stop)) is not None:
                return Completion(cut, "stop", len(ask.ids), len(out))
        return self._completion(ask, out, "length")

    def _tokens(self, ask: Ask, budget: int) -> Iterator[int]:
        device = self._model.device
        generator = torch.Generator(device="cpu").manual_seed(ask.seed)
        step, cache = torch.tensor([ask.ids], device=device), None
        for _ in range(budget):
            more = {"logits_to_keep": 1} if self._keeps else {}
            out = self._model(input_ids=step, past_key_values=cache, use_cache=True, **more)
            cache = out.past_key_values
            token = sample(out.logits[0, -1].float().cpu(), ask.temperature, ask.top_p, generator)
            yield token
            step = torch.tensor([[token]], device=device)

    def _stopped(self, out: list[int], stop: tuple[str, ...]) -> str | None:
        """The text before the first stop string, or None where none has come yet."""
        text = self._decode(out)
        places = [at for s in stop if (at := text.find(s)) >= 0]
        return text[: min(places)] if places else None

    def _completion(self, ask: Ask, out: list[int], reason: str, extra: int = 0) -> Completion:
        return Completion(self._decode(out), reason, len(ask.ids), len(out) + extra)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    @torch.inference_mode()
    def score(
        self, row: ScoreRow, spec: ShardSpec, seed: int = 0, wanted: Callable[[], bool] = lambda: True
    ) -> TeacherRow:
        """What ``spec`` asks for at each scored position of one row; ``seed`` is that of the draws from the tail.

        Ids from the spec's vocabulary on are padding and left out of the distribution.

        Raises:
            BadRequest: the row is longer than the model takes.
        """
        if len(row.ids) > self.max_model_len - 1:  # vLLM makes one token after the row; one rule for both engines
            raise BadRequest(
                f"a row has {len(row.ids)} tokens; this model's maximum context length is {self.max_model_len} tokens, "
                "and one is kept free"
            )
        uniforms = uniforms_of_row(row.key, int(row.scored.sum()), spec.m, seed)
        parts: list[dict[str, npt.NDArray[Any]]] = []
        done = 0
        for logits, labels in self._chunks(row):
            if not wanted():
                raise Gone
            for start in range(0, len(labels), RANKED_POSITIONS):
                some = slice(start, start + RANKED_POSITIONS)
                lp = logits[some, : spec.vocab].float().log_softmax(-1)
                parts.append(score_positions(lp, labels[some], spec, uniforms[done : done + len(lp)]))
                done += len(lp)
        return TeacherRow(
            row.key, row.ids, row.scored, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        )

    def _chunks(self, row: ScoreRow) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits [p,V] before each scored token of a chunk of positions, and those tokens [p]."""
        device = self._model.device
        ids = torch.from_numpy(row.ids.astype(np.int64)).to(device)
        targets = torch.from_numpy(np.flatnonzero(row.scored)).to(device)
        cache = None
        last = int(targets[-1])  # what follows the last target is never read
        for start in range(0, last, CHUNK_POSITIONS):
            stop = min(start + CHUNK_POSITIONS, last)
            chosen = targets[(targets > start) & (targets <= stop)]
            rows = chosen - 1 - start
            more = {"logits_to_keep": rows} if self._keeps else {}
            out = self._model(input_ids=ids[None, start:stop], past_key_values=cache, use_cache=True, **more)
            cache = out.past_key_values
            yield (out.logits[0] if self._keeps else out.logits[0, rows]), ids[chosen]


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token of logits [V] in fp32: the largest (the first of equals) at temperature 0, else drawn from the nucleus.

    The nucleus is the smallest set of most likely tokens whose probability reaches ``top_p`` (Holtzman et al. 2020).
    """
    if temperature == 0:
        return int(logits.argmax())
    probabilities, ids = torch.softmax(logits / temperature, -1).sort(descending=True, stable=True)
    if top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def score_positions(
    lp: Tensor, labels: Tensor, spec: ShardSpec, uniforms: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[Any]]:
    """The fields of a TeacherRow of p positions, from logprobs ``lp`` [p,V] in fp32, labels [p] and draws' uniforms [p,M].

    The rank is 1 + the count strictly greater. The tail is the log of the mass outside the head, summed in fp64 and
    never taken as 1 minus the head's.
    """
    label_lp = lp.gather(1, labels[:, None])
    fields: dict[str, Tensor] = {"lab_lp": label_lp[:, 0], "lab_rank": 1 + (lp > label_lp).sum(1)}
    inside = head_mask(lp, spec.k)
    if spec.k:
        ids = inside.nonzero()[:, 1].view(len(lp), spec.k)
        tail = lp.double().masked_fill(inside, -torch.inf).logsumexp(-1)
        fields |= {"top_ids": ids, "top_lp": lp.gather(1, ids), "tail_lp": tail}
    return {name: value.cpu().numpy() for name, value in fields.items()} | beyond_head(lp, inside, spec, uniforms)


def head_mask(lp: Tensor, k: int) -> Tensor:
    """[p,V]: the ``k`` largest of each position; of equals at the k-th place, where topk is free, the lowest ids."""
    if k == 0:
        return torch.zeros_like(lp, dtype=torch.bool)
    least = lp.topk(k, dim=-1).values[:, -1:]
    above, at_edge = lp > least, lp == least
    room = k - above.sum(1, keepdim=True)
    return above | (at_edge & (at_edge.cumsum(1, dtype=torch.int32) <= room))


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: those of the generation config, and the tokenizer's own."""
    said = getattr(model.generation_config, "eos_token_id", None)
    ends = said if isinstance(said, list) else [said]
    return frozenset(int(end) for end in [*ends, tokenizer.eos_token_id] if end is not None)
