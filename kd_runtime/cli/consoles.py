"""Where commands print: as wide as the terminal, and wide enough for tables where there is none.

Nothing printed is markup: an answer with `[/INST]` in it, or a manifest's `[b]` or `:key:`, is shown as it is. What has a
style is a `Text`.
"""

from __future__ import annotations

import os

from rich.console import Console

PLAIN_WIDTH = 150
"""Columns where the output is no terminal."""


def console(*, soft_wrap: bool = False, stderr: bool = False) -> Console:
    """Standard output, or standard error. ``soft_wrap``: lines are as long as they are."""

    def made(width: int | None = None) -> Console:
        return Console(width=width, markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap, stderr=stderr)

    plain = made()
    return plain if plain.is_terminal or "COLUMNS" in os.environ else made(PLAIN_WIDTH)
