"""What the chart makes of its values: the operator's flags, its network, the runtimes, and copies that are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kd_operator.__main__ import arguments
from kd_operator.settings import Settings

from kd_runtime import __version__
from kd_runtime.api.labels import DEFAULT_RUNTIME_ANNOTATION, UID_LABEL
from kd_runtime.api.parse import parse_runtime
from kd_runtime.api.runtime import SHIPPED, shipped_runtime

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "kubedistill"
MONITORING = ("podMonitor", "prometheusRule", "dashboard")


def only(documents: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = (d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"]))
    return found


def pod_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    template: dict[str, Any] = only(documents, "Deployment")["spec"]["template"]
    return template


def settings_of(documents: list[dict[str, Any]]) -> Settings:
    """What the operator makes of the flags that the chart gives it."""
    (container,) = pod_of(documents)["spec"]["containers"]
    assert container["command"] == ["python3", "-m", "kd_operator"]
    variables = {"$(POD_NAME)": "pod-1", "$(POD_NAMESPACE)": "kd-system"}
    words = []
    for word in container["args"]:
        for name, value in variables.items():
            word = word.replace(name, value)
        words.append(word)
    return arguments(words)[0]


@pytest.mark.parametrize("folder", ["crds", "runtimes"])
def test_the_copies_in_the_chart_are_those_of_the_project(folder: str) -> None:
    source = {"crds": ROOT / "crds", "runtimes": ROOT / "kd_runtime" / "api" / "runtimes"}[folder]
    original = {path.name: path.read_text() for path in source.glob("*.yaml")}
    copied = {path.name: path.read_text() for path in (CHART / "generated" / folder).iterdir()}
    assert original
    assert copied == original, "run `make generate`"


def test_the_chart_and_the_images_it_asks_for_are_of_the_projects_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_the_operator_understands_every_flag(render: Any) -> None:
    assert settings_of(render()) == Settings(
        namespace="kd-system",
        identity="pod-1",
        plan_image=f"localhost/kubedistill/operator:{__version__}",
        runtime_image=f"localhost/kubedistill/runtime:{__version__}",
        progress_url="http://kubedistill.kd-system.svc:8080",
        lease_name="kubedistill",
        operator_labels=(
            ("app.kubernetes.io/component", "operator"),
            ("app.kubernetes.io/instance", "kubedistill"),
            ("app.kubernetes.io/name", "kubedistill"),
        ),
    )


def test_values_become_flags(render: Any) -> None:
    values = ("images.registry=registry.example.com/ml", "images.tag=v7", "images.pullPolicy=Always")
    more = ("watch.namespaces={a,b}", "operator.progress=false", "operator.port=9000", "operator.workers=3")
    digest = "sha256:" + "0" * 64
    settings = settings_of(render(*values, *more, f"images.runtime.digest={digest}"))
    assert settings.plan_image == "registry.example.com/ml/operator:v7"
    assert settings.runtime_image == f"registry.example.com/ml/runtime@{digest}"
    assert (settings.image_pull_policy, settings.progress_url) == ("Always", None)
    assert (settings.watch_namespaces, settings.port, settings.workers) == (("a", "b"), 9000, 3)


def test_everything_that_finds_the_operators_pods_finds_them(render: Any) -> None:
    documents = render("monitoring.podMonitor.enabled=true")
    labels = pod_of(documents)["metadata"]["labels"].items()
    assert dict(settings_of(documents).operator_labels).items() <= labels
    assert only(documents, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels
    assert only(documents, "Service")["spec"]["selector"].items() <= labels
    policy = only(documents, "NetworkPolicy")["spec"]["podSelector"]
    assert policy["matchLabels"].items() <= labels
    (component,) = policy["matchExpressions"]
    assert (component["key"], component["values"]) == ("app.kubernetes.io/component", ["operator", "wait"])
    assert dict(labels)["app.kubernetes.io/component"] in component["values"]
    assert only(documents, "PodMonitor")["spec"]["selector"]["matchLabels"].items() <= labels
    for other in (only(documents, "Pod"), only(render("gc.enabled=true", "gc.store=s3://b/kd"), "CronJob")):
        pod = other if other["kind"] == "Pod" else other["spec"]["jobTemplate"]["spec"]["template"]
        assert not only(documents, "Service")["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_one_operator_at_a_time(render: Any) -> None:
    spec = only(render(), "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_the_network_lets_in_jobs_pods_the_test_and_who_is_listed(render: Any) -> None:
    listed = "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring"
    (rule,) = only(render(listed), "NetworkPolicy")["spec"]["ingress"]
    jobs, test, metrics = rule["from"]
    assert jobs == {
        "namespaceSelector": {},
        "podSelector": {"matchExpressions": [{"key": UID_LABEL, "operator": "Exists"}]},
    }
    assert test["podSelector"]["matchLabels"].items() <= only(render(), "Pod")["metadata"]["labels"].items()
    assert metrics == {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    assert rule["ports"] == [{"protocol": "TCP", "port": 8080}]


def test_the_network_lets_out_to_the_api_server_alone(render: Any) -> None:
    spec = only(render("networkPolicy.apiServer.cidrs={10.0.0.1/32}"), "NetworkPolicy")["spec"]
    ports = [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 6443}]
    assert spec["egress"] == [{"ports": ports, "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert not [d for d in render("networkPolicy.enabled=false") if d["kind"] == "NetworkPolicy"]


def test_without_progress_no_job_connects(render: Any) -> None:
    (rule,) = only(render("operator.progress=false"), "NetworkPolicy")["spec"]["ingress"]
    assert len(rule["from"]) == 1


def test_crds_are_kept_at_uninstall_unless_asked(render: Any) -> None:
    def policies(*values: str) -> list[str | None]:
        crds = [d for d in render(*values) if d["kind"] == "CustomResourceDefinition"]
        return [crd["metadata"].get("annotations", {}).get("helm.sh/resource-policy") for crd in crds]

    assert policies() == ["keep", "keep"]
    assert policies("crds.keep=false") == [None, None]
    assert policies("crds.enabled=false") == []


def test_rendering_leaves_the_crds_what_they_are(render: Any) -> None:
    rendered = {d["metadata"]["name"]: d["spec"] for d in render() if d["kind"] == "CustomResourceDefinition"}
    sources = (yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml"))
    assert rendered == {crd["metadata"]["name"]: crd["spec"] for crd in sources}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_runtime_is_the_shipped_one_with_its_image(render: Any, name: str) -> None:
    document = only(render(), "ClusterDistillationRuntime", name)
    image = "runtime" if name == "cpu" else "runtime-cuda"
    assert document["spec"].pop("images") == {"runtime": f"localhost/kubedistill/{image}:{__version__}"}
    plain = {**document, "metadata": {"name": name}}
    assert parse_runtime(plain) == shipped_runtime(name)


def test_runtimes_take_the_networks_addresses_and_what_is_merged_in(render: Any) -> None:
    documents = render(
        "runtimes.network.egress[0].cidr=10.1.0.0/16",
        "runtimes.network.privateCIDRs={10.1.0.0/16}",
        "runtimes.imagePullSecrets={registry}",
        "runtimes.cuda.spec.limits.gpusPerJob=16",
        "runtimes.cuda-multinode.enabled=false",
    )
    runtimes = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "ClusterDistillationRuntime"}
    assert set(runtimes) == {"cpu", "cuda"}
    for spec in runtimes.values():
        assert spec["network"] == {"egress": [{"cidr": "10.1.0.0/16"}], "privateCIDRs": ["10.1.0.0/16"]}
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert runtimes["cuda"]["limits"] == {"gpusPerJob": 16}
    assert "limits" not in runtimes["cpu"]


@pytest.mark.parametrize(("default", "annotated"), [("cpu", ["cpu"]), ("cuda", ["cuda"]), ("", [])])
def test_at_most_one_runtime_is_the_default(render: Any, default: str, annotated: list[str]) -> None:
    runtimes = [d for d in render(f"runtimes.default={default}") if d["kind"] == "ClusterDistillationRuntime"]
    marks = {d["metadata"]["name"]: d["metadata"].get("annotations", {}) for d in runtimes}
    assert [name for name, found in marks.items() if found.get(DEFAULT_RUNTIME_ANNOTATION) == "true"] == annotated


def test_runtimes_are_a_hook_only_where_their_kind_is_not_known_yet(render: Any) -> None:
    def hooks(known: bool) -> set[str | None]:
        runtimes = [d for d in render(known=known) if d["kind"] == "ClusterDistillationRuntime"]
        return {d["metadata"].get("annotations", {}).get("helm.sh/hook") for d in runtimes}

    assert hooks(known=True) == {None}
    assert hooks(known=False) == {"post-install,post-upgrade"}


def test_a_first_install_waits_for_the_kinds_before_it_makes_runtimes(render: Any) -> None:
    assert [d for d in render(known=True) if d["metadata"]["name"] == "kubedistill-wait"] == []
    waiting = only(render(known=False), "Pod", "kubedistill-wait")
    assert int(waiting["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
    assert waiting["metadata"]["labels"].items() >= {"app.kubernetes.io/component": "wait"}.items()


def test_monitoring_is_off_until_it_is_asked_for(render: Any) -> None:
    kinds = {d["kind"] for d in render()}
    assert not kinds & {"PodMonitor", "PrometheusRule", "CronJob"}
    documents = render(*(f"monitoring.{name}.enabled=true" for name in MONITORING))
    endpoint = only(documents, "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    (container,) = pod_of(documents)["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    assert only(documents, "PrometheusRule")["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert set(only(documents, "ConfigMap")["data"]) == {"dashboard.json"}


def test_sweeping_calls_kd_as_its_command_line_takes_it(render: Any) -> None:
    from typer.testing import CliRunner

    from kd_runtime.cli.main import app

    values = ("gc.enabled=true", "gc.store=s3://team/kd", "gc.keep={abcd1234}", "gc.credentialsSecret=store")
    cron = only(render(*values), "CronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    (container,) = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["kd", "gc"]
    assert container["args"] == ["--store=s3://team/kd", "--keep=abcd1234"]
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    told = CliRunner().invoke(app, ["gc", "--help"], env={"COLUMNS": "200"}).output
    assert "--store" in told and "--keep" in told
