"""`kd` against a real API server: submit, watch, suspend, resume, retry, explain, completion; status is written by the test."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_server import Server
from statuses import case, failed, job, running, suspended

from kd_runtime.api.reasons import Reason
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.api.status import JobStatus
from kd_runtime.remote.cluster import MERGE

pytestmark = pytest.mark.cluster


class Terminal:
    """`kd` as a person types it, in a namespace of its own, and the operator's hand on status."""

    def __init__(self, server: Server, namespace: str, folder: Path):
        self.server, self.namespace, self.folder = server, namespace, folder

    def kd(self, *arguments: str, code: int = 0, environment: dict[str, str] | None = None) -> str:
        """What the command prints; ``code`` is how it must end."""
        done = self.start(*arguments, environment=environment)
        out, err = done.communicate(timeout=120)
        assert done.returncode == code, (out, err)
        assert "Traceback" not in err, err
        return out + err

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kd_runtime.cli.main", *arguments, "-n", self.namespace],
            env={**self.server.environment, **(environment or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def write(self, name: str, **spec: Any) -> Path:
        """A manifest of `statuses.job` under that name."""
        document = job(None, spec=spec)
        document["metadata"] = {"name": name}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def get(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.server.client.get(self._url(name)).raise_for_status().json()
        return found

    def status(self, name: str, status: JobStatus) -> None:
        """Write a job's status, about its newest generation."""
        document = self.get(name)
        said = status.model_copy(update={"observed_generation": document["metadata"]["generation"]})
        document["status"] = said.model_dump(mode="json", by_alias=True, exclude_none=True)
        self.server.client.put(f"{self._url(name)}/status", json=document).raise_for_status()

    def make(self, document: dict[str, Any]) -> dict[str, Any]:
        """Create an object of this namespace."""
        document["metadata"]["namespace"] = self.namespace
        answer = self.server.create(document, dry_run=False)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def _url(self, name: str) -> str:
        metadata = {"namespace": self.namespace}
        return self.server.url(
            {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "metadata": metadata}, name
        )


@pytest.fixture(scope="module")
def terminal(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    runtime = shipped_runtime("cuda").model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    runtime |= {"apiVersion": "kubedistill.io/v1alpha1", "kind": "ClusterDistillationRuntime"}
    runtime["spec"]["limits"] = {"nodes": 2}
    made = server.create(runtime, dry_run=False)
    assert made.status_code == 201, made.text
    made = server.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-a"}}, dry_run=False)
    assert made.status_code == 201, made.text
    yield Terminal(server, "team-a", tmp_path_factory.mktemp("jobs"))


def submitted(terminal: Terminal, name: str, **spec: Any) -> str:
    """A job of that name on the cluster."""
    terminal.kd("submit", str(terminal.write(name, **spec)))
    return name


def test_submitting_creates_and_again_changes_nothing(terminal: Terminal) -> None:
    path = terminal.write("fresh")
    assert "created fresh in namespace team-a" in terminal.kd("submit", str(path))
    before = terminal.get("fresh")["metadata"]
    assert {field["manager"] for field in before["managedFields"]} == {"kubedistill-cli"}
    assert "unchanged fresh" in terminal.kd("submit", str(path))
    assert terminal.get("fresh")["metadata"]["resourceVersion"] == before["resourceVersion"]


def test_what_may_change_is_changed_and_what_may_not_is_refused_by_field(terminal: Terminal) -> None:
    submitted(terminal, "edited")
    assert "changed edited" in terminal.kd("submit", str(terminal.write("edited", budget={"maxGPUHours": "5"})))
    other = terminal.write("edited", student={"model": {"uri": "s3://models/other/"}})
    said = terminal.kd("submit", str(other), code=64)
    assert "spec.student" in said
    assert "cannot change after creation; create a job under another name" in said


def test_a_manifest_is_linted_against_the_cluster_s_own_runtime(terminal: Terminal) -> None:
    stages = copy.deepcopy(job(None)["spec"]["stages"])
    stages[2]["resources"] = {"nodes": 3, "gpusPerNode": 8}
    said = terminal.kd("submit", str(terminal.write("large", stages=stages)), code=64)
    assert "spec.stages[2].resources.nodes: 3 exceeds 2, the limit of the runtime cuda" in said
    assert terminal.server.kubectl("get", "dj", "large", "-n", "team-a").returncode != 0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"dataset": {"uri": "data.jsonl", "format": "JSONL", "fields": {"prompt": "q"}}}, "spec.dataset.uri: data.jsonl lies on"),
        ({"artifacts": {"uri": "file:///tmp/store/"}}, "spec.artifacts.uri: file:///tmp/store/ lies on this machine"),
        ({"runtimeRef": {"name": "cudo"}}, "cudo is no ClusterDistillationRuntime of the cluster; did you mean cuda?"),
        ({"runtimeRef": None}, "no runtime of the cluster is annotated kubedistill.io/is-default-runtime"),
        ({"studnet": {}}, "studnet"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_not_submitted(terminal: Terminal, spec: dict[str, Any], said: str) -> None:
    assert said in terminal.kd("submit", str(terminal.write("wrong", **spec)), code=64)
    assert terminal.server.kubectl("get", "dj", "wrong", "-n", "team-a").returncode != 0


def test_a_manifest_of_another_namespace_is_not_put_into_this_one(terminal: Terminal) -> None:
    path = terminal.write("elsewhere")
    document = yaml.safe_load(path.read_text())
    document["metadata"]["namespace"] = "team-b"
    path.write_text(yaml.safe_dump(document))
    assert "metadata.namespace: team-b is not team-a" in terminal.kd("submit", str(path), code=64)


def test_fields_of_another_tool_are_taken_over_only_by_force(terminal: Terminal) -> None:
    path = terminal.write("shared", budget={"maxGPUHours": "5"})
    done = terminal.server.kubectl("apply", "--server-side", "-n", "team-a", "-f", str(path))
    assert done.returncode == 0, done.stderr
    more = terminal.write("shared", budget={"maxGPUHours": "9"})
    said = terminal.kd("submit", str(more), code=64)
    assert ".spec.budget.maxGPUHours" in said
    assert "--force-conflicts" in said
    terminal.kd("submit", "--force-conflicts", str(more))
    assert terminal.get("shared")["spec"]["budget"] == {"maxGPUHours": "9"}


def test_watch_follows_what_the_operator_writes_and_ends_with_the_class(terminal: Terminal) -> None:
    submitted(terminal, "watched")
    terminal.status("watched", running())
    watching = terminal.start("watch", "watched")
    assert watching.stdout is not None
    assert "student Running 504/1,200 steps" in watching.stdout.readline()
    terminal.status("watched", failed())
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 72, err
    assert "Raise the memory that the message names." in out


def test_submit_and_watch_in_one(terminal: Terminal) -> None:
    path = terminal.write("both")
    watching = terminal.start("submit", str(path), "--watch")
    assert watching.stdout is not None
    assert "created both" in watching.stdout.readline()
    assert "Pending" in watching.stdout.readline()
    status = case("succeeded").status
    assert status is not None
    terminal.status("both", status)
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    assert "succeeded  s3://models/math-tutor/" in out


def test_a_watched_job_that_is_deleted_ends_the_watch(terminal: Terminal) -> None:
    submitted(terminal, "deleted")
    watching = terminal.start("watch", "deleted")
    assert watching.stdout is not None
    watching.stdout.readline()
    assert terminal.server.kubectl("delete", "dj", "deleted", "-n", "team-a").returncode == 0
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 143
    assert "deleted was deleted" in out


def test_suspend_and_resume_change_one_field(terminal: Terminal) -> None:
    submitted(terminal, "paused")
    generation = terminal.get("paused")["metadata"]["generation"]
    assert "will be suspended" in terminal.kd("suspend", "paused")
    assert terminal.get("paused")["spec"]["suspend"] is True
    terminal.status("paused", suspended())
    assert "suspended already" in terminal.kd("suspend", "paused")
    assert "kubectl kd resume paused" in terminal.kd("explain", "paused")
    assert "goes on" in terminal.kd("resume", "paused")
    found = terminal.get("paused")
    assert found["spec"]["suspend"] is False
    assert found["metadata"]["generation"] == generation + 2


def test_a_manifest_submitted_again_does_not_wake_a_suspended_job(terminal: Terminal) -> None:
    path = terminal.write("asleep")
    terminal.kd("submit", str(path))
    terminal.kd("suspend", "asleep")
    assert "unchanged asleep" in terminal.kd("submit", str(path))
    assert terminal.get("asleep")["spec"]["suspend"] is True


def test_a_patch_for_another_job_of_that_name_is_refused(terminal: Terminal) -> None:
    submitted(terminal, "anew")
    url = terminal._url("anew")
    body = {"spec": {"suspend": True}, "metadata": {"uid": "0a1b2c3d-0000-4000-8000-000000000001"}}
    answer = terminal.server.client.patch(url, content=json.dumps(body), headers={"Content-Type": MERGE})
    assert answer.status_code in (409, 422), answer.text


def test_retry_annotates_a_failed_stage(terminal: Terminal) -> None:
    submitted(terminal, "again")
    assert "so there is nothing to retry" in terminal.kd("retry", "again", "student", code=64)
    terminal.status("again", failed(Reason.StorageUnavailable, "s3://team-a/kd/: no answer", "Storage"))
    generation = terminal.get("again")["metadata"]["generation"]
    assert "student will be tried once more" in terminal.kd("retry", "again", "student")
    metadata = terminal.get("again")["metadata"]
    assert metadata["annotations"]["kubedistill.io/retry"].startswith("student/")
    assert metadata["generation"] == generation


def test_explain_reads_status_pods_and_events(terminal: Terminal) -> None:
    submitted(terminal, "stuck")
    assert "the operator has not looked at the job yet" in terminal.kd("explain", "stuck")
    status = case("first_write").status
    assert status is not None
    terminal.status("stuck", status)
    uid = terminal.get("stuck")["metadata"]["uid"]
    labels = {
        f"kubedistill.io/{k}": v for k, v in {"job": "stuck", "job-uid": uid, "stage": "plan", "attempt": "1"}.items()
    }
    name = f"stuck-plan-{uid[:5]}-1"
    terminal.make(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{name}-abcde", "labels": labels},
            "spec": {
                "containers": [{"name": "plan", "image": "registry.example/none:1"}],
                "automountServiceAccountToken": False,
            },
        }
    )
    waiting = {"reason": "ImagePullBackOff", "message": "registry.example/none:1: not found"}
    container = {
        "name": "plan", "ready": False, "restartCount": 0, "image": "registry.example/none:1", "imageID": "",
        "state": {"waiting": waiting},
    }  # fmt: skip
    body = json.dumps(
        {"status": {"phase": "Pending", "containerStatuses": [container]}}
    )  # no resourceVersion: the scheduler writes too
    terminal.server.client.patch(
        f"/api/v1/namespaces/team-a/pods/{name}-abcde/status", content=body, headers={"Content-Type": MERGE}
    ).raise_for_status()
    said = 'pods "x" is forbidden: exceeded quota: gpus'
    terminal.make(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "stuck.1"},
            "involvedObject": {"kind": "Job", "name": name, "namespace": "team-a"},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": said,
            "lastTimestamp": "2026-01-05T10:00:00Z",
        }
    )
    told = " ".join(terminal.kd("explain", "stuck").split())
    assert f"pod {name}-abcde, container plan: ImagePullBackOff: registry.example/none:1: not found" in told
    assert "Correct the runtime's images or imagePullSecrets" in told
    assert said in told


