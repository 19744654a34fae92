"""The local executor: runs a plan's stages as processes of this machine, its teachers for just as long as they are asked."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kd_runtime.api.failures import GANG_ORDER, ExitClass, KDError, exit_class
from kd_runtime.api.poison import SMOKE_UNIT
from kd_runtime.api.result import StageResult
from kd_runtime.artifacts.store import Store
from kd_runtime.local.display import Display, ProgressServer
from kd_runtime.local.folder import RunFolder
from kd_runtime.local.poison import Repetition
from kd_runtime.local.tables import duration
from kd_runtime.local.teacher import LocalTeacher, last_line, teacher_command
from kd_runtime.planning.lookup import Lookup, look_up
from kd_runtime.planning.plan import Plan, PlannedStage, StageType
from kd_runtime.planning.probes import api_key
from kd_runtime.planning.resolve import teacher_named
from kd_runtime.telemetry.processes import end_tree, spawn

POLL_SECONDS = 0.2
GRACE_SECONDS = 20.0


class StageFailed(KDError):
    """A stage of a local run has ended for good."""

    def __init__(self, kind: ExitClass, message: str):
        super().__init__(message)
        self.exit_class = kind


class Interrupted(KDError):
    """Ctrl-C or SIGTERM: everything was stopped in order, and typing the command again goes on."""

    exit_class = ExitClass.Killed


@dataclass(frozen=True)
class Log:
    """A process's log, which earlier attempts wrote to as well; this one from byte ``start`` on."""

    path: Path
    start: int

    @classmethod
    def of(cls, path: Path) -> Log:
        """The log as it is before an attempt."""
        return cls(path, path.stat().st_size if path.exists() else 0)


