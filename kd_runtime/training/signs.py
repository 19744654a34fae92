"""What a rank tells its parent while it runs: a small file that it rewrites at each sign of progress."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sign:
    """One sign of progress. ``beat`` grows with each; ``phase`` says what is being done."""

    beat: int = 0
    phase: str = "starting"
    step: int = 0
    steps: int = 0
    tokens: int = 0
    """Tokens of this process's gang since it started."""
    loss: float | None = None
    saved: str = ""
    """Where this process's newest checkpoint lies in the store; empty before its first."""


class Signs:
    """The rank's side: writes ``folder/sign-<rank>.json``."""

    def __init__(self, folder: Path, rank: int):
        self._path = sign_path(folder, rank)
        self._beat = 0
        self.saved = ""

    def give(self, phase: str, *, step: int = 0, steps: int = 0, tokens: int = 0, loss: float | None = None) -> None:
        """Say that there was progress."""
        self._beat += 1
        sign = Sign(self._beat, phase, step, steps, tokens, loss, self.saved)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(asdict(sign)))
        new.replace(self._path)


def sign_path(folder: Path, rank: int) -> Path:
    """Where a rank's signs lie."""
    return folder / f"sign-{rank}.json"


def read_sign(folder: Path, rank: int) -> Sign | None:
    """The rank's last sign; None before its first."""
    try:
        return Sign(**json.loads(sign_path(folder, rank).read_text()))
    except FileNotFoundError:
        return None
