"""Where commands print: as wide as the terminal, and wide enough for tables where there is none."""

from __future__ import annotations

import os

from rich.console import Console

PLAIN_WIDTH = 150
"""Columns where the output is no terminal."""


def console() -> Console:
    """Standard output."""
    plain = Console()
    return plain if plain.is_terminal or "COLUMNS" in os.environ else Console(width=PLAIN_WIDTH)