@dataclass
class Executor:
    """Runs one plan. ``run`` returns when every stage is found, or raises what ended it."""

    plan: Plan
    store: Store
    folder: RunFolder
    cache: Path
    display: Display
    _teacher: LocalTeacher | None = None
    _external: tuple[str, str | None] | None = None
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _workers: list[StageResult | None] = field(default_factory=list)
    """How each of several workers ended in the last attempt; None: well."""
    _interrupted: bool = False

    def run(self) -> None:
        """Every stage in order: found, or run until it is.

        Raises:
            StageFailed: a stage ended for good. Interrupted: Ctrl-C or SIGTERM. TeacherError, SettingsError: the teacher.
        """
        with ProgressServer(self.display) as server, self._signals():
            try:
                for stage in self.plan.stages:
                    self._stage(stage, server.url)
            finally:
                self._stop_all()

    def _stage(self, stage: PlannedStage, progress_url: str) -> None:
        state = look_up(self.plan, self.store)[stage.name]
        if not state.runs:
            mark = ("found", "green") if state.state is Lookup.Found else ("not needed", "dim")
            self.display.say((f"{stage.name:<10}", "bold"), " ", mark, f"  {stage.key[:12]}")
            return
        started = time.monotonic()
        self._ready_teacher(stage)
        result = self._attempts(stage, progress_url)
        self._release_teacher(stage)
        counts = "  ".join(f"{name} {value:,}" for name, value in result.counts.items())
        said = f"   {stage.key[:12]}  {duration(time.monotonic() - started):>8}  {counts}"
        self.display.say((f"{stage.name:<10}", "bold"), " ", ("done", "green"), said)

    # ---- attempts ------------------------------------------------------------------------------------------------------

    def _attempts(self, stage: PlannedStage, progress_url: str) -> StageResult:
        policy, repetition = self.plan.spec.failure_policy, Repetition()
        for attempt in range(1, policy.backoff_limit + 2):
            if attempt > 1:
                self._make_inputs(stage, progress_url)
            result = self._attempt(stage, attempt, progress_url)
            if result.exit_class is ExitClass.Done:
                return result
            if self._interrupted:
                raise Interrupted("stopped; type the same command again to go on from here")
            result = repetition.judged(result, self._workers)
            last = attempt > policy.backoff_limit
            if result.exit_class.final or last:
                raise StageFailed(result.exit_class, f"stage {stage.name}: {result.message}")
            wait = min(policy.backoff.base_seconds * 2 ** (attempt - 1), policy.backoff.max_seconds)
            self.display.say(
                f"{stage.name}: {result.exit_class.name}: {result.message}; attempt {attempt + 1} in {wait} s"
            )
            self._sleep(wait)
        raise AssertionError("unreachable")

    def _make_inputs(self, stage: PlannedStage, progress_url: str) -> None:
        """Before a further attempt: what the stage reads may have been collected, or made anew, meanwhile (contract 12)."""
        for earlier in self.plan.stages[: self.plan.stages.index(stage)]:
            if look_up(self.plan, self.store)[earlier.name].runs:
                self._stage(earlier, progress_url)
        self._ready_teacher(stage)

    def _attempt(self, stage: PlannedStage, attempt: int, progress_url: str) -> StageResult:
        """One attempt of all workers; its result is the worst of theirs."""
        workers = 1 if stage.type is StageType.Ingest else self.plan.settings(stage.name).workers
        self.display.start(stage.name, "starting")
        results = [self.folder.result(stage.name, attempt, index) for index in range(workers)]
        logs = [Log.of(self.folder.log(f"{stage.name}-{index}" if index else stage.name)) for index in range(workers)]
        self._children = [
            spawn(
                self._command(stage, attempt, index),
                env=self._environment(results[index], progress_url),
                log=logs[index].path,
            )
            for index in range(workers)
        ]
        limit = self._timeout(stage)
        late = time.monotonic() + limit if limit is not None else math.inf
        codes = self._wait(stage, late, results)
        at = self.display.step(stage.name)
        self.display.stop(stage.name)
        ends = [_end(code, path, log) for code, path, log in zip(codes, results, logs, strict=True)]
        self._workers = ends if workers > 1 else []
        result = self._judge(stage, results, logs, ends)
        if result.exit_class is ExitClass.Done:
            return result
        if time.monotonic() > late and not self._interrupted:
            return StageResult(
                exit_class=ExitClass.Transient,
                message=f"ran longer than timeoutSeconds ({limit} s) and was ended; what it committed is kept, raise the limit",
            )
        return result.model_copy(update={"position": result.position or (f"step {at + 1}" if at else "")})

    def _timeout(self, stage: PlannedStage) -> int | None:
        """Seconds that an attempt may take; ingest, which the spec does not list, may take any."""
        return None if stage.type is StageType.Ingest else self.plan.settings(stage.name).timeout_seconds

    def _judge(
        self, stage: PlannedStage, results: list[Path], logs: list[Log], ends: list[StageResult | None]
    ) -> StageResult:
        """Success is an artifact in the store, not exit 0 (contract 6)."""
        if look_up(self.plan, self.store)[stage.name].state is Lookup.Found:
            read = [StageResult.read(path) for path in results]
            named = [r for r in read if r is not None and r.manifest_sha256]
            return named[0] if named else StageResult(exit_class=ExitClass.Done)
        failed = [end for end in ends if end is not None]
        if failed:
            return min(failed, key=lambda end: GANG_ORDER.index(end.exit_class))
        return StageResult(exit_class=ExitClass.Transient, message=f"ended without an artifact (log: {logs[0].path})")

    def _command(self, stage: PlannedStage, attempt: int, index: int) -> list[str]:
        return [
            sys.executable, "-m", "kd_runtime.cli.main", "stage", "run", "--store", self.store.uri, "--plan", self.plan.digest,
            "--stage", stage.name, "--attempt", str(attempt), "--index", str(index), "--cache", str(self.cache),
        ]  # fmt: skip

    def _environment(self, result: Path, progress_url: str) -> dict[str, str]:
        env = {**os.environ, "KD_RESULT_FILE": str(result), "KD_PROGRESS_URL": progress_url, "PYTHONUNBUFFERED": "1"}
        s3 = self.plan.spec.artifacts
        if s3.endpoint:
            env["AWS_ENDPOINT_URL"] = s3.endpoint
        if s3.region:
            env["AWS_REGION"] = s3.region
        if self._address:
            env["KD_TEACHER_URL"], key = self._address
            if key:
                env["KD_TEACHER_KEY"] = key
        return env

    def _wait(self, stage: PlannedStage, late: float, results: list[Path]) -> list[int]:
        """Until all workers have ended, one has in a way that leaves nothing to do for the others, or the clock says ``late``."""
        while any(child.poll() is None for child in self._children):
            if self._interrupted:
                self.display.say(f"{stage.name}: stopping (it saves what it can; Ctrl-C again kills it)")
                self._interrupted = False
                codes = self._drain(stage)
                self._interrupted = True
                return codes
            if time.monotonic() > late:
                self.display.say(f"{stage.name}: timeoutSeconds is over; stopping")
                return self._drain(stage)
            if self._teacher is not None and self._teacher.revive():
                self.display.say(f"teacher {self._teacher.name}: died and was started again")
            if any(_ends_all(child, path) for child, path in zip(self._children, results, strict=True)):
                break
            time.sleep(POLL_SECONDS)
        return [
            child.returncode if child.poll() is not None else end_tree(child, GRACE_SECONDS) for child in self._children
        ]

    def _drain(self, stage: PlannedStage) -> list[int]:
        grace = GRACE_SECONDS
        train = self.plan.settings(stage.name).train if stage.type is StageType.Train else None
        if train is not None:
            grace += train.checkpoint.drain_seconds
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        limit = time.monotonic() + grace
        while (
            any(child.poll() is None for child in self._children) and time.monotonic() < limit and not self._interrupted
        ):
            time.sleep(POLL_SECONDS)
        return [end_tree(child, 0.5) for child in self._children]

    # ---- teachers ------------------------------------------------------------------------------------------------------

    @property
    def _address(self) -> tuple[str, str | None] | None:
        return self._external or ((self._teacher.url, self._teacher.key) if self._teacher else None)

    def _ready_teacher(self, stage: PlannedStage) -> None:
        """The teacher that the stage asks, ready; any other is gone."""
        self._external = None
        if stage.teacher is None:
            return
        name, teacher = teacher_named(self.plan.spec, stage.teacher)
        if teacher.external is not None:
            self._external = (teacher.external.base_url, api_key(teacher.external))
            return
        if self._teacher is not None and self._teacher.name == name:
            return
        self._stop_teacher()
        assert teacher.hosted is not None
        self._teacher = LocalTeacher(
            name,
            teacher_command(self.store.uri, self.plan.digest, name, self.cache, self.plan.spec.artifacts),
            self.folder.log(f"teacher-{name}"),
            teacher.hosted.startup_timeout_seconds,
        )
        self.display.start("teacher", f"{name} ({teacher.hosted.engine}) is loading")
        self._teacher.start()
        seconds = self._teacher.wait()
        self.display.stop("teacher")
        said = f" ready  {name} ({teacher.hosted.engine}) after {seconds:.0f} s"
        self.display.say((f"{'teacher':<10}", "bold"), said)

    def _release_teacher(self, stage: PlannedStage) -> None:
        """Stop the teacher unless the next stage that runs asks it too."""
        states = look_up(self.plan, self.store)
        names = [s.name for s in self.plan.stages]
        later = [s for s in self.plan.stages[names.index(stage.name) + 1 :] if states[s.name].runs]
        if self._teacher is not None and (not later or later[0].teacher != self._teacher.name):
            self._stop_teacher()

    def _stop_teacher(self) -> None:
        if self._teacher is not None:
            self._teacher.stop()
            self._teacher = None

    # ---- the end -------------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        for child in self._children:
            end_tree(child, 2.0)
        self._stop_teacher()

    def _sleep(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if self._interrupted:
                raise Interrupted("stopped; type the same command again to go on from here")
            time.sleep(POLL_SECONDS)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def interrupt(number: int, frame: object) -> None:
            if not self._children or all(child.poll() is not None for child in self._children):
                raise Interrupted("stopped; type the same command again to go on from here")
            self._interrupted = True

        before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(code: int, path: Path, log: Log) -> StageResult | None:
    """How a worker failed; None where it ended well."""
    kind = exit_class(_shell(code))
    if kind is ExitClass.Done:
        return None
    result = StageResult.read(path)
    said = result.message if result else f"{_ended(code)}: {last_line(log.path, log.start)}"
    position = result.position if result else ""
    return StageResult(exit_class=kind, message=f"{said} (log: {log.path})", position=position)


def _ends_all(child: subprocess.Popen[bytes], path: Path) -> bool:
    """True where a worker has ended for good, or in the smoke unit, for which the others wait in vain."""
    kind = exit_class(_shell(child.returncode)) if child.poll() is not None else ExitClass.Done
    if kind is ExitClass.Done or kind.final:
        return kind.final
    result = StageResult.read(path)
    return result is not None and result.position == SMOKE_UNIT


def _ended(code: int) -> str:
    """``ended by signal 9``, or ``ended with code 1``."""
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code}"


def _shell(code: int) -> int:
    """A return code as a shell gives it: 128 + the signal."""
    return 128 - code if code < 0 else code