def test_logs_say_what_is_missing(terminal: Terminal) -> None:
    submitted(terminal, "silent")
    assert "plan: no pod is there yet" in terminal.kd("logs", "silent", code=64)
    assert "did you mean answers?" in terminal.kd("logs", "silent", "answer", code=64)


def test_a_job_that_is_not_there_has_names_like_it(terminal: Terminal) -> None:
    submitted(terminal, "chess-coach")
    assert "did you mean chess-coach?" in terminal.kd("watch", "chess-couch", code=64)


def test_what_a_user_may_not_do_is_said(terminal: Terminal, tmp_path: Path) -> None:
    submitted(terminal, "guarded")
    path = stranger(terminal.server, tmp_path)
    said = terminal.kd("suspend", "guarded", code=77, environment={"KUBECONFIG": str(path)})
    assert 'cannot get resource "distillationjobs"' in said
    assert "ask for that right" in said


def stranger(server: Server, folder: Path) -> Path:
    """A kubeconfig of a ServiceAccount without any rights."""
    config = yaml.safe_load(Path(server.environment["KUBECONFIG"]).read_text())
    url = "/api/v1/namespaces/team-a/serviceaccounts/default/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = server.client.post(url, json=body).raise_for_status().json()
    config["users"][0]["user"] = {"token": answer["status"]["token"]}
    path = folder / "stranger"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_wrong_token_is_said(terminal: Terminal, tmp_path: Path) -> None:
    config = yaml.safe_load(Path(terminal.server.environment["KUBECONFIG"]).read_text())
    config["users"][0]["user"] = {"token": "wrong"}
    path = tmp_path / "wrong"
    path.write_text(yaml.safe_dump(config))
    assert "your credentials are not accepted (401)" in terminal.kd(
        "watch", code=77, environment={"KUBECONFIG": str(path)}
    )


