"""Chat templates: messages in, token ids out, with the tokens marked that a student learns from."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from kd_runtime.api.dataset import LossOn
from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.models.loading import load_tokenizer
from kd_runtime.models.reasoning import END_THINK, THINK
from kd_runtime.models.turns import Message, Span, TurnNotFound, assistant_turns, last_turn

ROLES = ("system", "user", "assistant", "tool")
_PROBE = "kd-probe"
TODAY = datetime.datetime(2024, 7, 26)
"""What a template is told that asks for the date (``strftime_now``), on every day: else the rows, and with them every key
below, would be others tomorrow. It is the date that Llama's templates name where nobody tells them one. Whoever changes it
raises the semantics of ingest and generate."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as a model sees it."""

    text: str
    ids: npt.NDArray[np.uint32]
    """Token ids [N], special tokens of the template included, none added by the tokenizer."""
    scored: npt.NDArray[np.bool_]
    """[N]: the tokens that have a target. Never token 0."""
    prompt_tokens: int
    """Tokens before the last assistant turn; all of them where only a prompt was rendered."""


class Template:
    """A tokenizer's chat template, or one that replaces it.

    Args:
        tokenizer_dir: a Hugging Face directory with a tokenizer.
        override: the text of a Jinja template to use in place of the tokenizer's own.

    Raises:
        SettingsError: there is no tokenizer or template, or the template fails on the simplest conversation.
    """

    def __init__(self, tokenizer_dir: Path, override: str | None = None) -> None:
        self._tokenizer = load_tokenizer(tokenizer_dir)
        self.name = "spec.dataset.template" if override is not None else f"{tokenizer_dir}: its chat template"
        """What messages call it."""
        if not self._tokenizer.is_fast:
            raise SettingsError(
                f"{tokenizer_dir}: its tokenizer gives no offsets of tokens in the text; save it as tokenizer.json"
            )
        if override is not None:
            self._tokenizer.chat_template = override
        elif self._tokenizer.chat_template is None:
            raise SettingsError(f"{tokenizer_dir}: has no chat template; name one in spec.dataset.template")
        self._check()

    @cached_property
    def text(self) -> str:
        """The Jinja text."""
        return str(self._tokenizer.get_chat_template())

    def digest(self) -> str:
        """sha256 hex of the Jinja text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def renders_reasoning(self) -> bool:
        """True where an answer's `reasoning_content` reaches the text; elsewhere it would be lost."""
        return self._shows_probe({"content": "a", "reasoning_content": _PROBE})

    @cached_property
    def renders_content_with_reasoning(self) -> bool:
        """True where reasoning before an answer, in its content, reaches the text; templates may cut it off."""
        return self._shows_probe({"content": f"{THINK}\n{_PROBE}\n{END_THINK}\n\na"})

    def prompt(self, messages: Sequence[Message]) -> Rendered:
        """``messages`` with the generation prompt after them: what a model is given to answer. Nothing is scored.

        Raises:
            DataError: a message is malformed, or the template refuses the conversation.
        """
        return _one(self.prompts([messages]))

    def prompts(self, batch: Iterable[Sequence[Message]]) -> list[Rendered | DataError]:
        """``prompt`` of many conversations at once; an error stands in its conversation's place."""
        return self._tokenised([_tried(self._prompt_text, messages) for messages in batch], prompt_only=True)

    def conversation(self, messages: Sequence[Message], loss_on: LossOn, *, cut_off: bool = False) -> Rendered:
        """``messages``, the last of which is an assistant turn, with that turn (or all of them) scored.

        Scored are a turn's tokens with its end-of-turn marker, but not the white space after it. LossOn.Response and
        LastTurn score the last turn, All every assistant turn. A token that starts before its turn is not scored. Where
        the last answer was ``cut_off`` (at maxTokens), its end-of-turn marker is not scored.

        Raises:
            DataError: a message is malformed, or the template refuses the conversation.
            SettingsError: the template renders a turn so that its tokens cannot be told.
        """
        return _one(self.conversations([messages], loss_on, cut_off=[cut_off]))

    def conversations(
        self, batch: Sequence[Sequence[Message]], loss_on: LossOn, *, cut_off: Sequence[bool] | None = None
    ) -> list[Rendered | DataError]:
        """``conversation`` of many at once; a DataError stands in its conversation's place.

        ``cut_off`` has one flag a conversation.

        Raises:
            SettingsError: the template renders a turn so that its tokens cannot be told.
        """
        flags = [False] * len(batch) if cut_off is None else cut_off
        marked = [_tried(self._marked, *row, loss_on) for row in zip(batch, flags, strict=True)]
        return self._tokenised(marked, prompt_only=False)

    def _check(self) -> None:
        try:
            self._apply([{"role": "user", "content": "q"}], True)
        except (jinja2.TemplateError, TypeError) as error:
            raise SettingsError(
                f"{self.name} fails on a single user message ({error}); "
                "correct it, or name another in spec.dataset.template"
            ) from error

    def _apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=generation_prompt,
            strftime_now=TODAY.strftime,
        )
        return str(text)

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        try:
            return self._apply(messages, generation_prompt)
        except (jinja2.TemplateError, TypeError) as error:
            raise DataError(f"{self.name} refuses the conversation: {error}") from error

    def _shows_probe(self, answer: Message) -> bool:
        return _PROBE in self._render([{"role": "user", "content": "q"}, {"role": "assistant", **answer}], False)

    def _prompt_text(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        _check_messages(messages)
        return self._render(messages, True), []

    def _marked(self, messages: Sequence[Message], cut_off: bool, loss_on: LossOn) -> tuple[str, list[Span]]:
        _check_messages(messages)
        if messages[-1]["role"] != "assistant":
            raise DataError(f"messages: the last has role {messages[-1]['role']!r}; end with the assistant's answer")
        if messages[0]["role"] == "assistant":
            raise DataError("messages: the first has role 'assistant'; begin with a system or user message")
        text = self._render(messages, False)
        try:
            if loss_on is LossOn.All:
                return text, assistant_turns(self._render, messages, text, cut_off=cut_off)
            return text, [last_turn(self._render, messages, text, cut_off=cut_off)]
        except TurnNotFound as error:
            raise SettingsError(
                f"{self.name} cannot be trained on: {error}; name one in spec.dataset.template that renders "
                "a turn the same whether or not more follows"
            ) from error

    def _tokenised(
        self, marked: list[tuple[str, list[Span]] | DataError], *, prompt_only: bool
    ) -> list[Rendered | DataError]:
        texts = [entry[0] for entry in marked if not isinstance(entry, DataError)]
        if not texts:
            return [entry for entry in marked if isinstance(entry, DataError)]
        encoded = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [
            entry if isinstance(entry, DataError) else _rendered(*entry, *next(tokens), prompt_only=prompt_only)
            for entry in marked
        ]


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise DataError("messages: are empty; give at least one user message")
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"messages[{number}].role: {role!r} is none of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"messages[{number}].content: is {type(content).__name__}; give text")


def _rendered(
    text: str, spans: list[Span], ids: list[int], offsets: list[tuple[int, int]], *, prompt_only: bool
) -> Rendered:
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    scored = np.zeros(len(ids), dtype=np.bool_)
    for start, end in spans:
        scored |= _inside(places, start, end)
    prompt_tokens = len(ids)
    if not prompt_only:
        answer = np.flatnonzero(_inside(places, *spans[-1]))
        prompt_tokens = int(answer[0]) if len(answer) else len(ids)
    scored[:1] = False
    return Rendered(text, np.asarray(ids, dtype=np.uint32), scored, prompt_tokens)


def _inside(places: npt.NDArray[np.int64], start: int, end: int) -> npt.NDArray[np.bool_]:
    """Tokens that begin in [start, end), also where offsets are trimmed of white space and so may be empty."""
    first, last = places[:, 0], places[:, 1]
    return (first >= start) & (last > start) & (first < end)


def _tried(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except DataError as error:
        return error


def _one(results: list[Rendered | DataError]) -> Rendered:
    if isinstance(results[0], DataError):
        raise results[0]
    return results[0]
