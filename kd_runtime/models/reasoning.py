"""Where a model's answer begins: after the reasoning that it was trained to write before it."""

from __future__ import annotations

import re

THINK, END_THINK = "<think>", "</think>"
"""Around the reasoning that an answer's content holds."""
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def without_reasoning(text: str) -> str:
    """``text`` after its leading ``<think>…</think>``; '' where that is never closed. Templates may have opened it."""
    if text.lstrip().startswith(THINK):
        return "" if END_THINK not in text else _THOUGHT.sub("", text, count=1)
    head, closed, rest = text.partition(END_THINK)
    return rest.lstrip() if closed and THINK not in head else text
