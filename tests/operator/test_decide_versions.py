"""Jobs that another version of the operator began: nothing of them is ended, in a world of virtual time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kd_operator.specs import Specs
from operator_world import Job, World, runtime_document, training
from statuses import kstatus


def rewrite(job: Job, **spec: Any) -> None:
    """What the runtime in the job's ConfigMap says, as another version wrote it; the operator's is started anew."""
    (config,) = job.children("ConfigMap")
    there = job.world.server.read(*config.split("/"))
    runtime = json.loads(there["data"]["runtime.json"])
    changed = {name: value for name, value in {**runtime["spec"], **spec}.items() if value is not None}
    data = {**there["data"], "runtime.json": json.dumps({**runtime, "spec": changed})}
    job.world.server.change(there, data=data)
    job.world.specs.__dict__.update(Specs().__dict__)
    job.world.operators[0].crash()


@pytest.mark.parametrize("field", [{"somethingNew": 1}, {"reportTo": None}])
def test_a_field_more_or_less_in_the_config_map_ends_nothing(world: World, field: dict[str, Any]) -> None:
    job = training(world)
    gang = [pod.name for pod in job.pods("student")]
    rewrite(job, **field)
    world.wait(600)
    assert (job.end, [pod.name for pod in job.pods("student")]) == (None, gang)
    assert job.condition("Degraded")[0] == "False"
    assert job.condition("Accepted") == ("True", "Accepted", "")
    for pod in job.pods("student"):
        world.nodes.disrupt(pod)
    assert job.finish() == "Succeeded"


def test_a_runtime_that_is_edited_is_still_seen_to_drift(world: World) -> None:
    job = training(world)
    rewrite(job, somethingNew=1)
    spec = runtime_document(env=[{"name": "A", "value": "1"}])["spec"]
    world.server.change(world.runtime, metadata={"generation": 2}, spec=spec)
    world.wait(600)
    assert job.condition("Accepted")[:2] == ("True", "RuntimeDrift")


def test_what_this_version_cannot_read_is_told_and_left_alone_until_one_can(world: World) -> None:
    job = training(world)
    gang, children = [pod.name for pod in job.pods("student")], job.children()
    rewrite(job, imagePullSecrets="in another form")
    world.wait(600)
    status, reason, message = job.condition("Degraded")
    assert (status, reason) == ("True", "OtherVersion")
    assert "upgrade it" in message
    assert "imagePullSecrets" in message
    assert kstatus(job.raw) == "InProgress"
    world.nodes.disrupt(job.pods("student")[0])
    world.wait(600)
    assert (job.end, job.children()) == (None, children)
    assert job.stage("student").attempt == 1
    assert [pod.name for pod in job.pods("student")] != gang  # the Job's own controller goes on
    rewrite(job, imagePullSecrets=[])
    assert job.finish() == "Succeeded"
    assert job.condition("Degraded")[0] == "False"


def test_a_spec_that_this_version_cannot_read_ends_nothing_once_the_job_has_begun(world: World) -> None:
    job = training(world)
    gang = [pod.name for pod in job.pods("student")]
    job.edit(somethingNew=1)
    world.wait(600)
    assert (job.end, [pod.name for pod in job.pods("student")]) == (None, gang)
    assert job.condition("Degraded")[:2] == ("True", "OtherVersion")
    assert "spec.somethingNew" in job.condition("Degraded")[2]
    raw = job.raw
    spec = {name: value for name, value in raw["spec"].items() if name != "somethingNew"}
    world.server.change(raw, metadata={"generation": raw["metadata"]["generation"] + 1}, spec=spec)
    world.wait(600)
    assert (job.stage("student").state, job.condition("Degraded")[0]) == ("Running", "False")
