"""Poison (contract 7): what fails in the same way at the same place three times in a row is no accident. How it is said."""

from __future__ import annotations

from kd_runtime.api.failures import ExitClass

TIMES = 3
SMOKE_UNIT = "smoke unit"


def unit_position(number: int) -> str:
    """Where a unit's failure came, for those who look for what fails there again. The number counts the units of the whole stage
    in the order of its rows, whatever is committed: it names the same unit in each attempt of a plan, whoever takes it."""
    return f"unit {number}"


def poison_sentence(kind: str, position: str, message: str) -> str:
    """``kind``: the exit class's name; ``message``: what the last failure said, which names the rows."""
    remedy = ", so what is done there is at fault; look at it, or leave it out"
    if kind == ExitClass.TeacherUnreachable.name:
        remedy = (
            "; the teacher got these rows and never answered: unless it answers nobody, correct them or take them out of the "
            "dataset and run again (what was answered is kept)"
        )
    return f"poison: {kind} at {position} {TIMES} times in a row{remedy}: {message}"
