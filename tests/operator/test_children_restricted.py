"""Every pod of every job satisfies Pod Security's profile `restricted`, and has room to work under a read-only root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from job_children import MANIFESTS, context_of, every_child, pod_of
from random_jobs import contexts

VOLUMES = {"configMap", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""Of the kinds that the profile allows, those that are used."""


def faults(pod: dict[str, Any]) -> list[str]:
    """Where a pod's spec breaks the profile, field by field as Kubernetes' documentation lists them."""
    own, found = pod["securityContext"], []
    found += [field for field in ("hostNetwork", "hostPID", "hostIPC", "initContainers") if pod.get(field)]
    if own.get("runAsNonRoot") is not True or not own.get("runAsUser") or not own.get("fsGroup"):
        found.append("runAsNonRoot")
    if own.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("seccompProfile")
    found += [f"volume {v['name']}" for v in pod["volumes"] if not v.keys() - {"name"} <= VOLUMES]
    for container in pod["containers"]:
        context = container["securityContext"]
        if context.get("allowPrivilegeEscalation") is not False or "privileged" in context:
            found.append("allowPrivilegeEscalation")
        if context.get("capabilities") != {"drop": ["ALL"]}:
            found.append("capabilities")
        if context.get("readOnlyRootFilesystem") is not True:
            found.append("readOnlyRootFilesystem")
        if any("hostPort" in port for port in container.get("ports", ())):
            found.append("hostPort")
    return found


def check(pod: dict[str, Any]) -> None:
    assert faults(pod) == []
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names))
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_pod_of_every_manifest_is_restricted(path: Path) -> None:
    pods = [pod for child in every_child(context_of(path)) if (pod := pod_of(child.manifest))]
    assert len(pods) >= 3  # two of the plan, and ingest
    for pod in pods:
        check(pod["spec"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contexts())
def test_every_pod_of_any_job_under_any_runtime_is_restricted(ctx: Any) -> None:
    for child in every_child(ctx):
        pod = pod_of(child.manifest)
        if pod is not None:
            check(pod["spec"])


def test_a_pod_that_breaks_the_profile_would_be_seen() -> None:
    (pod,) = [pod_of(c.manifest) for c in every_child(context_of(MANIFESTS[0])) if c.claim.part == "dataset"]
    assert pod is not None
    pod["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    assert faults(pod["spec"]) == [
        "volume host",
        "allowPrivilegeEscalation",
        "capabilities",
        "readOnlyRootFilesystem",
    ]
