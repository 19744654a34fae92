"""`kd chat`: talk to teacher, untrained and trained student side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kd_runtime.cli.consoles import console


def add(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(chat)


def chat(
    run: Annotated[Path, typer.Argument(help="The manifest of a job that was run here.", exists=True, dir_okay=False)],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Ask this instead of what is typed; may be repeated.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 160,
) -> None:
    """Talk to teacher, untrained and trained student side by side."""
    from kd_runtime.local.chat import chat as talk

    talk(run, prompt or [], max_tokens, console())
