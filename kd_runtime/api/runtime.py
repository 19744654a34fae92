"""ClusterDistillationRuntime: what the platform team fixes for every job that names it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal

import rfc8785
from pydantic import Field

from kd_runtime.api.classes import Unkeyed
from kd_runtime.api.data_stages import Capture, Generate, Prepare, Synthesize
from kd_runtime.api.dataset import Dataset
from kd_runtime.api.failures import SettingsError
from kd_runtime.api.metadata import ObjectMeta
from kd_runtime.api.model import CIDR, Model, NameReference, Seconds
from kd_runtime.api.operation import (
    FailurePolicy,
    Labels,
    Preflight,
    Resources,
    Retention,
    Scheduling,
    Toleration,
)
from kd_runtime.api.outcome_stages import Compress, Evaluate, Publish
from kd_runtime.api.partial import partial
from kd_runtime.api.runtime_pods import (
    ComponentPods,
    ConfigMapKey,
    EgressRule,
    EnvironmentVariable,
    LabelSelector,
    NetworkPeer,
    ReportCredentials,
    RuntimeServing,
)
from kd_runtime.api.teacher import Teacher
from kd_runtime.api.train import Train

SHIPPED = ("cpu", "cuda", "cuda-multinode")
"""Names of the runtimes that come with the project."""

Image = Annotated[str, Field(min_length=1, max_length=512)]
NamePattern = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-a-z0-9.*]+$")]


class StageDefaults(Model):
    """Defaults of stages' bodies, by stage type."""

    prepare: Prepare | None = None
    """Of prepare."""
    synthesize: Synthesize | None = None
    """Of synthesize."""
    generate: Generate | None = None
    """Of generate."""
    capture: Capture | None = None
    """Of capture."""
    train: Train | None = None
    """Of train."""
    compress: Compress | None = None
    """Of compress."""
    evaluate: Evaluate | None = None
    """Of evaluate."""
    publish: Publish | None = None
    """Of publish."""


class ResourceDefaults(Model):
    """Defaults of stages' `resources`, by stage type."""

    prepare: Resources | None = None
    """Of prepare."""
    synthesize: Resources | None = None
    """Of synthesize."""
    generate: Resources | None = None
    """Of generate."""
    capture: Resources | None = None
    """Of capture."""
    train: Resources | None = None
    """Of train."""
    compress: Resources | None = None
    """Of compress."""
    evaluate: Resources | None = None
    """Of evaluate."""
    publish: Resources | None = None
    """Of publish."""


class JobDefaults(Model):
    """Settings that a job gets where it says nothing; what both leave out has the default of this reference."""

    teacher: Teacher | None = None
    """Of `teacher`, and of each of `teachers`."""
    dataset: Dataset | None = None
    """Of `dataset`."""
    preflight: Preflight | None = None
    """Of `preflight`."""
    stages: StageDefaults | None = None
    """Of stages' bodies."""
    resources: ResourceDefaults | None = None
    """Of stages' resources."""
    scheduling: Scheduling | None = None
    """Of `scheduling`."""
    failure_policy: FailurePolicy | None = None
    """Of `failurePolicy`."""
    retention: Retention | None = None
    """Of `retention`."""
    active_deadline_seconds: Annotated[Seconds | None, Unkeyed] = None
    """Of `activeDeadlineSeconds`; also the deadline of a job that gives none."""
    pending_deadline_seconds: Annotated[Seconds | None, Unkeyed] = None
    """Of `pendingDeadlineSeconds`."""


if TYPE_CHECKING:
    PartialDefaults = JobDefaults
else:
    PartialDefaults = partial(JobDefaults)


class Images(Model):
    """Container images."""

    runtime: Annotated[Image | None, Unkeyed] = None
    """Of teachers and of every stage but the plan."""
    plan: Annotated[Image | None, Unkeyed] = None
    """Of the plan pod; absent takes the operator's own."""


