"""The chart on a real API server: everything is accepted, CRDs move with the release, and rights are what they look like."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_server import CRDS, Server, api_server, remove_crds

pytestmark = pytest.mark.cluster

CHART = Path(__file__).parents[2] / "charts" / "kubedistill"
ALL = (
    "watch.namespaces={default}",
    "images.pullSecrets={registry}",
    "runtimes.imagePullSecrets={registry}",
    "runtimes.network.egress[0].cidr=10.1.0.0/16",
    "runtimes.network.dns[0].podSelector.matchLabels.k8s-app=kube-dns",
    "runtimes.network.privateCIDRs={10.1.0.0/16}",
    "networkPolicy.apiServer.cidrs={10.0.0.1/32}",
    "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
    "operator.priorityClassName=system-cluster-critical",
    "operator.podLabels.team=ml",
    "operator.podAnnotations.note=one",
    "operator.nodeSelector.disk=ssd",
    "operator.tolerations[0].operator=Exists",
    "operator.env[0].name=A,operator.env[0].value=b",
    "serviceAccount.annotations.role=arn",
    "monitoring.dashboard.enabled=true",
    "gc.enabled=true",
    "gc.store=s3://team/kd",
    "gc.endpoint=https://s3.example.com",
    "gc.region=eu-1",
    "gc.credentialsSecret=store",
    "gc.keep={abcd1234}",
)
"""Every branch of every template, but what needs the Prometheus operator's CRDs."""

HelmHere = Callable[..., str]


@pytest.fixture(scope="module")
def bare() -> Iterator[Server]:
    """A server without the CRDs: the chart brings them."""
    with api_server(crds=False) as ready:
        yield ready


@pytest.fixture
def helm_here(helm: Any, bare: Server) -> Iterator[HelmHere]:
    """Helm against that server, in kd-system; nothing is left of the chart afterwards."""

    def run(*arguments: str, fails: bool = False) -> str:
        done = helm(*arguments, "--namespace", "kd-system", environment=bare.environment)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return str(done.stdout + done.stderr)

    yield run
    helm("uninstall", "kubedistill", "--namespace", "kd-system", environment=bare.environment)
    remove_crds(bare)


def install(helm_here: HelmHere, server: Server, *values: str, chart: Path = CHART) -> None:
    """Install or upgrade. The runtimes come second: no pod runs here that could wait for their kind (test_chart_node.py has it)."""
    if not names(server, "crd") & CRD_NAMES:
        helm_here("install", "kubedistill", str(chart), "--create-namespace", "--no-hooks", *_sets(values))
        server.kubectl("wait", "--for=condition=Established", "crd", *CRD_NAMES, "--timeout=60s")
    helm_here("upgrade", "--install", "kubedistill", str(chart), "--create-namespace", *_sets(values))


def _sets(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def names(server: Server, kind: str) -> set[str]:
    listed = server.kubectl("get", kind, "-A", "-o", "name")
    assert listed.returncode == 0, listed.stderr
    return {line.split("/", 1)[1] for line in listed.stdout.split()}


CRD_NAMES = {"distillationjobs.kubedistill.io", "clusterdistillationruntimes.kubedistill.io"}
RUNTIMES = {"cpu", "cuda", "cuda-multinode"}


@pytest.mark.parametrize("values", [(), ALL], ids=["defaults", "every value"])
def test_a_real_api_server_takes_every_document(
    render: Any, server: Server, tmp_path: Path, values: tuple[str, ...]
) -> None:
    documents = render(*values)
    server.kubectl("create", "namespace", "kd-system")
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    applied = server.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", str(file)
    )
    assert applied.returncode == 0, applied.stderr
    assert len(applied.stdout.splitlines()) == len(documents)


PODS = ("kubedistill", "kubedistill-gc", "kubedistill-test", "kubedistill-wait")


@pytest.mark.parametrize("name", PODS)
def test_pods_of_the_chart_pass_the_restricted_profile(render: Any, restricted: str, server: Server, name: str) -> None:
    with_pods = [d for d in render(*ALL, known=False) if d["kind"] in ("Deployment", "CronJob", "Pod")]
    specs = {d["metadata"]["name"]: d["spec"] for d in with_pods}
    assert set(specs) == set(PODS)
    spec = specs[name]
    while "containers" not in spec:
        spec = spec.get("jobTemplate", spec.get("template"))["spec"]
    # Which account and class a namespace has is not what is asked here.
    spec = {key: value for key, value in spec.items() if key not in ("serviceAccountName", "priorityClassName")}
    answer = server.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", "namespace": restricted}, "spec": spec}
    )
    assert answer.status_code == 201, answer.json()["message"]


def test_runtimes_come_change_and_go_with_the_release(bare: Server, helm_here: HelmHere) -> None:
    install(helm_here, bare)
    assert names(bare, "crd") >= CRD_NAMES
    assert names(bare, "cdr") == RUNTIMES
    install(helm_here, bare, "runtimes.cuda.enabled=false", "runtimes.cpu.spec.limits.nodes=1")
    assert names(bare, "cdr") == RUNTIMES - {"cuda"}
    changed = yaml.safe_load(bare.kubectl("get", "cdr", "cpu", "-o", "yaml").stdout)
    assert changed["spec"]["limits"] == {"nodes": 1}
    helm_here("uninstall", "kubedistill")
    assert names(bare, "cdr") == set()


