"""From raw objects to a job's spec with its runtime's defaults, or to why there is none; what was parsed is remembered."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from kd_operator.observed import RuntimeSeen
from kd_runtime.api.errors import FieldError, ManifestErrors
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.labels import DEFAULT_RUNTIME_ANNOTATION
from kd_runtime.api.model import GROUP, VERSION
from kd_runtime.api.parse import parse_job, parse_kept_runtime, parse_runtime
from kd_runtime.api.reasons import Reason
from kd_runtime.api.runtime import Allowed, ClusterDistillationRuntime, JobLimits, runtime_hash
from kd_runtime.api.runtime_pods import LabelRequirement, LabelSelector, MatchOperator

Object = dict[str, Any]
V = TypeVar("V")

REMEMBERED_SPECS = 4096
"""Parsing one takes 8 to 35 ms and keeps 8 to 40 KB; of jobs that are idle or over none is kept."""
REMEMBERED_RUNTIMES = 64


@dataclass(frozen=True)
class Parsed:
    """A job's spec with its runtime's defaults; or why there is none, or why it is not allowed."""

    spec: DistillationJob | None
    errors: tuple[str, ...] = ()
    refusal: str | None = None


@dataclass
class Remembered(Generic[V]):
    """The values that were used last, by key."""

    size: int
    held: OrderedDict[Any, V] = field(default_factory=OrderedDict)

    def get(self, key: Any, make: Callable[[], V]) -> V:
        """The value of ``key``, made where it is not held; what ``make`` raises is not remembered."""
        if key not in self.held:
            self.held[key] = make()
            if len(self.held) > self.size:
                self.held.popitem(last=False)
        self.held.move_to_end(key)
        return self.held[key]

    def forget(self, key: Any) -> None:
        """Keep the value of ``key`` no longer."""
        self.held.pop(key, None)


@dataclass(frozen=True)
class LiveRuntime:
    """What the API server has where a job looks for its runtime: ``found`` are candidates, one of which is right."""

    name: str | None
    """The name that the job gives, or began with; None: it takes the default."""
    found: Sequence[Object] = ()


class Specs:
    """Parses runtimes and specs."""

    def __init__(self) -> None:
        self._jobs: Remembered[tuple[Any, Parsed]] = Remembered(REMEMBERED_SPECS)
        self._runtimes: Remembered[tuple[ClusterDistillationRuntime, str]] = Remembered(REMEMBERED_RUNTIMES)

    def runtime(self, pinned: Object | None, live: LiveRuntime) -> tuple[RuntimeSeen | None, Parsed]:
        """The runtime in the ConfigMap ``pinned``, else the live one; where there is none, why."""
        current, problem = self._live(live)
        if pinned is None:
            if current is None:
                return None, problem
            runtime, digest = current
            return RuntimeSeen(runtime, digest, pinned=False, live_hash=digest), problem
        text = pinned.get("data", {}).get("runtime.json", "{}")
        try:
            runtime, digest = self._runtimes.get(hashlib.sha256(text.encode()).digest(), lambda: _kept_runtime(text))
        except (ManifestErrors, ValueError) as wrong:
            return None, _refused(f"ConfigMap {pinned['metadata']['name']}: runtime.json cannot be read: {wrong}")
        same = current is not None and current[0].metadata.name == runtime.metadata.name
        return RuntimeSeen(runtime, digest, pinned=True, live_hash=current[1] if same and current else None), Parsed(
            None
        )

    def _live(self, live: LiveRuntime) -> tuple[tuple[ClusterDistillationRuntime, str] | None, Parsed]:
        if len(live.found) != 1:
            return None, _refused(str(_no_runtime(live)))
        raw = live.found[0]
        try:
            identity = (raw["metadata"]["uid"], raw["metadata"]["generation"])
            return self._runtimes.get(identity, lambda: _parsed_runtime(raw)), Parsed(None)
        except ManifestErrors as wrong:
            return None, _refused(f"the ClusterDistillationRuntime {raw['metadata']['name']} is not valid: {wrong}")

    def job(self, raw: Object, runtime: RuntimeSeen, namespace_labels: dict[str, str] | None) -> Parsed:
        """The spec of a job by ``runtime``; ``namespace_labels`` None: the runtime does not ask for them."""
        metadata = raw["metadata"]
        identity = (metadata["generation"], runtime.hash, runtime.runtime.metadata.name)
        parsed = self._parsed(metadata["uid"], identity, lambda: _parsed_job(raw, runtime.runtime))
        selector = runtime.runtime.spec.allowed.namespaces
        if selector is None or namespace_labels is None or selects(selector, namespace_labels):
            return parsed
        error = FieldError(
            "metadata.namespace",
            metadata["namespace"],
            f"is not allowed by the runtime {runtime.runtime.metadata.name}",
            "use a namespace whose labels its allowed.namespaces selects",
        )
        return replace(parsed, errors=(str(error), *parsed.errors), refusal=parsed.refusal or Reason.NotAllowed.value)

    def _parsed(self, uid: str, identity: Any, parse: Callable[[], Parsed]) -> Parsed:
        """What was parsed of a job, if ``identity`` is still what it was parsed from."""
        if self._jobs.get(uid, lambda: (identity, parse()))[0] != identity:
            self._jobs.forget(uid)
        return self._jobs.get(uid, lambda: (identity, parse()))[1]

    def forget(self, uid: str) -> None:
        """The job is idle, over or gone: it is parsed again if it is looked at again."""
        self._jobs.forget(uid)


def is_default(runtime: Object) -> bool:
    """Whether a runtime is annotated as the one of jobs that name none."""
    annotations = runtime["metadata"].get("annotations", {})
    return bool(annotations.get(DEFAULT_RUNTIME_ANNOTATION) == "true")


def selects(selector: LabelSelector, labels: dict[str, str]) -> bool:
    """Whether ``selector`` chooses an object that has ``labels``."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _meets(requirement, labels) for requirement in selector.match_expressions
    )


