"""What the operator counts for Prometheus. Labels come from closed lists: never a job, namespace, pod, stage's own name or message."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from enum import StrEnum

import prometheus_client
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.aiohttp import make_aiohttp_handler

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.reasons import ConditionType, Reason
from kd_runtime.api.stage import BODIES
from kd_runtime.api.status import JobStatus, RunStatus, StageStatus, StageTimes, Usage

PATH = "/metrics"
OTHER = "Other"
"""What stands for every value that no list below names."""


class PostOutcome(StrEnum):
    """How a progress post was answered."""

    Accepted = "Accepted"
    Malformed = "Malformed"
    Unauthenticated = "Unauthenticated"
    Forbidden = "Forbidden"
    JobGone = "JobGone"
    TooLarge = "TooLarge"
    Throttled = "Throttled"
    Unavailable = "Unavailable"
    """The API server could not say whose token it is."""


class ReconcileOutcome(StrEnum):
    """How one look at a job ended."""

    Done = "Done"
    Conflict = "Conflict"
    """The job had changed since it was read; it is looked at again at once."""
    ApiError = "ApiError"
    Bug = "Bug"


class Words:
    """A closed list of label values, or an open one of which the first ``most`` that come are told apart."""

    def __init__(self, known: Iterable[str] = (), most: int = 0):
        self._known, self._room = set(known), most

    def __call__(self, word: str | None) -> str:
        """``word``, or Other."""
        if word and word not in self._known and self._room:
            self._room -= 1
            self._known.add(word)
        return word if word in self._known and word is not None else OTHER


PHASES = ("Pending", "Planning", "Queued", "Running", "Suspending", "Suspended", "Succeeded", "Failed")
ENDS = ("Succeeded", "Skipped", "Failed")
"""States of a stage that has ended."""
phase_word = Words(PHASES)
type_word = Words((*BODIES, "ingest", "plan", "teacher"))
class_word = Words((*(c.name for c in ExitClass), *(r.value for r in Reason)))
reason_word = Words(r.value for r in Reason)
flavor_word = Words(most=32)
verb_word = Words(("get", "list", "watch", "create", "update", "patch", "delete"))
code_word = Words(most=40)

SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds of what the operator itself does."""
LONG = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400, 259_200)
"""Seconds of what pods do."""

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"kubedistill_{name}", text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"kubedistill_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"kubedistill_{name}", text, labels, buckets=buckets, registry=REGISTRY)


JOBS = _gauge("jobs", "DistillationJobs that exist, by phase.", "phase")
JOBS_FINISHED = _counter(
    "jobs_finished_total", "Jobs that ended, by the reason of their last condition.", "result", "reason"
)
JOB_SECONDS = _histogram("job_duration_seconds", "From a job's start to its end.", LONG, "result")
STAGES_FINISHED = _counter(
    "stages_finished_total", "Stages that ended; Skipped: their artifact was found.", "type", "outcome"
)
STAGE_SECONDS = _histogram("stage_duration_seconds", "From a stage's first pod to its end.", LONG, "type", "outcome")
STAGE_WAIT_SECONDS = _histogram("stage_wait_seconds", "From when a stage could begin to its first pod.", LONG, "type")
ATTEMPTS = _counter("attempts_total", "Attempts that were claimed.", "type")
FAILURES = _counter("attempt_failures_total", "Attempts that failed and count, by exit class.", "type", "class")
DISRUPTIONS = _counter("attempt_disruptions_total", "Attempts that were disrupted, which are free.", "type")
TOKENS = _counter("teacher_tokens_total", "Tokens that teachers read (Prompt) and wrote (Completion).", "direction")
GPU_SECONDS = _counter("gpu_seconds_total", "GPU seconds that jobs used.", "flavor")
WASTED_GPU_SECONDS = _counter("gpu_seconds_wasted_total", "GPU seconds whose work was lost.")
STAGED_BYTES = _counter("staged_bytes_total", "Bytes written to stores.")
QUEUE_DEPTH = _gauge("queue_depth", "Jobs that wait to be looked at.")
QUEUE_WAIT_SECONDS = _histogram("queue_wait_seconds", "From when a job was due to when it was taken up.", SHORT)
RECONCILE_SECONDS = _histogram("reconcile_duration_seconds", "One look at one job.", SHORT, "outcome")
REACTION_SECONDS = _histogram("reaction_seconds", "From an event to the child that it led to.", SHORT)
API_REQUESTS = _counter("api_requests_total", "Requests to the API server; code 0: no answer.", "verb", "code")
POSTS = _counter("progress_posts_total", "Progress posts of pods, by how they were answered.", "outcome")
LEADING = _gauge("leading", "1 while this process leads.")


def _start_at_zero() -> None:
    """A series that is there from the beginning shows its first increase; one that appears at 1 does not."""
    for phase in (*PHASES, OTHER):
        JOBS.labels(phase)
    for result in ("Complete", "Failed"):
        JOB_SECONDS.labels(result)
    for direction in ("Prompt", "Completion"):
        TOKENS.labels(direction)
    for outcome in ReconcileOutcome:
        RECONCILE_SECONDS.labels(outcome)
    for post in PostOutcome:
        POSTS.labels(post)


_start_at_zero()


