"""Random valid jobs and runtimes (hypothesis), as far as they shape a job's children."""

from __future__ import annotations

from typing import Any

import job_children
import manifests
from hypothesis import strategies as st
from kd_operator.children.context import ChildContext

from kd_runtime.api.metadata import JOB_NAME_LENGTH
from kd_runtime.api.model import RESERVED_NAMES

JOB_NAMES = st.one_of(st.from_regex(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?", fullmatch=True), st.just("j" * JOB_NAME_LENGTH))
STAGE_NAMES = st.one_of(
    st.from_regex(r"[a-z][a-z0-9]{2,15}", fullmatch=True).filter(lambda name: name not in RESERVED_NAMES.split("|")),
    st.just("s" * 16),
)
CPU = st.sampled_from(["100m", "0.5", "1", "2500m", "32"])
MEMORY = st.sampled_from(["256Mi", "1G", "4Gi", "400Gi", "1Ti"])
HUB = {"name": "hub", "key": "token"}
OBJECT_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A map with any of ``fields``."""
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def resources(draw: st.DrawFn, *, nodes: bool = False) -> dict[str, Any]:
    """A stage's `resources`."""
    own = {"gpusPerNode": st.integers(0, 8), "cpu": CPU, "memory": MEMORY}
    return draw(some(**own, **({"nodes": st.sampled_from([1, 2, 1024])} if nodes else {})))


def pod_settings() -> st.SearchStrategy[dict[str, Any]]:
    """What a runtime gives to pods of a component."""
    return some(
        resources=st.one_of(
            some(requests=some(cpu=CPU, memory=MEMORY)),
            some(limits=some(cpu=CPU, memory=MEMORY)),
        ),
        nodeSelector=st.dictionaries(OBJECT_NAMES, OBJECT_NAMES, max_size=2),
        annotations=st.dictionaries(OBJECT_NAMES, st.text('abc {}"', max_size=8), max_size=2),
        runtimeClassName=OBJECT_NAMES,
        scratch=some(size=st.just("10Gi"), storageClassName=OBJECT_NAMES),
        cache=st.fixed_dictionaries({"claimName": OBJECT_NAMES}, optional={"subPath": st.just("hub")}),
        tolerations=st.lists(some(key=OBJECT_NAMES, operator=st.just("Exists")), max_size=2),
    )


def runtimes() -> st.SearchStrategy[dict[str, Any]]:
    """A runtime's document."""
    components = ("plan", "teacher", "workers", "trainer", "tools")
    spec = some(
        images=some(runtime=st.just("r:1"), plan=st.just("p:1")),
        imagePullSecrets=st.lists(st.fixed_dictionaries({"name": OBJECT_NAMES}), max_size=2),
        gpuResourceName=st.sampled_from(["nvidia.com/gpu", "amd.com/gpu"]),
        env=st.just([{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}, {"name": "HOME", "value": "/elsewhere"}]),
        caBundleConfigMap=some(key=st.just("ca.pem")).map(lambda more: {"name": "ca", **more}),
        network=some(egress=st.just([{"cidr": "10.0.0.0/8", "ports": [443]}])),
        pod=some(**{component: pod_settings() for component in components}),
    )
    return spec.map(lambda given: job_children.runtime(**given))


@st.composite
def teachers(draw: st.DrawFn) -> dict[str, Any]:
    """A hosted teacher, or another's behind the KD protocol."""
    if draw(st.booleans()):
        external = {"baseURL": "https://t.example.com/v1", "protocol": "KD", "model": "m"}
        return {"external": {**external, **draw(some(apiKeySecretRef=st.just({"name": "keys", "key": "t"})))}}
    model = draw(st.sampled_from([{"uri": "s3://m/t/"}, {"uri": "hf://o/t", "revision": "1", "secretRef": HUB}]))
    gpus = draw(st.integers(0, 8))
    sizes = {"gpusPerReplica": gpus, "parallelism": {"tensor": max(1, gpus)}}
    times = draw(some(startupTimeoutSeconds=st.sampled_from([0, 1, 3600]), replicas=st.integers(1, 256)))
    return {"hosted": {"model": model, "dtype": "float32", **sizes, **times}}


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """A job's document: generate, capture, train, evaluate and publish under random names and sizes."""
    names = draw(st.lists(STAGE_NAMES, min_size=5, max_size=5, unique=True))
    bodies: list[dict[str, Any]] = [{k: v for k, v in stage.items() if k != "name"} for stage in manifests.FULL]
    stages = [{"name": name, **body} for name, body in zip(names, bodies, strict=True)]
    for asking in stages[:2]:
        asking["workers"] = draw(st.sampled_from([1, 2, 1024]))
    for number, stage in enumerate(stages):
        stage["resources"] = draw(resources(nodes=number == 2))
        stage |= draw(some(timeoutSeconds=st.sampled_from([0, 3600])))
    artifacts = draw(
        some(
            endpoint=st.just("https://s3.example.com"),
            region=st.just("eu-central-1"),
            credentialsSecretRef=st.just({"name": "store"}),
            serviceAccountName=OBJECT_NAMES,
        )
    )
    document = job_children.job(
        stages,
        teacher=draw(teachers()),
        student={"model": draw(st.sampled_from([{"uri": "s3://m/s/"}, {"uri": "hf://o/s", "revision": "1"}]))},
        artifacts={"uri": "s3://team-a/kd/", **artifacts},
        scheduling=draw(some(priorityClassName=OBJECT_NAMES, nodeSelector=st.just({"zone": "a"}))),
        failurePolicy=draw(some(backoffLimit=st.integers(0, 100))),
    )
    document["metadata"]["name"] = draw(JOB_NAMES)
    return document


@st.composite
def contexts(draw: st.DrawFn) -> ChildContext:
    """A job under a runtime, as its children are built from it."""
    return job_children.context(draw(jobs()), draw(runtimes()))