def _meets(requirement: LabelRequirement, labels: dict[str, str]) -> bool:
    value = labels.get(requirement.key)
    if requirement.operator is MatchOperator.Exists:
        return value is not None
    if requirement.operator is MatchOperator.DoesNotExist:
        return value is None
    return (value in requirement.values) == (requirement.operator is MatchOperator.In)


def _parsed_runtime(raw: Object) -> tuple[ClusterDistillationRuntime, str]:
    plain = {**_typed("ClusterDistillationRuntime"), "metadata": {"name": raw["metadata"]["name"]}}
    runtime = parse_runtime({**plain, "spec": raw.get("spec", {})})
    return runtime, runtime_hash(runtime)


def _kept_runtime(text: str) -> tuple[ClusterDistillationRuntime, str]:
    """The runtime of a ConfigMap, which an earlier or a later version of the operator may have written."""
    raw = json.loads(text)
    if not isinstance(raw, dict) or not raw.get("metadata", {}).get("name"):
        raise ValueError("it names no runtime")
    runtime = parse_kept_runtime({**raw, **_typed("ClusterDistillationRuntime")})
    return runtime, runtime_hash(runtime)


def _parsed_job(raw: Object, runtime: ClusterDistillationRuntime) -> Parsed:
    """Refused where only the runtime's `allowed` and `limits` stand against it, and invalid otherwise."""
    kept = ("name", "namespace", "uid", "generation")
    metadata = {key: raw["metadata"][key] for key in kept}
    document = {**_typed("DistillationJob"), "metadata": metadata, "spec": raw["spec"]}
    try:
        return Parsed(parse_job(document, runtime))
    except ManifestErrors as wrong:
        errors = tuple(str(error) for error in wrong.errors)
    lenient = runtime.spec.model_copy(update={"allowed": Allowed(remote_code=True), "limits": JobLimits()})
    try:
        allowing = runtime.model_copy(update={"spec": lenient})
        return Parsed(parse_job(document, allowing), errors, Reason.NotAllowed.value)
    except ManifestErrors:
        return Parsed(None, errors, Reason.InvalidSpec.value)


def _typed(kind: str) -> Object:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind}


def _no_runtime(live: LiveRuntime) -> FieldError:
    if live.name is not None:
        return FieldError(
            "spec.runtimeRef.name", live.name, "names no ClusterDistillationRuntime", "create it, or name another"
        )
    several = ", ".join(sorted(one["metadata"]["name"] for one in live.found))
    said = f"is missing, and {several} are all annotated as the default" if several else "is missing, and no runtime"
    remedy = f'name a runtime, or annotate one with {DEFAULT_RUNTIME_ANNOTATION}: "true"'
    return FieldError("spec.runtimeRef", None, said if several else f"{said} is annotated as the default", remedy)


def _refused(sentence: str) -> Parsed:
    return Parsed(None, (sentence,), Reason.RuntimeMissing.value)
