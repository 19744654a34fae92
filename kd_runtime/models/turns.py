"""Where the assistant's turns lie in the text that a chat template renders.

A template is a program, so a turn's place is found by rendering prefixes of the conversation: what the template makes
of the messages before a turn, with its generation prompt, is what a model sees when it writes that turn. Where an
earlier turn is rendered otherwise than the last one (reasoning models drop its reasoning), its content locates it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], bool], str]
"""(messages, add_generation_prompt) -> text."""
Span = tuple[int, int]
"""[start, end) in characters."""


class TurnNotFound(Exception):
    """The template renders a turn in a way that its place cannot be told from."""


def last_turn(render: Render, messages: Sequence[Message], text: str, *, cut_off: bool = False) -> Span:
    """The span of the last message, an assistant turn, in ``text`` (= ``render(messages, False)``).

    It starts where the generation prompt ends and holds the end-of-turn marker, but no white space after that. Of an
    answer that was ``cut_off`` the marker stays outside: whoever wrote it did not end there.

    Raises:
        TurnNotFound: ``text`` does not start with the prompt that a model is given for this turn.
    """
    prompt = render(messages[:-1], True)
    if not text.startswith(prompt):
        same = _alike(prompt, text)
        raise TurnNotFound(
            f"it ends a prompt in {prompt[same:]!r} where it renders the answer as {text[same : same + 40]!r}, "
            "so a student would learn to answer another prompt than it is given"
        )
    told = text[: _end_of_content(render, messages, text)] if cut_off else text
    return len(prompt), max(len(prompt), len(told.rstrip()))


def assistant_turns(render: Render, messages: Sequence[Message], text: str, *, cut_off: bool = False) -> list[Span]:
    """The spans of every assistant turn of ``messages`` in ``text`` (= ``render(messages, False)``), in order.

    ``cut_off`` concerns the last one, as in ``last_turn``.

    Raises:
        TurnNotFound: a turn's place cannot be told, or two turns overlap.
    """
    spans: list[Span] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if index == len(messages) - 1:
            spans.append(last_turn(render, messages, text, cut_off=cut_off))
        else:
            spans.append(_earlier_turn(render, messages, index, text))
        if len(spans) > 1 and spans[-1][0] < spans[-2][1]:
            raise TurnNotFound(f"message {index} seems to start inside the turn before it")
    return spans


def _earlier_turn(render: Render, messages: Sequence[Message], index: int, text: str) -> Span:
    before = render(messages[:index], False)
    if not text.startswith(before):
        raise TurnNotFound(f"what comes before message {index} changes when more follows")
    # The generation prompt may open a block of reasoning that the template then leaves out of earlier turns.
    start = _alike(render(messages[:index], True), text)
    alone = render(messages[: index + 1], False)
    if text.startswith(alone):
        return start, max(start, len(alone.rstrip()))
    content = str(messages[index]["content"]).strip()
    found = text.find(content, start)
    marker = alone[alone.rindex(content) + len(content) :].rstrip() if content in alone else None
    if found < 0 or marker is None or not text.startswith(marker, found + len(content)):
        raise TurnNotFound(f"message {index} is rendered otherwise once more follows")
    return start, found + len(content) + len(marker)


def _end_of_content(render: Render, messages: Sequence[Message], text: str) -> int:
    """Where the last message's content ends in ``text``, whatever the template makes of it.

    What follows is what a longer content is followed by too.
    """
    content = str(messages[-1]["content"]).rstrip()
    more = "a" if content[-1:] != "a" else "b"
    longer = render([*messages[:-1], {**messages[-1], "content": content + more}], False)
    return len(text) - _alike(text[::-1], longer[::-1])


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