class Allowed(Model):
    """What jobs may use; an absent list allows anything, an empty one nothing."""

    namespaces: LabelSelector | None = None
    """Namespaces whose jobs may name this runtime."""
    uris: Annotated[
        Annotated[tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...], Field(max_length=64)] | None,
        Unkeyed,
    ] = None
    """Prefixes of URIs, and of the addresses `artifacts.endpoint` and `external.baseURL` but for those of `defaults`; {namespace}
    stands for the job's namespace, and a scheme alone (`hf://`) for all of it."""
    secrets: Annotated[Annotated[tuple[NamePattern, ...], Field(max_length=64)] | None, Unkeyed] = None
    """Names of Secrets, in which * stands for any text."""
    service_accounts: Annotated[Annotated[tuple[NamePattern, ...], Field(max_length=64)] | None, Unkeyed] = None
    """Names of ServiceAccounts, in which * stands for any text."""
    priority_classes: Annotated[Annotated[tuple[NamePattern, ...], Field(max_length=64)] | None, Unkeyed] = None
    """Names of PriorityClasses, in which * stands for any text."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=64)] | None = None
    """Tolerations."""
    node_selector: Annotated[Labels | None, Unkeyed] = None
    """Labels of nodes that a job may ask for."""
    remote_code: Annotated[bool, Unkeyed] = False
    """Whether models may bring code (`trustRemoteCode`)."""


class JobLimits(Model):
    """How large a job may be; absent is no limit."""

    gpus_per_job: Annotated[Annotated[int, Field(ge=0, le=100_000)] | None, Unkeyed] = None
    """GPUs at the same time."""
    replicas: Annotated[Annotated[int, Field(ge=1, le=256)] | None, Unkeyed] = None
    """Replicas of a teacher."""
    nodes: Annotated[Annotated[int, Field(ge=1, le=1024)] | None, Unkeyed] = None
    """Nodes of a train stage."""
    active_deadline_seconds: Annotated[Seconds | None, Unkeyed] = None
    """The longest a job may run."""


class Network(Model):
    """What a job's pods may connect to."""

    egress: Annotated[tuple[EgressRule, ...], Field(max_length=64)] = ()
    """Addresses outside the job; empty is all, but without a cloud's metadata where the job has a credentialsSecretRef."""
    dns: Annotated[tuple[NetworkPeer, ...], Field(max_length=16)] = ()
    """The cluster's DNS servers; empty takes kube-system's and the usual cache of each node."""
    private_cidrs: Annotated[
        tuple[CIDR, ...],
        Field(max_length=64),
        Unkeyed,
    ] = ()
    """CIDRs of private addresses to which URLs of a job may lead."""


class RuntimeSpec(Model):
    """What the platform team fixes."""

    images: Images = Images()
    """Container images."""
    image_pull_secrets: Annotated[tuple[NameReference, ...], Field(max_length=16)] = ()
    """Secrets for pulling them."""
    gpu_resource_name: Annotated[str, Field(min_length=1, max_length=317), Unkeyed] = "nvidia.com/gpu"
    """The resource that counts GPUs."""
    serving: RuntimeServing = RuntimeServing()
    """Flags and environment of the serving engine."""
    pod: ComponentPods = ComponentPods()
    """Settings of pods, by component."""
    env: Annotated[tuple[EnvironmentVariable, ...], Field(max_length=64)] = ()
    """Environment of every pod: proxies, mirrors, NCCL."""
    ca_bundle_config_map: ConfigMapKey | None = None
    """Certificate authorities that pods trust instead of those of their image."""
    report_to: ReportCredentials = ReportCredentials()
    """Credentials of `reportTo`."""
    allowed: Allowed = Allowed()
    """What jobs may use."""
    limits: JobLimits = JobLimits()
    """How large a job may be."""
    network: Network = Network()
    """What pods may connect to."""
    defaults: PartialDefaults = PartialDefaults()
    """Settings that a job gets where it says nothing."""

    def default_settings(self) -> dict[str, Any]:
        """The defaults that are set, as a map under manifest names."""
        return self.defaults.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


class ClusterDistillationRuntime(Model):
    """A runtime: images, serving flags, pods, permissions and defaults of the jobs that name it."""

    api_version: Annotated[Literal["kubedistill.io/v1alpha1"], Unkeyed] = "kubedistill.io/v1alpha1"
    """kubedistill.io/v1alpha1"""
    kind: Annotated[Literal["ClusterDistillationRuntime"], Unkeyed] = "ClusterDistillationRuntime"
    """ClusterDistillationRuntime"""
    metadata: ObjectMeta
    """Name, labels, annotations."""
    spec: RuntimeSpec = RuntimeSpec()
    """What the platform team fixes."""


def runtime_hash(runtime: ClusterDistillationRuntime) -> str:
    """sha256 hex of the runtime's spec.

    Raises:
        SettingsError: the spec holds a number that JSON cannot carry.
    """
    try:
        return hashlib.sha256(
            rfc8785.dumps(runtime.spec.model_dump(mode="json", by_alias=True, exclude_none=True))
        ).hexdigest()
    except (rfc8785.CanonicalizationError, ValueError) as error:
        raise SettingsError(f"the runtime {runtime.metadata.name}: {error}; use finite numbers below 2^53") from error


@cache
def shipped_runtime(name: str = "cpu") -> ClusterDistillationRuntime:
    """One of the runtimes that come with the project. Raises KeyError for another name."""
    from kd_runtime.api.parse import parse_runtime
    from kd_runtime.api.yaml_documents import documents_of

    if name not in SHIPPED:
        raise KeyError(name)
    text = resources.files("kd_runtime.api").joinpath("runtimes", f"{name}.yaml").read_text()
    (document,) = documents_of(text, f"{name}.yaml")
    return parse_runtime(document, source=f"{name}.yaml")
