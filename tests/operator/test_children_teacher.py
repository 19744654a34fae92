"""A hosted teacher: its key, its Service, its Deployment and the time that it has to start."""

from __future__ import annotations

from typing import Any

import pytest
from job_children import UID, container_of, context, job, variables
from kd_operator.children import build


def teacher(**hosted: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    document = job()
    document["spec"]["teacher"]["hosted"] |= hosted
    secret, service, deployment = build.teacher(context(document), "teacher", 2)
    return secret.manifest, service.manifest, deployment.manifest


def test_its_key_is_drawn_when_the_secret_is_created_and_is_in_no_manifest() -> None:
    secret, _, deployment = build.teacher(context(job()), "teacher", 2)
    assert secret.secret_key == "apiKey"
    assert not {"data", "stringData"} & secret.manifest.keys()
    assert secret.manifest["immutable"] is True
    assert variables(deployment.manifest)["KD_TEACHER_KEY"] == f"tiny-teacher-{UID}/apiKey"


def test_all_attempts_and_teachers_share_one_secret() -> None:
    names = {build.teacher(context(job()), "teacher", n)[0].manifest["metadata"]["name"] for n in (1, 2)}
    assert names == {f"tiny-teacher-{UID}"}


def test_the_service_leads_to_the_pods_of_this_attempt_alone() -> None:
    _, service, deployment = teacher()
    selector = service["spec"]["selector"]
    assert (
        selector
        == deployment["spec"]["template"]["metadata"]["labels"]
        == deployment["spec"]["selector"]["matchLabels"]
    )
    assert selector["kubedistill.io/attempt"] == "2"
    (port,) = service["spec"]["ports"]
    (listens,) = container_of(deployment)["ports"]
    assert (port["port"], port["targetPort"]) == (8000, listens["name"])
    assert listens["containerPort"] == 8000


def test_it_is_never_updated_and_gives_its_gpus_back_before_another_takes_them() -> None:
    _, _, deployment = teacher(replicas=3)
    spec = deployment["spec"]
    assert (spec["replicas"], spec["strategy"], spec["revisionHistoryLimit"]) == (3, {"type": "Recreate"}, 0)
    assert spec["template"]["spec"]["restartPolicy"] == "Always"


@pytest.mark.parametrize(("seconds", "tries"), [(900, 450), (901, 451), (1, 1), (0, 1)])
def test_it_may_take_its_startup_timeout_until_it_answers(seconds: int, tries: int) -> None:
    _, _, deployment = teacher(startupTimeoutSeconds=seconds)
    probe = container_of(deployment)["startupProbe"]
    assert (probe["httpGet"]["path"], probe["periodSeconds"], probe["failureThreshold"]) == ("/health", 2, tries)
    assert deployment["spec"]["progressDeadlineSeconds"] == seconds + 60


def test_it_is_ready_when_the_model_answers_and_a_busy_one_is_not_killed() -> None:
    container = container_of(teacher()[2])
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert "livenessProbe" not in container