def test_crds_move_with_the_release_and_survive_it_with_every_job(
    bare: Server, helm_here: HelmHere, tmp_path: Path
) -> None:
    install(helm_here, bare)
    job = CRDS.parent / "examples" / "quickstart.yaml"
    made = bare.kubectl("apply", "-f", str(job))
    assert made.returncode == 0, made.stderr
    newer = tmp_path / "kubedistill"
    shutil.copytree(CHART, newer)
    path = newer / "generated" / "crds" / "kubedistill.io_distillationjobs.yaml"
    crd = yaml.safe_load(path.read_text())
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["novelty"] = {
        "type": "string"
    }
    path.write_text(yaml.safe_dump(crd))
    refused = bare.kubectl("explain", "dj.spec.novelty")
    assert refused.returncode != 0
    install(helm_here, bare, chart=newer)
    fields = bare.kubectl("get", "crd", "distillationjobs.kubedistill.io", "-o", "yaml").stdout
    assert "novelty:" in fields
    kept = names(bare, "dj")
    assert len(kept) == 1
    helm_here("uninstall", "kubedistill")
    assert names(bare, "crd") >= CRD_NAMES
    assert names(bare, "dj") == kept
    assert "kubedistill" not in names(bare, "deploy")
    install(helm_here, bare)
    assert names(bare, "dj") == kept


def test_crds_go_at_uninstall_where_that_is_asked(bare: Server, helm_here: HelmHere) -> None:
    install(helm_here, bare, "crds.keep=false")
    helm_here("uninstall", "kubedistill", "--wait")
    assert not names(bare, "crd") & CRD_NAMES


def test_a_second_release_says_what_stands_in_its_way(bare: Server, helm_here: HelmHere) -> None:
    install(helm_here, bare)
    said = helm_here("install", "other", str(CHART), fails=True)
    assert 'annotation validation error: key "meta.helm.sh/release-name" must equal "other"' in said
    helm_here("install", "other", str(CHART), "--set", "crds.enabled=false,runtimes.cpu.enabled=false",
              "--set", "runtimes.cuda.enabled=false,runtimes.cuda-multinode.enabled=false")  # fmt: skip
    helm_here("uninstall", "other")


CAN_EVERYWHERE = ("create jobs.batch", "get nodes", "create tokenreviews.authentication.k8s.io", "create secrets",
                  "update distillationjobs.kubedistill.io/status", "get namespaces")  # fmt: skip
CANNOT = ("get secrets", "list secrets", "watch secrets", "delete secrets", "update secrets", "list nodes", "update nodes",
          "create pods", "create pods/exec", "get pods/log", "update deployments.apps", "patch jobs.batch",
          "create distillationjobs.kubedistill.io", "update distillationjobs.kubedistill.io",
          "update clusterdistillationruntimes.kubedistill.io", "create serviceaccounts", "create serviceaccounts/token",
          "create roles.rbac.authorization.k8s.io", "create rolebindings.rbac.authorization.k8s.io",
          "escalate clusterroles.rbac.authorization.k8s.io", "impersonate users", "delete namespaces",
          "list customresourcedefinitions.apiextensions.k8s.io", "list configmaps", "watch services",
          "list networkpolicies.networking.k8s.io")  # fmt: skip


def can(server: Server, what: str, namespace: str) -> bool:
    verb, resource = what.split(" ")
    resource, _, part = resource.partition("/")
    account = "system:serviceaccount:kd-system:kubedistill"
    parts = (f"--subresource={part}",) if part else ()
    asked = server.kubectl("auth", "can-i", verb, resource, *parts, "--namespace", namespace, "--as", account)
    assert asked.stdout.strip() in ("yes", "no"), asked.stderr
    return asked.stdout.strip() == "yes"


def test_the_api_server_grants_the_operator_what_the_chart_says(bare: Server, helm_here: HelmHere) -> None:
    install(helm_here, bare)
    assert [what for what in CAN_EVERYWHERE if not can(bare, what, "default")] == []
    assert [what for what in CANNOT if can(bare, what, "default")] == []
    assert not can(bare, "create leases.coordination.k8s.io", "default")


def test_with_listed_namespaces_it_can_do_nothing_in_others(bare: Server, helm_here: HelmHere) -> None:
    bare.kubectl("create", "namespace", "team-a")
    install(helm_here, bare, "watch.namespaces={team-a}")
    inside = [what for what in CAN_EVERYWHERE if not can(bare, what, "team-a")]
    assert inside == []
    everywhere = {"get nodes", "create tokenreviews.authentication.k8s.io"}
    assert {what for what in CAN_EVERYWHERE if can(bare, what, "default")} == everywhere
    assert not can(bare, "list distillationjobs.kubedistill.io", "default")
    assert can(bare, "watch distillationjobs.kubedistill.io", "team-a")
