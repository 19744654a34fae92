"""`kd stage run`: one stage of a plan, from look-up to result file (contracts 5 to 7)."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from kd_runtime.api.failures import ExitClass, KDError, SettingsError, TransientError, classify, disk_full
from kd_runtime.api.result import StageResult
from kd_runtime.artifacts.cache import DEFAULT_LIMIT_BYTES, Cache
from kd_runtime.artifacts.manifest import Manifest, read_manifest, retire
from kd_runtime.artifacts.store import Missing, Store, open_store
from kd_runtime.artifacts.wholeness import lost_object
from kd_runtime.artifacts.writer import new_writer_id
from kd_runtime.planning.lookup import Lookup, judge, lost_targets
from kd_runtime.planning.plan import Plan, PlannedStage, StageType
from kd_runtime.stages.context import StageContext, StageOutcome, TeacherAddress
from kd_runtime.stages.reporting import write_report
from kd_runtime.telemetry.processes import become_subreaper, end_descendants
from kd_runtime.telemetry.progress import Reporter

MARK_SECONDS = 86_400.0


@dataclass(frozen=True)
class StageOptions:
    """The command line of `kd stage run`."""

    store: str
    plan: str
    stage: str
    attempt: int = 1
    index: int = 0
    endpoint: str | None = None
    region: str | None = None
    cache: Path | None = None


class KilledError(KDError):
    """SIGTERM came, and the stage has nothing to save first."""

    exit_class = ExitClass.Killed


def run_stage(options: StageOptions) -> int:
    """Run the stage; write the result file; return the exit code. Never raises."""
    become_subreaper()
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        result = _run(options)
    except BaseException as error:
        result = _failure(error)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants()
    result.write()
    if result.exit_class is not ExitClass.Done:
        print(f"{options.stage}: {result.exit_class.name}: {result.message}", file=sys.stderr, flush=True)
    return int(result.exit_class)


def load_plan(store: Store, digest: str) -> Plan:
    """The plan at plans/<digest>.json, its use marked.

    Raises:
        SettingsError: there is none, or its bytes have another digest.
    """
    try:
        body = store.get(f"plans/{digest}.json")
    except Missing as error:
        raise SettingsError(
            f"--plan {digest}: {store.uri} holds no such plan; run `kd plan` or `kd run` first"
        ) from error
    plan = Plan.model_validate_json(body)
    if plan.digest != digest:
        raise SettingsError(
            f"--plan {digest}: the stored plan has digest {plan.digest}; it was written by another version, plan again"
        )
    mark_used(store, digest)
    return plan


def local_cache(folder: Path | None) -> Cache:
    """The cache in ``folder``, else $KD_CACHE_DIR, else ~/.cache/kubedistill; of at most $KD_CACHE_BYTES.

    Raises:
        SettingsError: that is no number of bytes.
    """
    said = os.environ.get("KD_CACHE_BYTES", str(DEFAULT_LIMIT_BYTES))
    if not said.isdecimal() or int(said) == 0:
        raise SettingsError(f"KD_CACHE_BYTES={said}: is no number of bytes; set it to one, or unset it")
    chosen = folder or Path(os.environ.get("KD_CACHE_DIR", Path.home() / ".cache" / "kubedistill"))
    return Cache(chosen, int(said))


def mark_used(store: Store, digest: str) -> None:
    """Rewrite plans/<digest>.used: garbage collection keeps what was used in the last 30 days."""
    store.put(f"plans/{digest}.used", datetime.now(UTC).isoformat().encode())


class InUse:
    """Says each day that the plan is in use, for a stage that runs longer than garbage collection waits.

    A store that fails just then is no reason to end: the next day's mark is early enough.
    """

    def __init__(self, store: Store, digest: str, every: float = MARK_SECONDS):
        self._store, self._digest, self._every = store, digest, every
        self._over = threading.Event()

    def __enter__(self) -> InUse:
        threading.Thread(target=self._mark, name="in-use", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _mark(self) -> None:
        while not self._over.wait(self._every):
            with contextlib.suppress(KDError):
                mark_used(self._store, self._digest)


def _run(options: StageOptions) -> StageResult:
    store = open_store(options.store, endpoint=options.endpoint, region=options.region)
    plan = load_plan(store, options.plan)
    try:
        stage = plan.stage(options.stage)
    except KeyError:
        names = ", ".join(s.name for s in plan.stages)
        raise SettingsError(f"--stage {options.stage}: the plan has no such stage; its stages are {names}") from None
    found = _look_up(plan, stage, store)
    if found is not None:
        return _result(StageOutcome(found, found.counts, found.metrics, "found"))
    watch = StallWatch(_stall_seconds(plan, stage))
    reporter = Reporter(stage.name, options.index, heard=watch.heard)
    work = Path(tempfile.mkdtemp(prefix=f"kd-{stage.name}-"))
    try:
        context = _context(options, plan, stage, store, reporter, work)
        with watch, InUse(store, options.plan):
            outcome: StageOutcome = importlib.import_module(f"kd_runtime.stages.{stage.type.value}").run(context)
        if outcome.manifest is not None and stage is plan.stages[-1]:
            write_report(plan, store, context.cache)
        return _result(outcome)
    finally:
        reporter.close()
        shutil.rmtree(work, ignore_errors=True)


def _look_up(plan: Plan, stage: PlannedStage, store: Store) -> Manifest | None:
    """The stage's own artifact if it is found; one that is stale, or has lost an object, is moved aside."""
    own = read_manifest(store, stage.key)
    if own is None:
        return None
    if lost_object(store, own.objects) is not None:
        retire(store, stage.key)
        return None
    manifests = {s.name: own if s.name == stage.name else None for s in plan.stages}
    for source in stage.inputs.values():
        manifests[source] = read_manifest(store, plan.stage(source).key)
    verdict = judge(plan, manifests, lost_targets(plan, manifests))[stage.name]
    if verdict.state is Lookup.Found:
        return own
    retire(store, stage.key)
    return None


