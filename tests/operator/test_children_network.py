"""Who may connect to a job's pods, and where they may connect to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from job_children import SETTINGS, UID, context, every_child, job, runtime
from kd_operator.children import build

OWN = {"podSelector": {"matchLabels": {"kubedistill.io/job-uid": UID}}}
ACCOUNT = {"uri": "s3://team-a/kd/", "serviceAccountName": "kd"}


def egress(document: dict[str, Any] | None = None, **network: Any) -> list[dict[str, Any]]:
    found = build.network_policy(context(document or job(), runtime(network=network)))
    rules: list[dict[str, Any]] = found["spec"]["egress"]
    return rules


def test_it_holds_for_every_pod_of_the_job_and_for_no_other() -> None:
    ctx = context(job())
    policy = build.network_policy(ctx)
    assert policy["spec"]["podSelector"] == OWN["podSelector"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for child in every_child(ctx):
        if child.manifest["kind"] in ("Job", "Deployment"):
            labels = child.manifest["spec"]["template"]["metadata"]["labels"]
            assert OWN["podSelector"]["matchLabels"].items() <= labels.items()


def test_only_pods_of_the_same_job_reach_them() -> None:
    assert build.network_policy(context(job()))["spec"]["ingress"] == [{"from": [OWN]}]
    assert egress()[0] == {"to": [OWN]}


def test_names_are_asked_of_kube_system_or_of_whom_the_runtime_names() -> None:
    asked = egress()[1]
    assert {(port["protocol"], port["port"]) for port in asked["ports"]} >= {("UDP", 53), ("TCP", 53)}
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}} in asked["to"]
    peer = {"namespaceSelector": {"matchLabels": {"dns": "yes"}, "matchExpressions": []}}
    assert egress(dns=[peer])[1]["to"] == [peer]


def test_progress_goes_to_the_operators_pods_at_its_port() -> None:
    assert egress()[2] == {
        "to": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubedistill"}},
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kubedistill"}},
            }
        ],
        "ports": [{"protocol": "TCP", "port": 8080}],
    }
    silent = replace(context(job()), settings=replace(SETTINGS, progress_url=None))
    assert len(build.network_policy(silent)["spec"]["egress"]) == len(egress()) - 1


def test_a_list_of_the_runtime_is_all_that_lies_outside() -> None:
    rules = egress(egress=[{"cidr": "192.0.2.7/24", "ports": [443, 9000]}, {"cidr": "2001:db8::1/32"}])
    assert rules[3:] == [
        {
            "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
            "ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 9000}],
        },
        {"to": [{"ipBlock": {"cidr": "2001:db8::/32"}}]},
    ]


def test_without_a_list_every_address_is_reached_but_those_where_clouds_give_away_credentials() -> None:
    (outside,) = egress()[3:]
    assert "ports" not in outside
    assert outside["to"] == [
        {"namespaceSelector": {}},
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10", "fd00:ec2::254/128"]}},
    ]


def test_a_job_that_lives_on_the_clouds_credentials_reaches_them() -> None:
    assert egress(job(artifacts=ACCOUNT))[3:] == [{}]
