"""Where the API server has the objects of each kind that the operator deals with."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from kd_runtime.api.model import GROUP, VERSION


@dataclass(frozen=True)
class Kind:
    """A kind of object."""

    api_version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The path of the collection, or of one object. ``namespace`` None: of all namespaces, or cluster-scoped."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        scope = f"/namespaces/{quote(namespace, safe='')}" if self.namespaced and namespace else ""
        return f"{root}{scope}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


KINDS = {
    "DistillationJob": Kind(f"{GROUP}/{VERSION}", "distillationjobs"),
    "ClusterDistillationRuntime": Kind(f"{GROUP}/{VERSION}", "clusterdistillationruntimes", namespaced=False),
    "Job": Kind("batch/v1", "jobs"),
    "Deployment": Kind("apps/v1", "deployments"),
    "Pod": Kind("v1", "pods"),
    "Service": Kind("v1", "services"),
    "ConfigMap": Kind("v1", "configmaps"),
    "Secret": Kind("v1", "secrets"),
    "NetworkPolicy": Kind("networking.k8s.io/v1", "networkpolicies"),
    "Event": Kind("v1", "events"),
    "Node": Kind("v1", "nodes", namespaced=False),
    "Namespace": Kind("v1", "namespaces", namespaced=False),
    "Lease": Kind("coordination.k8s.io/v1", "leases"),
    "TokenReview": Kind("authentication.k8s.io/v1", "tokenreviews", namespaced=False),
}
