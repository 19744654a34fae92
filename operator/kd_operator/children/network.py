"""The NetworkPolicy of a job: who may connect to its pods, and where they may connect to.

Nothing but the job's own pods reaches them (probes of the node aside): a teacher, or a gang whose ranks trust each other.
They reach each other, the cluster's DNS, the operator's progress port, and the addresses that the runtime's
`network.egress` lists. Where it lists none, every address, since only the platform team knows where stores, hubs and
external teachers are: but not the link-local ones, where clouds give away a node's credentials, unless the job has no
credentials of its own to its store and so relies on them.
"""

from __future__ import annotations

from ipaddress import ip_network

from pydantic import BaseModel

from kd_operator.children.context import ChildContext, Manifest
from kd_operator.names import network_name
from kd_runtime.api.labels import UID_LABEL
from kd_runtime.api.runtime_pods import EgressRule

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""Set on every namespace by the API server."""
DNS_PORTS = (53, 5353)
"""5353: where OpenShift's DNS pods listen."""
NODE_LOCAL_DNS = "169.254.20.10/32"
"""Where the usual cache of each node answers."""
LINK_LOCAL = {"0.0.0.0/0": ["169.254.0.0/16"], "::/0": ["fe80::/10", "fd00:ec2::254/128"]}
"""Every address -> those where a cloud's metadata service is."""


def network_policy(ctx: ChildContext) -> Manifest:
    """The policy of all pods of the job."""
    own = {"podSelector": {"matchLabels": {UID_LABEL: ctx.uid}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": ctx.metadata(network_name(ctx.name, ctx.uid), ctx.labels()),
        "spec": {
            **own,
            "policyTypes": ["Ingress", "Egress"],
            # All ports: ranks of a gang meet on ports that the system chooses.
            "ingress": [{"from": [own]}],
            "egress": [{"to": [own]}, _dns(ctx), *_progress(ctx), *_outside(ctx)],
        },
    }


def _dns(ctx: ChildContext) -> Manifest:
    given = ctx.runtime.spec.network.dns
    if given:
        peers = [_plain(peer) for peer in given]
    else:
        system = {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: "kube-system"}}}
        peers = [system, {"ipBlock": {"cidr": NODE_LOCAL_DNS}}]
    ports = [{"protocol": protocol, "port": port} for protocol in ("UDP", "TCP") for port in DNS_PORTS]
    return {"to": peers, "ports": ports}


def _progress(ctx: ChildContext) -> list[Manifest]:
    if ctx.settings.progress_url is None:
        return []
    operator = {
        "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: ctx.settings.namespace}},
        "podSelector": {"matchLabels": dict(ctx.settings.operator_labels)},
    }
    return [{"to": [operator], "ports": [{"protocol": "TCP", "port": ctx.settings.port}]}]


def _outside(ctx: ChildContext) -> list[Manifest]:
    given = ctx.runtime.spec.network.egress
    if given:
        return [_listed(rule) for rule in given]
    if ctx.job.spec.artifacts.credentials_secret_ref is None:
        return [{}]
    blocks = [{"ipBlock": {"cidr": cidr, "except": but}} for cidr, but in LINK_LOCAL.items()]
    # Some networks do not count pods among the addresses of a block: a store may be a pod.
    return [{"to": [{"namespaceSelector": {}}, *blocks]}]


def _listed(rule: EgressRule) -> Manifest:
    block = ip_network(rule.cidr, strict=False)  # written as the API server wants it: with no bits but the network's
    to: Manifest = {"to": [{"ipBlock": {"cidr": str(block)}}]}
    ports = [{"protocol": "TCP", "port": port} for port in rule.ports]
    return {**to, "ports": ports} if ports else to


def _plain(model: BaseModel) -> Manifest:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
