"""The part of Kubernetes' ObjectMeta that manifests and objects read back from an API server hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from kd_runtime.api.classes import Unkeyed
from kd_runtime.api.model import Model, ObjectName

JOB_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
JOB_NAME_LENGTH = 30


class ObjectMeta(Model):
    """Name, namespace, labels, annotations, and what the API server adds."""

    name: Annotated[ObjectName, Unkeyed]
    """Name of the object."""
    namespace: Annotated[ObjectName | None, Unkeyed] = None
    """Namespace; absent on a laptop."""
    uid: Annotated[str | None, Unkeyed] = None
    """Set by the API server."""
    labels: Annotated[dict[str, str], Unkeyed] = Field(default_factory=dict)
    """Labels; a job's are not copied to its children."""
    annotations: Annotated[dict[str, str], Unkeyed] = Field(default_factory=dict)
    """kubedistill.io/retry and kubedistill.io/reconcile have a meaning."""
    generation: Annotated[int | None, Unkeyed] = None
    """Set by the API server: counts changes of the spec."""
    resource_version: Annotated[str | None, Unkeyed] = None
    """Set by the API server."""
    creation_timestamp: Annotated[str | None, Unkeyed] = None
    """Set by the API server."""
    deletion_timestamp: Annotated[str | None, Unkeyed] = None
    """Set by the API server while the object is being deleted."""
    deletion_grace_period_seconds: Annotated[int | None, Unkeyed] = None
    """Set by the API server."""
    finalizers: Annotated[tuple[str, ...], Unkeyed] = ()
    """Set by controllers."""
    owner_references: Annotated[tuple[dict[str, Any], ...], Unkeyed] = ()
    """Set by controllers."""
    managed_fields: Annotated[tuple[dict[str, Any], ...], Unkeyed] = ()
    """Set by the API server."""
    self_link: Annotated[str | None, Unkeyed] = None
    """Set by old API servers."""
    generate_name: Annotated[str | None, Unkeyed] = None
    """Not used: children's names grow from the name."""


class JobMeta(ObjectMeta):
    """The metadata of a job: its name is short, since children's names grow from it."""

    name: Annotated[str, Field(min_length=1, max_length=JOB_NAME_LENGTH, pattern=JOB_NAME), Unkeyed]
    """A DNS label of at most 30 characters that starts with a letter."""
