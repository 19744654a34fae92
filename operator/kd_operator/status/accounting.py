"""GPU seconds, from the pods that are seen: counted since the last status that counted them, so that no restart counts twice (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from kd_operator.observed import PodSeen
from kd_operator.status.states import moment, stamp
from kd_runtime.api.status import JobStatus, StageStatus, Usage

MAX_FLAVORS = 32


def gpu_seconds(pods: Iterable[PodSeen], since: datetime | None, now: datetime) -> float:
    """GPUs times seconds that containers ran between ``since`` (None: ever) and ``now``."""
    total = 0.0
    for pod in pods:
        begun = pod.started or (pod.ending.started if pod.ending else None)
        if not pod.gpus or begun is None:
            continue
        over = pod.ending.finished if pod.ending and pod.ending.finished else now
        first = max(begun, since) if since else begun
        total += pod.gpus * max(0.0, (min(over, now) - first).total_seconds())
    return total


def accounted(status: JobStatus, pods: tuple[PodSeen, ...], now: datetime) -> JobStatus:
    """``status`` with what its pods used since it was last counted, by flavor and by stage; teachers' use is the job's alone."""
    usage = status.usage or Usage()
    since = moment(usage.accounted_time) if usage.accounted_time else None
    flavors = dict(usage.gpu_seconds_by_flavor)
    for flavor in sorted({pod.gpu_flavor for pod in pods if pod.gpus}):
        used = round(gpu_seconds((p for p in pods if p.gpu_flavor == flavor), since, now))
        if flavor in flavors or len(flavors) < MAX_FLAVORS:
            flavors[flavor] = flavors.get(flavor, 0) + used
    stages = tuple(_stage(stage, pods, since, now) for stage in status.stages)
    usage = usage.model_copy(
        update={
            "gpu_seconds_by_flavor": flavors,
            "gpu_hours": f"{sum(flavors.values()) / 3600:.2f}",
            "accounted_time": stamp(now),
        }
    )
    return status.model_copy(update={"usage": usage, "stages": stages})


def _stage(stage: StageStatus, pods: tuple[PodSeen, ...], since: datetime | None, now: datetime) -> StageStatus:
    own = (pod for pod in pods if pod.stage == stage.name and pod.component not in ("teacher", "plan"))
    used = round(gpu_seconds(own, since, now))
    return stage.model_copy(update={"gpu_seconds": stage.gpu_seconds + used}) if used else stage


def gpu_hours(status: JobStatus) -> float:
    """GPU hours of all pods so far."""
    used = status.usage.gpu_seconds_by_flavor if status.usage else {}
    return sum(used.values()) / 3600
