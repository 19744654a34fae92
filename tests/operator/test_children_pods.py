"""Where pods run and what they can write: images, scratch, cache, shared memory, certificates, placement."""

from __future__ import annotations

from typing import Any

import pytest
from job_children import container_of, context, every_child, job, only, runtime, variables, volumes
from kd_operator.children import build
from kd_operator.children.context import ChildContext


def trainer(ctx: ChildContext) -> dict[str, Any]:
    return only(build.stage(ctx, "student", 1, teacher_attempt=0))


def spec_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def mains(ctx: ChildContext) -> dict[str, dict[str, Any]]:
    """Part -> its main child."""
    found = [child for child in every_child(ctx) if child.manifest["kind"] in ("Job", "Deployment")]
    return {child.claim.part: child.manifest for child in found}


def test_images_are_the_runtimes_else_the_operators() -> None:
    own = {part: container_of(manifest)["image"] for part, manifest in mains(context(job())).items()}
    assert own.pop("plan") == "registry.example.com/operator:1"
    assert set(own.values()) == {"registry.example.com/runtime:1"}
    named = mains(
        context(job(), runtime(images={"runtime": "r:2", "plan": "p:2"}, imagePullSecrets=[{"name": "pull"}]))
    )
    assert container_of(named["plan"])["image"] == "p:2"
    assert container_of(named["teacher/teacher"])["image"] == container_of(named["exam"])["image"] == "r:2"
    assert all(spec_of(manifest)["imagePullSecrets"] == [{"name": "pull"}] for manifest in named.values())


def test_scratch_is_the_nodes_disk_unless_a_storage_class_is_named() -> None:
    assert volumes(trainer(context(job())))["/tmp"] == {"name": "scratch", "emptyDir": {}}
    sized = context(job(), runtime(pod={"trainer": {"scratch": {"size": "20Gi"}}}))
    assert volumes(trainer(sized))["/tmp"]["emptyDir"] == {"sizeLimit": "20Gi"}
    fast = context(job(), runtime(pod={"trainer": {"scratch": {"size": "20Gi", "storageClassName": "fast"}}}))
    claim = volumes(trainer(fast))["/tmp"]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["storageClassName"] == "fast"
    assert claim["resources"] == {"requests": {"storage": "20Gi"}}
    assert volumes(mains(fast)["exam"])["/tmp"] == {"name": "scratch", "emptyDir": {}}  # another component's


def test_a_cache_in_scratch_of_a_size_takes_half_of_it_at_most() -> None:
    sized = context(job(), runtime(pod={"trainer": {"scratch": {"size": "20Gi"}}}))
    assert variables(trainer(sized))["KD_CACHE_BYTES"] == str(10 << 30)
    assert "KD_CACHE_BYTES" not in variables(mains(sized)["exam"])
    classed = context(job(), runtime(pod={"trainer": {"scratch": {"storageClassName": "fast"}}}))
    assert variables(trainer(classed))["KD_CACHE_BYTES"] == str(25 << 30)
    claim = volumes(trainer(classed))["/tmp"]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"] == {"requests": {"storage": "50Gi"}}
    volume = {"scratch": {"size": "20Gi"}, "cache": {"claimName": "weights"}}
    assert "KD_CACHE_BYTES" not in variables(trainer(context(job(), runtime(pod={"trainer": volume}))))


def test_weights_are_cached_in_the_runtimes_volume_where_it_has_one() -> None:
    ctx = context(job(), runtime(pod={"teacher": {"cache": {"claimName": "weights", "subPath": "hub"}}}))
    (_, _, served) = build.teacher(ctx, "teacher", 1)
    folder = variables(served.manifest)["KD_CACHE_DIR"]
    assert volumes(served.manifest)[folder]["persistentVolumeClaim"] == {"claimName": "weights"}
    (mount,) = [m for m in container_of(served.manifest)["volumeMounts"] if m["mountPath"] == folder]
    assert mount["subPath"] == "hub"
    assert variables(trainer(ctx))["KD_CACHE_DIR"].startswith("/tmp/")


def test_shared_memory_is_in_memory_for_those_that_pass_tensors_through_it() -> None:
    has = {part: "/dev/shm" in volumes(manifest) for part, manifest in mains(context(job())).items()}
    assert {part for part, shared in has.items() if shared} == {"teacher/teacher", "student", "exam", "release"}
    assert volumes(trainer(context(job())))["/dev/shm"]["emptyDir"] == {"medium": "Memory"}


def test_a_bundle_of_certificates_is_trusted_by_every_client() -> None:
    ctx = context(job(), runtime(caBundleConfigMap={"name": "ca", "key": "bundle.pem"}))
    for manifest in mains(ctx).values():
        found = variables(manifest)
        files = {found[name] for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")}
        assert files == {"/etc/kubedistill/ca/bundle.pem"}
        assert volumes(manifest)["/etc/kubedistill/ca"]["configMap"]["name"] == "ca"


def test_homes_and_temporary_files_lie_in_scratch() -> None:
    found = variables(trainer(context(job())))
    assert (found["HOME"], found["TMPDIR"]) == ("/tmp", "/tmp")


def test_the_runtime_and_the_job_place_pods_together() -> None:
    pod = {
        "nodeSelector": {"gpu": "h100", "zone": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
                }
            }
        },
        "annotations": {"example.com/team": "a"},
        "runtimeClassName": "nvidia",
    }
    scheduling = {
        "priorityClassName": "batch",
        "nodeSelector": {"zone": "b", "disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}, {"key": "spot", "operator": "Exists"}],
    }
    ctx = context(job(scheduling=scheduling), runtime(pod={"trainer": pod}))
    spec = spec_of(trainer(ctx))
    assert spec["nodeSelector"] == {
        "gpu": "h100",
        "zone": "a",
        "disk": "fast",
    }  # where both say one, the platform team's
    assert [toleration["key"] for toleration in spec["tolerations"]] == ["gpu", "spot"]
    assert spec["affinity"] == pod["affinity"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["priorityClassName"] == "batch"
    assert trainer(ctx)["spec"]["template"]["metadata"]["annotations"] == {"example.com/team": "a"}
    other = spec_of(mains(ctx)["exam"])
    assert other["nodeSelector"] == {"zone": "b", "disk": "fast"}
    assert "runtimeClassName" not in other


@pytest.mark.parametrize(("part", "policy"), [("teacher/teacher", "FallbackToLogsOnError"), ("student", "File")])
def test_a_message_is_a_result_file_or_a_teachers_last_words(part: str, policy: str) -> None:
    container = container_of(mains(context(job()))[part])
    assert container["terminationMessagePolicy"] == policy
    assert container["terminationMessagePath"] == variables(mains(context(job()))[part])["KD_RESULT_FILE"]