def _context(
    options: StageOptions, plan: Plan, stage: PlannedStage, store: Store, reporter: Reporter, work: Path
) -> StageContext:
    url = os.environ.get("KD_TEACHER_URL")
    workers = 1 if stage.type is StageType.Ingest else plan.settings(stage.name).workers
    return StageContext(
        plan=plan,
        stage=stage,
        store=store,
        cache=local_cache(options.cache),
        writer=new_writer_id(),
        reporter=reporter,
        work=work,
        attempt=options.attempt,
        index=options.index,
        workers=workers,
        teacher=TeacherAddress(url, os.environ.get("KD_TEACHER_KEY")) if url else None,
    )


def _stall_seconds(plan: Plan, stage: PlannedStage) -> int | None:
    """Train's gang watches its ranks itself."""
    if stage.type in (StageType.Ingest, StageType.Train):
        return None
    return plan.settings(stage.name).stall_timeout_seconds


def _result(outcome: StageOutcome) -> StageResult:
    return StageResult(
        exit_class=ExitClass.Done,
        message=outcome.message,
        manifest_sha256=outcome.manifest.sha256 if outcome.manifest else None,
        counts=outcome.counts,
        written=_written(outcome),
        metrics=outcome.metrics,
        gates=tuple(outcome.gates),
    )


def _written(outcome: StageOutcome) -> int:
    """Bytes of the artifact's objects, and of the copies that publish made of others."""
    objects = outcome.manifest.objects if outcome.manifest else ()
    return sum(ref.size for ref in objects) + outcome.counts.get("bytes", 0)


def said_of(error: BaseException) -> tuple[ExitClass, str]:
    """The class of what ended a process, and its sentence; what is no plain failure leaves its traceback in the log."""
    kind = classify(error)
    if kind is ExitClass.Bug:
        traceback.print_exception(error)
    elif not isinstance(error, KDError):
        traceback.print_exception(error, limit=-3)
    said = str(error) if isinstance(error, KDError) else disk_full(error) or f"{type(error).__name__}: {error}"
    return kind, said or kind.name


def _failure(error: BaseException) -> StageResult:
    kind, message = said_of(error)
    return StageResult(exit_class=kind, message=message, position=getattr(error, "position", ""))


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise KilledError("ended by SIGTERM; what was committed is kept, run it again to go on")


class StallWatch:
    """Ends the process with 75 where a stage reports no progress for ``seconds`` (contract 5)."""

    def __init__(self, seconds: int | None):
        self._seconds = seconds
        self._last = time.monotonic()
        self._over = threading.Event()

    def heard(self) -> None:
        """Progress was made."""
        self._last = time.monotonic()

    def __enter__(self) -> StallWatch:
        self.heard()
        if self._seconds:
            threading.Thread(target=self._watch, name="stall-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        assert self._seconds
        while not self._over.wait(min(5.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                error = TransientError(
                    f"no progress for {self._seconds} s (stallTimeoutSeconds); ended, to be tried again"
                )
                StageResult(exit_class=ExitClass.Transient, message=str(error)).write()
                print(error, file=sys.stderr, flush=True)
                end_descendants(1.0)
                os._exit(int(ExitClass.Transient))
