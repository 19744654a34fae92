"""The newest progress of every running stage, put together from its pods' posts; bounded, forgotten when they cease."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kd_operator.progress.identity import Sender
from kd_operator.progress.report import Report
from kd_runtime.api.status import StageProgress

EXPIRY_SECONDS = 600.0
"""A stage that posted nothing for so long is forgotten."""
SPEED_SECONDS = 60.0
"""A pod that posted nothing for so long adds nothing to tokens per second: it has ended, or hangs."""
RATE_SECONDS = 120.0
"""The rate that the time left comes from forgets the past at this pace."""
STATUS_INTERVAL = timedelta(seconds=60)
"""Between two status writes for progress alone."""
MOST_JOBS = 4096
MOST_STAGES = 18
MOST_PODS = 1024
"""Of a stage: workers go up to this."""
GANG = "trainer"
"""The component whose pods all report the one thing that they do together, rather than each its share."""


@dataclass(slots=True)
class _Pod:
    """What one pod last said, and how fast it has been."""

    report: Report
    at: float
    rate: float | None = None
    """Units a second."""

    def hear(self, report: Report, now: float) -> None:
        """Take the next post. One without a total says nothing of how far it is: what was known stays."""
        if not report.total:
            report = report.model_copy(
                update={k: getattr(self.report, k) for k in ("completed", "total", "unit", "loss")}
            )
        elapsed, done = now - self.at, report.completed - self.report.completed
        if done < 0 or (report.total, report.unit) != (self.report.total, self.report.unit):
            self.rate = None
        elif elapsed > 0:
            past = math.exp(-elapsed / RATE_SECONDS)
            self.rate = done / elapsed if self.rate is None else past * self.rate + (1 - past) * done / elapsed
        self.report, self.at = report, now

    def seconds_left(self) -> float | None:
        """Until it has done its share; None where its speed is not known."""
        left = self.report.total - self.report.completed
        return left / self.rate if left > 0 and self.rate else None


@dataclass(slots=True)
class _Stage:
    """The pods of one attempt of a stage."""

    attempt: int
    at: float
    gang: bool = False
    pods: dict[int, _Pod] = field(default_factory=dict)

    def hear(self, sender: Sender, report: Report, now: float) -> None:
        if sender.attempt > self.attempt:
            self.attempt, self.pods = sender.attempt, {}
        self.at, self.gang = now, sender.component == GANG
        pod = self.pods.get(sender.index)
        if pod is not None:
            pod.hear(report, now)
        elif len(self.pods) < MOST_PODS:
            self.pods[sender.index] = _Pod(report, now)

    def together(self, now: float) -> StageProgress:
        """Pods with shares add up; of a gang, its first speaks for all. The slowest says how long it takes."""
        first = self.pods[min(self.pods)]
        pods = [first] if self.gang else list(self.pods.values())
        completed = sum(pod.report.completed for pod in pods)
        total = sum(pod.report.total for pod in pods)
        speed = sum(pod.report.tokens_per_second for pod in pods if now - pod.at < SPEED_SECONDS)
        left = [seconds for pod in pods if (seconds := pod.seconds_left()) is not None]
        return StageProgress(
            completed=completed,
            total=total,
            unit=first.report.unit or None,
            percent=min(100, completed * 100 // total) if total else 0,
            eta_seconds=min(math.ceil(max(left)), 10**9) if left else None,
            tokens_per_second=round(speed, 1) if speed else None,
            loss=first.report.loss if 0 in self.pods else None,
        )


@dataclass(slots=True)
class _Job:
    at: float
    stages: dict[str, _Stage] = field(default_factory=dict)
    written: datetime | None = None


class Board:
    """What all pods last posted, by the uid of their job. The jobs that were heard longest ago go first when it is full."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most_jobs: int = MOST_JOBS):
        self._clock, self._most_jobs = clock, most_jobs
        self._jobs: OrderedDict[str, _Job] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    def post(self, sender: Sender, report: Report) -> None:
        """Take a post of a verified pod: its stage, attempt and index are those of the pod, whatever the post says."""
        now = self._clock()
        job = self._job(sender.uid, now)
        stage = job.stages.get(sender.stage)
        if stage is None:
            if len(job.stages) >= MOST_STAGES:
                return
            stage = job.stages[sender.stage] = _Stage(sender.attempt, now)
        if sender.attempt >= stage.attempt:
            stage.hear(sender, report, now)

    def stage_progress(self, uid: str) -> dict[str, StageProgress]:
        """By stage: what its pods last posted, put together."""
        job = self._jobs.get(uid)
        if job is None:
            return {}
        now = self._clock()
        job.stages = {n: stage for n, stage in job.stages.items() if now - stage.at < EXPIRY_SECONDS}
        return {name: stage.together(now) for name, stage in job.stages.items() if stage.pods}

    def checkpoints(self, uid: str) -> dict[str, str]:
        """By stage: where its newest checkpoint lies in the store, as the first pod of its gang says."""
        stages = self._jobs[uid].stages if uid in self._jobs else {}
        saved = {name: stage.pods[0].report.checkpoint for name, stage in stages.items() if 0 in stage.pods}
        return {name: where for name, where in saved.items() if where}

    def progress_due(self, uid: str, now: datetime) -> bool:
        """False within 60 s of the last status that was written for progress alone."""
        job = self._jobs.get(uid)
        return job is None or job.written is None or now - job.written >= STATUS_INTERVAL

    def wrote(self, uid: str, now: datetime) -> None:
        """A status was written that tells of progress."""
        self._job(uid, self._clock()).written = now

    def forget(self, uid: str) -> None:
        """The job has ended, or is gone."""
        self._jobs.pop(uid, None)

    def _job(self, uid: str, now: float) -> _Job:
        """The job, moved to the end of those that may be forgotten."""
        job = self._jobs.setdefault(uid, _Job(now))
        job.at = now
        self._jobs.move_to_end(uid)
        while len(self._jobs) > self._most_jobs or now - next(iter(self._jobs.values())).at >= EXPIRY_SECONDS:
            self._jobs.popitem(last=False)
        return job