class Phases:
    """Which phase each job is in, so that the gauge is right whatever was missed: the newest word about a job counts."""

    def __init__(self) -> None:
        self._phases: dict[tuple[str, str], str] = {}

    def saw(self, namespace: str, name: str, phase: str | None) -> None:
        """The job is in ``phase`` now; without a status yet it is Pending."""
        self._move((namespace, name), phase_word(phase or "Pending"))

    def gone(self, namespace: str, name: str) -> None:
        """The job is not there any more."""
        self._move((namespace, name), None)

    def clear(self) -> None:
        """Nothing is known: this process does not lead any more."""
        for key in list(self._phases):
            self._move(key, None)

    def _move(self, key: tuple[str, str], phase: str | None) -> None:
        before = self._phases.pop(key, None)
        if before is not None:
            JOBS.labels(before).dec()
        if phase is not None:
            self._phases[key] = phase
            JOBS.labels(phase).inc()


PHASES_SEEN = Phases()


def observe_transition(before: JobStatus | None, after: JobStatus) -> None:
    """Count what the successful write of ``after`` over ``before`` says has happened; of two equal ones nothing."""
    before = before or JobStatus()
    for kind, old, new in _runs(before, after):
        _count_run(kind, old, new)
    stages = {stage.name: stage for stage in before.stages}
    for stage in after.stages:
        _count_stage(stages.get(stage.name, StageStatus(name=stage.name)), stage)
    _count_usage(before.usage or Usage(), after.usage or Usage())
    _count_end(before, after)


def queue_depth(keys: int) -> None:
    """How many keys wait now."""
    QUEUE_DEPTH.set(keys)


def taken_up(waited: float) -> None:
    """A key was taken, ``waited`` seconds after it was due."""
    QUEUE_WAIT_SECONDS.observe(waited)


def reconciled(seconds: float, outcome: ReconcileOutcome = ReconcileOutcome.Done) -> None:
    """One look at a job has ended."""
    RECONCILE_SECONDS.labels(outcome).observe(seconds)


def reacted(seconds: float) -> None:
    """A child was created so long after the event that led to it."""
    REACTION_SECONDS.observe(seconds)


def api_request(verb: str, code: int) -> None:
    """The API server answered with ``code``, or not at all: 0."""
    API_REQUESTS.labels(verb_word(verb.lower()), code_word(str(code))).inc()


def progress_post(outcome: PostOutcome) -> None:
    """A progress post was answered."""
    POSTS.labels(outcome).inc()


def leading(leads: bool) -> None:
    """This process leads, or not."""
    LEADING.set(int(leads))


def add_routes(app: web.Application) -> None:
    """Serve the registry on ``app``."""
    app.router.add_get(PATH, make_aiohttp_handler(REGISTRY, disable_compression=True))


def _runs(before: JobStatus, after: JobStatus) -> Iterator[tuple[str, RunStatus, RunStatus]]:
    """Everything that has attempts, as it was and as it is."""
    if after.plan is not None:
        yield "plan", before.plan or RunStatus(), after.plan
    teachers = {teacher.name: teacher for teacher in before.teachers}
    for teacher in after.teachers:
        yield "teacher", teachers.get(teacher.name, RunStatus()), teacher
    stages = {stage.name: stage for stage in before.stages}
    for stage in after.stages:
        yield type_word(stage.type), stages.get(stage.name, RunStatus()), stage


def _count_run(kind: str, old: RunStatus, new: RunStatus) -> None:
    ATTEMPTS.labels(kind).inc(_more(old.attempt, new.attempt))
    if failed := _more(old.failures, new.failures):
        failure = new.last_failure.class_ if new.last_failure else None
        FAILURES.labels(kind, class_word(failure)).inc(failed)
    DISRUPTIONS.labels(kind).inc(_more(old.disruptions, new.disruptions))


def _count_stage(old: StageStatus, new: StageStatus) -> None:
    kind, times, known = type_word(new.type), new.times or StageTimes(), old.times or StageTimes()
    if times.started is not None and times.started != known.started:
        _observe(STAGE_WAIT_SECONDS.labels(kind), times.queued, times.started)
    if new.state in ENDS and new.state != old.state:
        STAGES_FINISHED.labels(kind, new.state).inc()
        if new.state != "Skipped":
            _observe(STAGE_SECONDS.labels(kind, new.state), times.started, times.finished)


def _count_usage(old: Usage, new: Usage) -> None:
    TOKENS.labels("Prompt").inc(_more(old.prompt_tokens, new.prompt_tokens))
    TOKENS.labels("Completion").inc(_more(old.completion_tokens, new.completion_tokens))
    for flavor, seconds in new.gpu_seconds_by_flavor.items():
        GPU_SECONDS.labels(flavor_word(flavor)).inc(_more(old.gpu_seconds_by_flavor.get(flavor, 0), seconds))
    WASTED_GPU_SECONDS.inc(_more(old.wasted_gpu_seconds, new.wasted_gpu_seconds))
    STAGED_BYTES.inc(_more(old.bytes_staged, new.bytes_staged))


def _count_end(before: JobStatus, after: JobStatus) -> None:
    ended = {condition.type for condition in before.conditions if condition.status == "True"}
    for condition in after.conditions:
        if condition.status != "True" or condition.type in ended:
            continue
        if condition.type in (ConditionType.Complete, ConditionType.Failed):
            JOBS_FINISHED.labels(condition.type, reason_word(condition.reason)).inc()
            _observe(JOB_SECONDS.labels(condition.type), after.start_time, after.completion_time)


def _more(old: int, new: int) -> int:
    """What was added. A count that fell began anew (a retry sets a stage's to zero)."""
    return new - old if new >= old else new


def _observe(histogram: Histogram, start: str | None, end: str | None) -> None:
    """The time between, where both are known and in order."""
    try:
        seconds = (datetime.fromisoformat(end or "") - datetime.fromisoformat(start or "")).total_seconds()
    except (ValueError, TypeError):
        return
    if math.isfinite(seconds) and seconds >= 0:
        histogram.observe(seconds)
