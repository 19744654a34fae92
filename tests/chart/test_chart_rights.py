"""The operator's rights, spelled out: a right more or less turns this red.

What each is for is API.md's section on the operator; that they suffice is shown where the operator runs under them.
"""

from __future__ import annotations

from typing import Any

from kd_operator.cluster.kinds import KINDS

CHILDREN = {"create", "get", "list", "watch", "delete"}
NAMESPACED: dict[tuple[str, str], set[str]] = {
    ("kubedistill.io", "distillationjobs"): {"get", "list", "watch", "delete"},
    ("kubedistill.io", "distillationjobs/status"): {"update"},
    ("batch", "jobs"): CHILDREN,
    ("apps", "deployments"): CHILDREN,
    ("", "services"): CHILDREN - {"watch"},
    ("", "configmaps"): CHILDREN - {"list", "watch"},
    ("networking.k8s.io", "networkpolicies"): CHILDREN - {"list", "watch"},
    ("", "pods"): {"get", "list", "watch", "delete"},
    ("", "secrets"): {"create"},
    ("", "events"): {"create", "get", "update"},
    ("", "namespaces"): {"get"},
}
CLUSTER: dict[tuple[str, str], set[str]] = {
    ("kubedistill.io", "clusterdistillationruntimes"): {"get", "list", "watch"},
    ("", "nodes"): {"get"},
    ("authentication.k8s.io", "tokenreviews"): {"create"},
}
LEASE = [
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": ["kubedistill"],
        "verbs": ["get", "update"],
    },
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
]
ACCOUNT = {"kind": "ServiceAccount", "name": "kubedistill", "namespace": "kd-system"}


def granted(role: dict[str, Any]) -> dict[tuple[str, str], set[str]]:
    """Verbs by group and resource; of rules without exceptions alone."""
    rights: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}, rule
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                rights.setdefault((group, resource), set()).update(rule["verbs"])
    return rights


def bound(documents: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The roles that anything is bound to, by kind of binding and its namespace (empty: everywhere) and name."""
    found = {}
    for binding in (d for d in documents if d["kind"] in ("RoleBinding", "ClusterRoleBinding")):
        assert binding["subjects"] == [ACCOUNT]
        reference, namespace = binding["roleRef"], binding["metadata"].get("namespace", "")
        (role,) = (
            d
            for d in documents
            if d["kind"] == reference["kind"]
            and d["metadata"]["name"] == reference["name"]
            and d["metadata"].get("namespace", "") in ("", namespace)
        )
        found[namespace, reference["name"]] = role
    return found


def test_it_may_do_this_in_all_namespaces_and_nothing_else(render: Any) -> None:
    roles = bound(render())
    assert set(roles) == {("", "kd-system.kubedistill"), ("kd-system", "kubedistill-lease")}
    assert granted(roles["", "kd-system.kubedistill"]) == {**NAMESPACED, **CLUSTER}
    assert roles["kd-system", "kubedistill-lease"]["rules"] == LEASE


def test_with_listed_namespaces_nothing_that_lies_in_one_is_granted_elsewhere(render: Any) -> None:
    roles = bound(render("watch.namespaces={team-a,team-b}"))
    assert set(roles) == {
        ("", "kd-system.kubedistill"),
        ("kd-system", "kubedistill-lease"),
        ("team-a", "kd-system.kubedistill"),
        ("team-b", "kd-system.kubedistill"),
    }
    assert granted(roles["", "kd-system.kubedistill"]) == CLUSTER
    assert granted(roles["team-a", "kd-system.kubedistill"]) == NAMESPACED
    assert granted(roles["team-b", "kd-system.kubedistill"]) == NAMESPACED
    assert roles["kd-system", "kubedistill-lease"]["rules"] == LEASE


def test_every_kind_that_the_client_knows_has_rights(render: Any) -> None:
    plurals = {resource for _, resource in {**NAMESPACED, **CLUSTER}} | {"leases"}
    assert {kind.plural for kind in KINDS.values()} <= plurals


def test_people_who_view_or_edit_may_do_so_with_jobs_and_never_write_a_runtime(render: Any) -> None:
    roles = {
        d["metadata"]["name"]: (
            {label for label in d["metadata"]["labels"] if "aggregate" in label},
            granted(d),
        )
        for d in render()
        if d["kind"] == "ClusterRole" and d["metadata"]["name"] != "kd-system.kubedistill"
    }
    looks = {"get", "list", "watch"}
    assert roles == {
        "kd-system.kubedistill-view": (
            {"rbac.authorization.k8s.io/aggregate-to-view"},
            {
                ("kubedistill.io", "distillationjobs"): looks,
                ("kubedistill.io", "distillationjobs/status"): looks,
                ("kubedistill.io", "clusterdistillationruntimes"): looks,
            },
        ),
        "kd-system.kubedistill-edit": (
            {"rbac.authorization.k8s.io/aggregate-to-edit"},
            {("kubedistill.io", "distillationjobs"): {"create", "update", "patch", "delete", "deletecollection"}},
        ),
    }


def test_rights_can_be_left_to_others(render: Any) -> None:
    documents = render("rbac.create=false", "rbac.aggregate=false")
    assert not [d for d in documents if "Role" in d["kind"]]
