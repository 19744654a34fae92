"""A run folder: `.kd/runs/<job>/` beside the manifest, one `kd run` at a time, continued until its plan has ended."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from kd_runtime.api.failures import SettingsError


@dataclass(frozen=True)
class RunState:
    """What a run folder remembers: its id (the uid of `cache: Never`), the plan it runs, and whether that has ended."""

    run_id: str
    plan: str | None = None
    ended: bool = False


class RunFolder:
    """The folder of one job's local runs."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        (path / "logs").mkdir(exist_ok=True)
        (path / "results").mkdir(exist_ok=True)
        self._lock: int | None = None

    def __enter__(self) -> RunFolder:
        """Take the folder; SettingsError where another `kd run` has it."""
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise SettingsError(
                f"{self.path}: another `kd run` of this job is at work here; wait for it, or run from a copy of the manifest's folder"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def state(self) -> RunState:
        """The state on disk; a new run id where there is none, or where the last plan has ended."""
        try:
            kept = RunState(**json.loads((self.path / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return self.keep(RunState(secrets.token_hex(8)))
        return self.keep(RunState(secrets.token_hex(8))) if kept.ended else kept

    def last(self) -> RunState | None:
        """The state on disk as it is, or None."""
        try:
            return RunState(**json.loads((self.path / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, state: RunState) -> RunState:
        """Write the state, atomically."""
        part = self.path / "state.json.part"
        part.write_text(json.dumps(state.__dict__))
        part.replace(self.path / "state.json")
        return state

    def log(self, name: str) -> Path:
        """Where a process of this run writes what it prints."""
        return self.path / "logs" / f"{name}.log"

    def result(self, stage: str, attempt: int, index: int) -> Path:
        """Where a stage process writes its result; whatever lay there is gone."""
        path = self.path / "results" / f"{stage}-{attempt}-{index}.json"
        path.unlink(missing_ok=True)
        return path
