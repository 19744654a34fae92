"""What a runtime gives to pods: resources, placement, volumes, environment."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kd_runtime.api.classes import Keyed, Unkeyed
from kd_runtime.api.model import CIDR, HTTPURL, LocalName, Model, ObjectName, Quantity, Rule, SecretReference
from kd_runtime.api.operation import Labels, Toleration


class EnvironmentVariable(Model):
    """An environment variable with a plain value."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), Unkeyed]
    """Name."""
    value: Annotated[str, Field(max_length=4096), Unkeyed] = ""
    """Value."""


class ServingVariable(EnvironmentVariable):
    """An environment variable of the serving engine: part of the key, but for a short list that changes no output."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), Keyed]
    """Name."""
    value: Annotated[str, Field(max_length=4096), Keyed] = ""
    """Value."""


class RuntimeServing(Model):
    """Flags and environment of the serving engine; a job cannot set them."""

    extra_args: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...], Field(max_length=64), Keyed
    ] = ()
    """Further flags of vLLM's server."""
    env: Annotated[tuple[ServingVariable, ...], Field(max_length=64)] = ()
    """Environment of the engine's process."""


ResourceList = Annotated[dict[Annotated[str, Field(max_length=128)], Quantity], Field(max_length=16)]


class PodResources(Model):
    """Requests and limits."""

    requests: Annotated[ResourceList, Unkeyed] = Field(default_factory=dict)
    """What is reserved."""
    limits: Annotated[ResourceList, Unkeyed] = Field(default_factory=dict)
    """What is the most."""


class MatchOperator(StrEnum):
    """How a label is compared."""

    In = "In"
    NotIn = "NotIn"
    Exists = "Exists"
    DoesNotExist = "DoesNotExist"


LabelKey = Annotated[str, Field(min_length=1, max_length=317)]


class LabelRequirement(Model):
    """A condition on a label."""

    key: Annotated[LabelKey, Unkeyed]
    """The label."""
    operator: Annotated[MatchOperator, Unkeyed]
    """How it is compared."""
    values: Annotated[tuple[LocalName, ...], Field(max_length=64), Unkeyed] = ()
    """With what (In, NotIn)."""


class LabelSelector(Model):
    """Chooses objects by their labels."""

    match_labels: Annotated[Labels, Unkeyed] = Field(default_factory=dict)
    """Labels that must be equal."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=16)] = ()
    """Further conditions."""


class NodeSelectorTerm(Model):
    """Conditions that must all hold."""

    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(min_length=1, max_length=16)]
    """Conditions on the node's labels."""


class NodeSelector(Model):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=16)]
    """The terms."""


class NodeAffinity(Model):
    """Which nodes pods may run on."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """What must hold of a node."""


class Affinity(Model):
    """Placement beyond a node selector."""

    node_affinity: NodeAffinity | None = None
    """Which nodes pods may run on."""


class ScratchVolume(Model):
    """The folder that a pod works in: an emptyDir, or a volume of a storage class that ends with the pod."""

    size: Annotated[Quantity | None, Unkeyed] = None
    """Its size."""
    storage_class_name: Annotated[ObjectName | None, Unkeyed] = None
    """A storage class, instead of the node's own disk."""


class CacheVolume(Model):
    """A volume for weights that pods share."""

    claim_name: Annotated[ObjectName, Unkeyed]
    """A PersistentVolumeClaim of the job's namespace."""
    sub_path: Annotated[Annotated[str, Field(min_length=1, max_length=256)] | None, Unkeyed] = None
    """A folder within."""


class PodSettings(Model):
    """What pods of one component get."""

    resources: PodResources = PodResources()
    """Requests and limits; a stage's own `resources` come first."""
    node_selector: Annotated[Labels, Unkeyed] = Field(default_factory=dict)
    """Labels of the nodes."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that are tolerated."""
    affinity: Affinity | None = None
    """Placement beyond a node selector."""
    annotations: Annotated[
        dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=4096)]],
        Field(max_length=64),
        Unkeyed,
    ] = Field(default_factory=dict)
    """Annotations of the pods."""
    runtime_class_name: Annotated[ObjectName | None, Unkeyed] = None
    """A RuntimeClass."""
    scratch: ScratchVolume = ScratchVolume()
    """The folder that a pod works in."""
    cache: CacheVolume | None = None
    """A volume for weights."""


class ComponentPods(Model):
    """Settings of pods, by component."""

    plan: PodSettings = PodSettings()
    """The plan pod."""
    teacher: PodSettings = PodSettings()
    """Hosted teachers."""
    workers: PodSettings = PodSettings()
    """ingest, synthesize, generate and capture."""
    trainer: PodSettings = PodSettings()
    """train."""
    tools: PodSettings = PodSettings()
    """prepare, compress, evaluate and publish."""


class ReportCredentials(Model):
    """How training reaches the services that show its curves."""

    wandb: SecretReference | None = None
    """API key of Weights & Biases."""
    mlflow: SecretReference | None = None
    """Token of MLflow."""
    mlflow_uri: Annotated[HTTPURL | None, Unkeyed] = None
    """Address of MLflow."""


class ConfigMapKey(Model):
    """One entry of a ConfigMap of the job's own namespace: pods can mount no other's.

    trust-manager and the like keep one of a name in every namespace; without it no pod of a job starts.
    """

    name: Annotated[ObjectName, Unkeyed]
    """Name of the ConfigMap, in every namespace that uses the runtime."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$"), Unkeyed] = "ca.crt"
    """Key within: certificates in PEM, of every authority that is to be trusted, public ones too."""


class EgressRule(Model):
    """Somewhere that pods may connect to."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    cidr: Annotated[CIDR, Unkeyed]
    """Addresses, such as 10.0.0.0/8."""
    ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65_535)], ...], Field(max_length=32), Unkeyed] = ()
    """TCP ports; empty is all."""


class NetworkPeer(Model):
    """Pods that are reached, by labels of their namespace and their own."""

    namespace_selector: LabelSelector | None = None
    """Labels of the namespace."""
    pod_selector: LabelSelector | None = None
    """Labels of the pods."""
