"""The object of a unit of generate: raw answers of a teacher, a JSON line each."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.units import CommitRef, Pair, UnitStore
from kd_runtime.teachers.answers import Answer

SUFFIX = "jsonl"
HELD_UNITS = 16


def encode_answers(done: Sequence[tuple[Pair, Answer]]) -> bytes:
    """The lines, in the order of the commit's ``done``."""
    lines = (
        json.dumps({"row": pair.row, "sample": pair.sample, **asdict(answer)}, ensure_ascii=True, separators=(",", ":"))
        for pair, answer in done
    )
    return "".join(f"{line}\n" for line in lines).encode()


def decode_answers(body: bytes) -> list[tuple[Pair, Answer]]:
    """What `encode_answers` wrote. Raises ValueError, KeyError or TypeError where it is something else."""
    answers = []
    for line in body.splitlines():
        fields = json.loads(line)
        answers.append((Pair(fields.pop("row"), fields.pop("sample")), Answer(**fields)))
    return answers


@dataclass
class AnswersReader:
    """Answers by pair, a few units in memory at a time."""

    units: UnitStore
    _held: OrderedDict[str, list[tuple[Pair, Answer]]] = field(default_factory=OrderedDict)

    def get(self, pair: Pair, ref: CommitRef) -> Answer:
        """The answer to a pair that ``ref`` says is done.

        Raises:
            StorageError: the object is damaged. TransientError: it vanished.
        """
        assert ref.index is not None
        if ref.commit.name not in self._held:
            self._held[ref.commit.name] = self._read(ref)
            if len(self._held) > HELD_UNITS:
                self._held.popitem(last=False)
        self._held.move_to_end(ref.commit.name)
        found, answer = self._held[ref.commit.name][ref.index]
        if found != pair:
            raise StorageError(
                f"{ref.commit.name}: its answers are of other pairs than it says; delete it and run again"
            )
        return answer

    def _read(self, ref: CommitRef) -> list[tuple[Pair, Answer]]:
        body = self.units.read(ref.commit, SUFFIX)
        try:
            return decode_answers(body)
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{ref.commit.name}: its answers are garbled ({error}); delete it and run again"
            ) from error