def test_tab_offers_jobs_and_stages_of_the_cluster(terminal: Terminal) -> None:
    submitted(terminal, "tabbed")
    terminal.status("tabbed", running())

    def offered(*words: str) -> list[str]:
        # kubectl hands the words on as they are; the last is the one that is being typed
        done = subprocess.run(
            [sys.executable, "-m", "kd_runtime.cli.main", "__complete", "--", *words],
            env=terminal.server.environment, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.splitlines()

    assert offered("watch", "-n", "team-a", "tab") == ["tabbed\tRunning", ":4"]
    assert offered("retry", "-n", "team-a", "tabbed", "st") == ["student\tRunning", ":4"]
    assert "plan\tSucceeded" in offered("logs", "-n", "team-a", "tabbed", "")
    assert offered("sub")[0].startswith("submit\t")
    assert offered("submit", "") == [":0"]


def test_kubectl_runs_it_as_a_plugin(terminal: Terminal, tmp_path: Path) -> None:
    submitted(terminal, "plugged")
    plugin = tmp_path / "kubectl-kd"
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} -m kd_runtime.cli.main "$@"\n')
    plugin.chmod(0o755)
    completer = tmp_path / "kubectl_complete-kd"
    completer.write_text('#!/bin/sh\nexec kubectl-kd __complete -- "$@"\n')
    completer.chmod(0o755)
    environment = {**terminal.server.environment, "PATH": f"{tmp_path}:{terminal.server.environment['PATH']}"}

    def kubectl(*arguments: str) -> str:
        return subprocess.run(
            ["kubectl", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    assert "plugged will be suspended" in kubectl("kd", "suspend", "plugged", "-n", "team-a")
    assert "plugged\tPending" in kubectl("__complete", "kd", "watch", "-n", "team-a", "plug")


def test_a_cluster_without_the_crds_says_that_kubedistill_is_not_installed(terminal: Terminal, tmp_path: Path) -> None:
    """A server that answers 404 to everything is what such a cluster is to this command."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Bare(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404, "page not found")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Bare) as bare:
        threading.Thread(target=bare.serve_forever, daemon=True).start()
        config = yaml.safe_load(Path(terminal.server.environment["KUBECONFIG"]).read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{bare.server_address[1]}"}
        path = tmp_path / "bare"
        path.write_text(yaml.safe_dump(config))
        said = terminal.kd("watch", code=64, environment={"KUBECONFIG": str(path)})
        bare.shutdown()
    assert "helm install kubedistill charts/kubedistill" in said
