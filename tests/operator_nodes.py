"""The cluster around a job, scripted: the Job and Deployment controllers, nodes that run its pods, and the store that they fill.

Everything that a controller goes by (completions, limits, policies, labels, grace) is read from the manifests themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from kd_operator.status.states import moment, stamp
from operator_server import Object, Server, pods_of

from kd_runtime.api.failures import ExitClass, exit_class
from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, STAGE_LABEL, UID_LABEL
from kd_runtime.api.parse import parse_job
from kd_runtime.api.result import GateOutcome, PlannedState, PlanResult, StageResult
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.api.wiring import wire

INDEX = "batch.kubernetes.io/job-completion-index"
NODE = "node-1"
SECONDS = 10.0
"""How long a pod runs unless its script says else."""


@dataclass(frozen=True)
class End:
    """What becomes of a pod."""

    code: int = 0
    seconds: float = SECONDS
    position: str = ""
    message: str = "it went wrong"
    reason: str = "Error"
    result: bool = True
    """False: its result is lost."""
    waiting: tuple[str, str] = ("", "")
    """Why its container never starts."""
    unschedulable: str = ""
    """Why it has no node."""
    refused: tuple[str, str] = ("", "")
    """Why its node does not let it start: reason and message."""
    disrupted: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    written: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


GOOD = End()
FOREVER = End(seconds=1e9)
Script = Callable[[int, int], End]
"""From an attempt and an index to what becomes of that pod."""


@dataclass
class Pod:
    """A pod, read."""

    raw: Object

    def __post_init__(self) -> None:
        metadata, status = self.raw["metadata"], self.raw.get("status", {})
        labels = metadata["labels"]
        self.name: str = metadata["name"]
        self.stage: str = labels[STAGE_LABEL]
        self.component: str = labels[COMPONENT_LABEL]
        self.attempt = int(labels[ATTEMPT_LABEL])
        self.job_uid: str = labels[UID_LABEL]
        self.index = int(metadata.get("annotations", {}).get(INDEX, 0))
        self.phase: str = status.get("phase", "Pending")
        self.leaving = "deletionTimestamp" in metadata
        self.part = f"teacher/{self.stage}" if self.component == "teacher" else self.stage
        self.ended = self.phase in ("Succeeded", "Failed")
        self.alive = self.leaving or not self.ended
        self.container: Object = (status.get("containerStatuses") or [{}])[0]

    @property
    def code(self) -> int | None:
        """Exit code of its container, where that has ended."""
        ended = self.container.get("state", {}).get("terminated")
        return ended["exitCode"] if ended else None


@dataclass
class Nodes:
    """Everything that moves by itself. ``step`` does what is due at this moment."""

    server: Server
    scripts: dict[str, Script] = field(default_factory=dict)
    """By stage, `plan`, or `teacher/NAME`."""
    store: dict[str, str] = field(default_factory=dict)
    """Committed artifacts: key -> sha256 of the manifest."""
    unmet: dict[str, str] = field(default_factory=dict)
    """Evaluate stage -> its gates that are not reached."""
    lost_nodes: set[str] = field(default_factory=set)
    refuses_pods: bool = False
    """A quota is used up."""
    lingering: bool = False
    """Pods that are deleted do not end."""
    reopened: set[str] = field(default_factory=set)
    """Keys of which a retry was asked for."""
    made: list[str] = field(default_factory=list)
    """Stages that a pod really made, rather than found."""
    asked: list[str] = field(default_factory=list)
    """Arguments of each plan pod."""
    names: int = 0

    def step(self) -> bool:
        """Everything that is due now, once. True where anything was."""
        before = self.server.versions
        self.server.collect()
        for job in self.server.every("Job"):
            self._job(job)
        for deployment in self.server.every("Deployment"):
            self._deployment(deployment)
        for raw in self.server.every("Pod"):
            self._pod(Pod(raw))
        return self.server.versions != before

    def due(self) -> datetime | None:
        """When something happens next."""
        times = [self._ends(pod) for pod in map(Pod, self.server.every("Pod")) if pod.phase == "Running"]
        return min((time for time in times if time > self.server.now), default=None)

    # ---- the Job controller --------------------------------------------------------------------------------------------

    def _job(self, job: Object) -> None:
        if job["kind"] != "Job" or holds(job, "Complete", "Failed") or "template" not in job["spec"]:
            return
        spec, pods = job["spec"], [Pod(p) for p in self.server.owned("Pod", job["metadata"]["uid"])]
        ended = {p.name: p for p in (*map(Pod, job.get("ended", ())), *(p for p in pods if p.ended))}
        if len(ended) != len(job.get("ended", ())):  # the controller counts a pod once, and keeps count of it
            job = self.server.change(job, ended=[p.raw for p in ended.values()])
        why = self._failure(job, list(ended.values()))
        if why is not None:
            self._fail(job, pods, why)
            return
        done = {p.index for p in ended.values() if p.phase == "Succeeded"}
        if len(done) == spec["completions"]:
            self.server.change(job, status=condition("Complete"))
            return
        for index in range(spec["completions"]):
            if index not in done | {p.index for p in pods if p.alive} and not self.refuses_pods:
                self._new_pod(job, index)

    def _failure(self, job: Object, ended: list[Pod]) -> str | None:
        """Why a Job fails; None while it does not."""
        spec, failed = job["spec"], [p for p in ended if p.phase == "Failed"]
        deadline = spec.get("activeDeadlineSeconds")
        if deadline is not None and self.server.now >= moment(job["metadata"]["creationTimestamp"]) + timedelta(
            seconds=deadline
        ):
            return "DeadlineExceeded"
        if holds(job, "FailureTarget"):
            return "BackoffLimitExceeded"
        if "backoffLimitPerIndex" not in spec:
            return "BackoffLimitExceeded" if len(failed) > spec["backoffLimit"] else None
        rules = [(p, self._rule(job, p)) for p in failed]
        if any(rule == "FailJob" for _, rule in rules):
            return "PodFailurePolicy"
        counted = [p.index for p, rule in rules if rule != "Ignore"]
        most = max((counted.count(index) for index in counted), default=0)
        return "FailedIndexes" if most > spec["backoffLimitPerIndex"] else None

    def _rule(self, job: Object, pod: Pod) -> str:
        for rule in job["spec"]["podFailurePolicy"]["rules"]:
            if "onPodConditions" in rule and holds(pod.raw, "DisruptionTarget"):
                return str(rule["action"])
            if "onExitCodes" in rule and pod.code in rule["onExitCodes"]["values"]:
                return str(rule["action"])
        return "Count"

    def _fail(self, job: Object, pods: list[Pod], why: str) -> None:
        if not holds(job, "FailureTarget"):
            self.server.change(job, status=condition("FailureTarget", why))
        left = [pod for pod in pods if pod.alive]
        for pod in left:
            self.server.delete("Pod", pod.name)
        if not left:
            both = [*condition("FailureTarget", why)["conditions"], *condition("Failed", why)["conditions"]]
            self.server.change(job, status={"conditions": both})

    # ---- the Deployment controller -------------------------------------------------------------------------------------

    def _deployment(self, deployment: Object) -> None:
        pods = [Pod(p) for p in self.server.owned("Pod", deployment["metadata"]["uid"])]
        for index in range(deployment["spec"]["replicas"] - len(pods)):
            if not self.refuses_pods:
                self._new_pod(deployment, index)
        ready = sum(bool(holds(pod.raw, "Ready")) and not pod.leaving for pod in pods)
        status: Object = {"readyReplicas": ready}
        since = moment(deployment["metadata"]["creationTimestamp"])
        limit = timedelta(seconds=deployment["spec"]["progressDeadlineSeconds"])
        if not ready and self.server.now >= since + limit:
            status["conditions"] = [
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": ""}
            ]
        self.server.change(deployment, status=status)

    def _new_pod(self, owner: Object, index: int) -> None:
        template, self.names = owner["spec"]["template"], self.names + 1
        named = {key: owner["metadata"][key] for key in ("name", "uid")}
        reference = {"kind": owner["kind"], **named, "controller": True}
        metadata = {
            "name": f"{owner['metadata']['name']}-{index}-{self.names}",
            "labels": template["metadata"]["labels"],
            "annotations": {INDEX: str(index)},
            "ownerReferences": [reference],
        }
        self.server.create(
            {"kind": "Pod", "metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}}
        )

    # ---- nodes ---------------------------------------------------------------------------------------------------------

    def end(self, pod: Pod) -> End:
        """What becomes of a pod by its script."""
        script = self.scripts.get(pod.part)
        return script(pod.attempt, pod.index) if script else FOREVER if pod.component == "teacher" else GOOD

    def _pod(self, pod: Pod) -> None:
        if pod.raw["spec"].get("nodeName") in self.lost_nodes or (pod.leaving and self.lingering):
            return
        if pod.leaving and not pod.ended:
            self.finish(pod, End(143, result=False))
        elif pod.leaving:
            self.server.delete("Pod", pod.name, grace_seconds=0)
        elif pod.phase == "Pending":
            self._start(pod, self.end(pod))
        elif pod.phase == "Running" and self._ends(pod) <= self.server.now:
            self.finish(pod, self.end(pod))

    def _start(self, pod: Pod, end: End) -> None:
        if end.unschedulable:
            said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": end.unschedulable}
            self.server.change(pod.raw, status={"phase": "Pending", "conditions": [said]})
            return
        spec = {**pod.raw["spec"], "nodeName": NODE}
        if end.refused[0]:
            reason, message = end.refused
            self.server.change(pod.raw, spec=spec, status={"phase": "Failed", "reason": reason, "message": message})
            return
        if end.waiting[0]:
            waiting = {"reason": end.waiting[0], "message": end.waiting[1]}
            container: Object = {"name": "main", "state": {"waiting": waiting}}
            self.server.change(pod.raw, spec=spec, status={"phase": "Pending", "containerStatuses": [container]})
            return
        container = {"name": "main", "state": {"running": {"startedAt": stamp(self.server.now)}}, "restartCount": 0}
        status: Object = {"phase": "Running", "containerStatuses": [container]}
        if pod.component == "teacher" and end.seconds > 1e6:
            status |= condition("Ready")
        self.server.change(pod.raw, spec=spec, status=status)

    def _ends(self, pod: Pod) -> datetime:
        running = pod.container.get("state", {}).get("running")
        if running is None:
            return datetime.max.replace(tzinfo=self.server.now.tzinfo)
        seconds = min(self.end(pod).seconds, 1e8)
        return moment(running["startedAt"]) + timedelta(seconds=seconds)

    def finish(self, pod: Pod, end: End) -> None:
        """The end of a pod's container. A teacher's is started anew where it is."""
        message = self._result(pod, end) if end.result else ""
        terminated = {
            "exitCode": end.code,
            "reason": "Completed" if end.code == 0 else end.reason,
            "message": message,
            "startedAt": pod.container.get("state", {}).get("running", {}).get("startedAt", stamp(self.server.now)),
            "finishedAt": stamp(self.server.now),
        }
        if pod.component == "teacher" and not pod.leaving:
            running = {"running": {"startedAt": stamp(self.server.now)}}
            again = pod.container.get("restartCount", 0) + 1
            container = {
                "name": "main",
                "state": running,
                "lastState": {"terminated": terminated},
                "restartCount": again,
            }
            self.server.change(pod.raw, status={"phase": "Running", "containerStatuses": [container]})
            return
        status: Object = {
            "phase": "Failed" if end.code else "Succeeded",
            "containerStatuses": [{"name": "main", "state": {"terminated": terminated}}],
        }
        if end.disrupted or holds(pod.raw, "DisruptionTarget"):
            status |= condition("DisruptionTarget")
        self.server.change(pod.raw, status=status)

    def disrupt(self, pod: Pod, *, node: str | None = None) -> None:
        """Take a pod from its node: an eviction, a preemption; with ``node``, that node is lost and never ends it."""
        self.server.change(pod.raw, status={**pod.raw.get("status", {}), **condition("DisruptionTarget")})
        if node is not None:
            self.lose(node)
        self.server.delete("Pod", pod.name)

    def lose(self, node: str = NODE) -> None:
        """A node falls silent: its pods stay as they are."""
        self.lost_nodes.add(node)
        self.server.put(node_document(node, "Unknown", self.server.now))

    def regain(self, node: str = NODE) -> None:
        """It comes back."""
        self.lost_nodes.discard(node)
        self.server.put(node_document(node, "True", self.server.now))

    # ---- what pods do --------------------------------------------------------------------------------------------------

    def _result(self, pod: Pod, end: End) -> str:
        if pod.component == "teacher":
            return ""
        if pod.component == "plan":
            return self._plan(pod, end).encoded().decode()
        if end.code:
            failed = StageResult(exit_class=exit_class(end.code), message=end.message, position=end.position)
            return failed.encoded().decode()
        key = self.keys(pod)[pod.stage]
        if key not in self.store:
            self.made.append(pod.stage)
            self.store[key] = digest("manifest", key)
        gate = GateOutcome(metric="recoveredGap", of="KL", value=0.4, bound=0.3, passed=False)
        done = StageResult(
            exit_class=ExitClass.Done,
            manifest_sha256=self.store[key],
            counts=end.counts,
            written=end.written,
            metrics=end.metrics,
            gates=(gate,) if pod.stage in self.unmet else (),
        )
        return done.encoded().decode()

    def _plan(self, pod: Pod, end: End) -> PlanResult:
        arguments = " ".join(pod.raw["spec"]["containers"][0]["args"][2:])
        self.asked.append(
            arguments.replace("--job /etc/kubedistill/job.json --runtime /etc/kubedistill/runtime.json", "").strip()
        )
        if end.code:
            return PlanResult(exit_class=exit_class(end.code), message=end.message)
        keys = self.keys(pod)
        if "--retry" in arguments:
            again = keys[arguments.split("--retry ")[1].partition("/")[0]]
            self.store.pop(again, None)
            self.reopened.add(again)
        return PlanResult(
            exit_class=ExitClass.Done,
            digest=digest("plan", pod.job_uid),
            estimate="a while",
            stages=tuple(
                PlannedState(name=name, key=keys[name], state=state, manifest=self.store.get(keys[name]))
                for name, state in self._states(pod).items()
            ),
            unmet={name: said for name, said in self.unmet.items() if keys[name] in self.store},
        )

    def keys(self, pod: Pod) -> dict[str, str]:
        """Stage -> key: by what it does and what it reads, so that two jobs share what is equal."""
        return stage_keys(self._distillation_job(pod))

    def _states(self, pod: Pod) -> dict[str, str]:
        keys, inputs = self.keys(pod), stage_inputs(self._distillation_job(pod))
        states: dict[str, str] = {}
        for name in reversed(keys):
            readers = [reader for reader, sources in inputs.items() if name in sources]
            needed = not readers or any(states[reader] == "ToDo" for reader in readers) or keys[name] in self.reopened
            states[name] = "Found" if keys[name] in self.store else "ToDo" if needed else "NotNeeded"
        return {name: states[name] for name in keys}

    def _distillation_job(self, pod: Pod) -> Object:
        return next(job for job in self.server.every("DistillationJob") if job["metadata"]["uid"] == pod.job_uid)


def node_document(name: str, ready: str, since: datetime) -> Object:
    """A node of which ``ready`` holds since then."""
    said = {"type": "Ready", "status": ready, "lastTransitionTime": stamp(since)}
    return {"kind": "Node", "metadata": {"name": name, "uid": name}, "status": {"conditions": [said]}}


def stage_inputs(job: Object) -> dict[str, list[str]]:
    """Stage -> the stages that it reads, `dataset` first."""
    cleaned = {**job, "metadata": {k: job["metadata"][k] for k in ("name", "namespace")}}
    cleaned.pop("status", None)
    key = json.dumps(cleaned, sort_keys=True)
    if key not in _INPUTS:
        wired = wire(parse_job(cleaned, shipped_runtime("cpu")).spec.stages)
        _INPUTS[key] = {name: list(wiring.inputs.values()) for name, wiring in wired.wirings.items()}
    return _INPUTS[key]


_INPUTS: dict[str, dict[str, list[str]]] = {}


def stage_keys(job: Object) -> dict[str, str]:
    """Stage -> key."""
    bodies = {stage["name"]: stage for stage in job["spec"]["stages"]}
    keys: dict[str, str] = {}
    for name, inputs in stage_inputs(job).items():
        made_of = bodies.get(name, job["spec"]["dataset"])
        keys[name] = digest(json.dumps(made_of, sort_keys=True), *(keys[source] for source in inputs))
    return keys


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def condition(kind: str, reason: str = "") -> Object:
    """A status with one condition that holds."""
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": reason}]}


def holds(one: Object, *kinds: str) -> Any:
    """Whether one of the conditions is True."""
    found = one.get("status", {}).get("conditions") or ()
    return any(c["type"] in kinds and c["status"] == "True" for c in found)


def living(server: Server, job: Object) -> list[Pod]:
    """Pods of a DistillationJob that may hold a GPU or write."""
    return [pod for pod in map(Pod, pods_of(server, job)) if pod.alive]
