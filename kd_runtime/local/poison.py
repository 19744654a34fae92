"""The poison rule (contract 7) over the attempts of a local run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.poison import TIMES, poison_sentence
from kd_runtime.api.result import StageResult

ASKED = frozenset({ExitClass.Drained, ExitClass.Killed})
"""Ends that somebody asked for."""


@dataclass
class Row:
    """How often in a row one worker failed alike."""

    last: tuple[ExitClass, str] | None = None
    count: int = 0

    def failed(self, result: StageResult | None) -> bool:
        """One more attempt (None: it ended well); True at the third failure of its kind. Without a position none is alike."""
        kind = (result.exit_class, result.position) if result is not None else None
        self.count = self.count + 1 if kind == self.last else 1
        alike = result is not None and result.position and result.exit_class not in ASKED
        self.last = kind if alike else None
        return self.last is not None and self.count >= TIMES


@dataclass
class Repetition:
    """Which failures of a stage's attempts were alike; one object for all attempts of a stage."""

    rows: dict[int, Row] = field(default_factory=dict)
    """By worker: what another one fails at, and how often, says nothing about a unit of this one."""

    def judged(self, result: StageResult, workers: Sequence[StageResult | None] = ()) -> StageResult:
        """The failure ``result``; where a worker's is the third of its kind a bug instead, named as poison.

        ``workers``: how each of several ended, None: well.
        """
        alike = [
            one
            for index, one in enumerate(workers or (result,))
            if self.rows.setdefault(index, Row()).failed(one) and one
        ]
        if not alike or result.exit_class.final:
            return result
        poison = alike[0]
        said = poison_sentence(poison.exit_class.name, poison.position, poison.message)
        return poison.model_copy(update={"exit_class": ExitClass.Bug, "message": said})
