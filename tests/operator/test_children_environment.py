"""Each pod gets the variables and Secrets that it needs, and no other's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from job_children import SETTINGS, UID, context, every_child, job, only, runtime, variables, volumes
from kd_operator.children import build

HOSTED = {"model": {"uri": "hf://o/teacher", "revision": "1", "secretRef": {"name": "big", "key": "token"}}}
EXTERNAL = {
    "baseURL": "https://api.example.com/v1",
    "protocol": "KD",
    "model": "m",
    "apiKeySecretRef": {"name": "bought", "key": "api-key"},
}
STUDENT = {"model": {"uri": "hf://o/student", "revision": "1", "secretRef": {"name": "hub", "key": "token"}}}
DATASET = {
    "uri": "hf://datasets/o/rows",
    "revision": "1",
    "format": "HuggingFace",
    "fields": {"prompt": "instruction"},
    "secretRef": {"name": "data.team", "key": "token"},
}


def secrets(**spec: Any) -> dict[str, set[str]]:
    """Part -> the Secrets that its main child's pods read, beside the store's."""
    found = {}
    for child in every_child(context(job(**spec))):
        if child.manifest["kind"] in ("Job", "Deployment"):
            read = {
                variable["valueFrom"]["secretKeyRef"]["name"]
                for variable in child.manifest["spec"]["template"]["spec"]["containers"][0]["env"]
                if "valueFrom" in variable
            }
            found[child.claim.part] = read - {"store"}
    return found


def test_each_pod_reads_only_the_secrets_of_what_it_reads_itself() -> None:
    key = f"tiny-teacher-{UID}"
    assert secrets(teacher={"hosted": HOSTED}, student=STUDENT, dataset=DATASET) == {
        "plan": {"big", "hub", "data.team"},
        "teacher/teacher": {"big", key},
        "dataset": {"hub", "data.team"},
        "answers": {"hub", key},
        "logits": {key},
        "student": {"hub"},
        "exam": {"hub"},  # the student as it was before training is the baseline
        "release": set(),
    }


def test_the_key_of_an_external_teacher_goes_to_the_workers_that_ask_it_and_to_the_probes() -> None:
    assert secrets(teacher={"external": EXTERNAL}) == {
        "plan": {"bought"},
        "dataset": set(),
        "answers": {"bought"},
        "logits": {"bought"},
        "student": set(),
        "exam": set(),
        "release": set(),
    }


def test_a_token_of_the_hub_is_not_given_for_weights_that_lie_in_the_store() -> None:
    elsewhere = {"model": {"uri": "s3://models/student/", "secretRef": {"name": "hub", "key": "token"}}}
    assert all("hub" not in found for found in secrets(student=elsewhere).values())


def test_an_external_teacher_is_asked_at_its_own_address_and_a_hosted_one_at_its_service() -> None:
    asked = variables(only(build.stage(context(job(teacher={"external": EXTERNAL})), "answers", 1, teacher_attempt=0)))
    assert asked["KD_TEACHER_URL"] == "https://api.example.com/v1"
    assert asked["KD_TEACHER_KEY"] == "bought/api-key"
    asked = variables(only(build.stage(context(job()), "answers", 1, teacher_attempt=6)))
    assert asked["KD_TEACHER_URL"] == "http://tiny-teacher-0f9c2-6.team.svc:8000"
    assert asked["KD_TEACHER_KEY"] == f"tiny-teacher-{UID}/apiKey"
    assert build.teacher_url(context(job()), "teacher", 6) == asked["KD_TEACHER_URL"]


def test_each_stage_asks_the_teacher_that_it_names() -> None:
    teachers = [{"name": "big", "hosted": HOSTED}, {"name": "other", "external": EXTERNAL}]
    stages = [
        {"name": "answers", "teacher": "other", "generate": {}},
        {"name": "logits", "teacher": "big", "capture": {}},
    ]
    document = job(stages, teachers=teachers)
    del document["spec"]["teacher"]
    ctx = context(document)
    urls = [
        variables(only(build.stage(ctx, name, 1, teacher_attempt=2)))["KD_TEACHER_URL"]
        for name in ("answers", "logits")
    ]
    assert urls == ["https://api.example.com/v1", "http://tiny-big-0f9c2-2.team.svc:8000"]


def test_a_stage_that_asks_nobody_is_told_of_no_teacher() -> None:
    for name in ("dataset", "student", "exam", "release"):
        found = variables(only(build.stage(context(job()), name, 1, teacher_attempt=1)))
        assert {variable for variable in found if variable.startswith("KD_TEACHER")} == set()


def test_the_probes_find_a_secret_by_the_variable_that_a_laptop_uses() -> None:
    found = variables(
        only(build.plan_job(context(job(teacher={"external": EXTERNAL}, dataset=DATASET)), 1, retry=None))
    )
    assert found["KD_SECRET_BOUGHT_API_KEY"] == "bought/api-key"
    assert found["KD_SECRET_DATA_TEAM_TOKEN"] == "data.team/token"


def test_the_stores_credentials_are_in_every_pod_that_may_not_use_an_account_instead() -> None:
    for child in every_child(context(job())):
        if child.manifest["kind"] in ("Job", "Deployment"):
            found = variables(child.manifest)
            assert found["AWS_ACCESS_KEY_ID"] == "store/AWS_ACCESS_KEY_ID"
            assert found["AWS_SECRET_ACCESS_KEY"] == "store/AWS_SECRET_ACCESS_KEY"
            assert "serviceAccountName" not in child.manifest["spec"]["template"]["spec"]
    ctx = context(job(artifacts={"uri": "s3://team-a/kd/", "serviceAccountName": "kd"}))
    for child in every_child(ctx):
        if child.manifest["kind"] in ("Job", "Deployment"):
            assert not {name for name in variables(child.manifest) if name.startswith("AWS_")}
            assert child.manifest["spec"]["template"]["spec"]["serviceAccountName"] == "kd"


def test_a_session_token_may_be_absent_from_the_secret() -> None:
    (container,) = only(build.stage(context(job()), "exam", 1, teacher_attempt=0))["spec"]["template"]["spec"][
        "containers"
    ]
    (token,) = [variable for variable in container["env"] if variable["name"] == "AWS_SESSION_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True


def test_stages_post_progress_with_a_token_that_is_good_for_this_job_alone() -> None:
    manifest = only(build.stage(context(job()), "student", 1, teacher_attempt=0))
    found = variables(manifest)
    assert found["KD_PROGRESS_URL"] == "http://kubedistill-operator.kubedistill.svc:8080/v1/progress/team/tiny"
    assert found["KD_PROGRESS_TOKEN_FILE"] == "/var/run/secrets/kubedistill/token"
    (source,) = volumes(manifest)["/var/run/secrets/kubedistill"]["projected"]["sources"]
    assert source == {
        "serviceAccountToken": {
            "audience": f"kubedistill.io/jobs/{UID}",
            "expirationSeconds": 3600,
            "path": "token",
        }
    }


@pytest.mark.parametrize("part", ["plan", "teacher/teacher"])
def test_plan_and_teacher_post_none_and_get_no_token(part: str) -> None:
    main = [c.manifest for c in every_child(context(job())) if c.claim.part == part][-1]
    assert "KD_PROGRESS_URL" not in variables(main)
    assert "/var/run/secrets/kubedistill" not in volumes(main)


def test_nobody_posts_where_the_operator_listens_nowhere() -> None:
    ctx = replace(context(job()), settings=replace(SETTINGS, progress_url=None))
    manifest = only(build.stage(ctx, "student", 1, teacher_attempt=0))
    assert "KD_PROGRESS_URL" not in variables(manifest)
    assert "/var/run/secrets/kubedistill" not in volumes(manifest)


def test_the_runtimes_variables_reach_every_pod_but_do_not_undo_the_contract() -> None:
    env = [
        {"name": "HF_ENDPOINT", "value": "https://mirror.example.com"},
        {"name": "OMP_NUM_THREADS", "value": "3"},
        {"name": "KD_RESULT_FILE", "value": "/elsewhere"},
        {"name": "KD_TEACHER_KEY", "value": "guessed"},
    ]
    ctx = context(job(), runtime(env=env))
    assert all(
        variables(child.manifest)["HF_ENDPOINT"] == "https://mirror.example.com"
        for child in every_child(ctx)
        if child.manifest["kind"] in ("Job", "Deployment")
    )
    trained = variables(only(build.stage(ctx, "student", 1, teacher_attempt=0)))
    assert trained["OMP_NUM_THREADS"] == "3"
    asked = variables(only(build.stage(ctx, "answers", 1, teacher_attempt=1)))
    assert asked["KD_RESULT_FILE"] == "/dev/termination-log"
    assert asked["KD_TEACHER_KEY"] == f"tiny-teacher-{UID}/apiKey"


def test_every_pod_is_told_of_the_private_addresses_that_urls_may_lead_to_an_empty_list_too() -> None:
    env = [{"name": "KD_PRIVATE_CIDRS", "value": "0.0.0.0/0"}]
    for network, said in (({}, ""), ({"privateCIDRs": ["10.0.0.0/8", "fd12::/16"]}, "10.0.0.0/8,fd12::/16")):
        for child in every_child(context(job(), runtime(env=env, network=network))):
            if child.manifest["kind"] in ("Job", "Deployment"):
                assert variables(child.manifest)["KD_PRIVATE_CIDRS"] == said


def test_a_proxy_is_not_asked_for_what_lies_in_the_cluster() -> None:
    env = [{"name": "https_proxy", "value": "http://proxy:3128"}, {"name": "NO_PROXY", "value": "10.0.0.0/8"}]
    found = variables(only(build.stage(context(job(), runtime(env=env)), "answers", 1, teacher_attempt=1)))
    assert found["NO_PROXY"] == found["no_proxy"] == "10.0.0.0/8,localhost,127.0.0.1,.svc"
    plain = variables(only(build.stage(context(job()), "answers", 1, teacher_attempt=1)))
    assert "NO_PROXY" not in plain


def test_httpx_takes_the_teachers_address_for_one_within_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    env = [{"name": "HTTP_PROXY", "value": "http://proxy.example.com:3128"}]
    found = variables(only(build.stage(context(job(), runtime(env=env)), "answers", 1, teacher_attempt=1)))
    for name in ("HTTP_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, found[name])
    with httpx.Client() as client:
        through = client._transport_for_url(httpx.URL("http://store.example.com/"))
        direct = client._transport_for_url(httpx.URL(found["KD_TEACHER_URL"]))
        assert through is not client._transport
        assert direct is client._transport
