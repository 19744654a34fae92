"""`kd chat` shows what models say as they say it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kd_runtime.local import chat

ANSWER = "[/INST] [b]bold[/b] :key: [red]"


class Parrot:
    """A voice that says one thing."""

    name = "trained"

    def answer(self, messages: list[dict[str, str]], max_tokens: int) -> str:
        return ANSWER


@pytest.mark.parametrize("typed", [False, True])
def test_text_that_looks_like_markup_is_shown_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: bool
) -> None:
    nothing: Any = None
    monkeypatch.setattr(chat, "open_run", lambda _: (nothing, nothing, tmp_path))
    monkeypatch.setattr(chat, "load_voices", lambda *_: [Parrot()])
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ANSWER}\n\n"))
    out = io.StringIO()
    chat.chat(tmp_path, [] if typed else [ANSWER], 8, Console(file=out, width=100))
    assert out.getvalue().count(ANSWER) == (1 if typed else 2)
