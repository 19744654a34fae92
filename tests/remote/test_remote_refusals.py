"""What the API server refuses is a sentence with a remedy, and has a class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kd_runtime.api.failures import ExitClass, KDError, SettingsError
from kd_runtime.remote.access import open_access
from kd_runtime.remote.cluster import Cluster, Unanswered, near
from kd_runtime.remote.jobs import find_job

JOB = "/apis/kubedistill.io/v1alpha1/namespaces/default/distillationjobs/math-tutor"


@pytest.mark.parametrize(
    ("code", "body", "class_", "said"),
    [
        (401, {}, 77, "your credentials are not accepted (401); log in anew"),
        (403, {"message": "jobs is forbidden: user ann cannot list"}, 77, "user ann cannot list; ask for that right"),
        (404, {}, 64, "KubeDistill is not installed there; install it with `helm install"),
        (409, {"message": 'conflict with "kubectl" using v1: .spec.suspend'}, 64, "conflict with"),
        (
            422,
            {"details": {"causes": [{"field": "spec.stages", "message": "cannot change"}]}},
            64,
            "spec.stages: cannot change",
        ),
        (503, {"message": "etcdserver: leader changed"}, 75, "leader changed (503); the API server is busy"),
    ],
)
def test_a_refusal_is_a_sentence_and_a_class(
    api: Any, cluster: Cluster, code: int, body: dict[str, Any], class_: int, said: str
) -> None:
    api.answers[JOB] = lambda _: httpx.Response(code, json=body)
    with pytest.raises(KDError) as caught:
        cluster.get(JOB)
    assert said in str(caught.value)
    assert caught.value.exit_class == class_


def test_what_passes_by_itself_is_asked_again(api: Any, cluster: Cluster) -> None:
    answers = [httpx.Response(503, json={}), httpx.Response(429, json={}), httpx.Response(200, json={"kind": "here"})]
    api.answers[JOB] = lambda _: answers.pop(0)
    assert cluster.get(JOB) == {"kind": "here"}


def test_what_is_refused_is_not(api: Any, cluster: Cluster) -> None:
    api.answers[JOB] = lambda _: httpx.Response(403, json={})
    with pytest.raises(KDError):
        cluster.get(JOB)
    assert len(api.requests) == 1


def test_nobody_there_is_said_with_the_address() -> None:
    with httpx.Client(base_url="https://127.0.0.1:1") as client, pytest.raises(Unanswered) as caught:
        Cluster(client, "default", "context here").get("/x")
    assert "https://127.0.0.1:1 (context here): the API server does not answer" in str(caught.value)
    assert caught.value.exit_class is ExitClass.Transient


def test_a_list_is_read_to_its_last_page(api: Any, cluster: Cluster) -> None:
    def page(request: httpx.Request) -> dict[str, Any]:
        token = request.url.params.get("continue")
        return {"items": [token or "first"], "metadata": {"continue": "" if token else "second"}}

    api.answers["/list"] = page
    assert cluster.list("/list") == ["first", "second"]


def test_a_job_that_is_not_there_has_names_like_it(api: Any, cluster: Cluster) -> None:
    api.job({"metadata": {"name": "math-tutor"}})
    with pytest.raises(SettingsError, match=r"no job math-tuter in namespace default; did you mean math-tutor\?"):
        find_job(cluster, "math-tuter")


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("answer", ["dataset", "answers"], "did you mean answers?"),
        ("tutor", ["math-tutor", "chess"], "did you mean math-tutor?"),
        ("zzz", ["dataset", "answers"], "it has dataset, answers"),
        ("zzz", [f"j{n}" for n in range(20)], "it has j0, j1, j2, j3, j4, j5, j6, j7, …"),
        ("zzz", [], "it has none"),
    ],
)
def test_names_like_one(name: str, names: list[str], said: str) -> None:
    assert near(name, names, "it has") == said


def kubeconfig(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "config"
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}},
            {"name": "two", "context": {"cluster": "c", "user": "u"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443"}}],
        "users": [{"name": "u", "user": {"token": "abc"}}],
    }
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_the_context_says_where_and_which_namespace(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path)
    client, namespace, where = open_access(path, None)
    assert (str(client.base_url), namespace, where) == ("https://127.0.0.1:6443", "team-a", "context one")
    assert open_access(path, "two")[1:] == ("default", "context two")


def test_the_user_s_token_is_sent(tmp_path: Path) -> None:
    client, _, _ = open_access(kubeconfig(tmp_path), None)
    request = client.build_request("GET", "/version")
    assert client.auth is not None
    assert next(client.auth.sync_auth_flow(request)).headers["Authorization"] == "Bearer abc"


@pytest.mark.parametrize(
    ("changes", "context", "said"),
    [
        ({}, "three", "--context three: .* has no such context; it has one, two"),
        ({"clusters": []}, None, "Expected object with name c"),
        ({"current-context": ""}, None, "name another with --kubeconfig or --context"),
    ],
)
def test_a_wrong_kubeconfig_is_named(tmp_path: Path, changes: dict[str, Any], context: str | None, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        open_access(kubeconfig(tmp_path, **changes), context)


def test_no_kubeconfig_at_all_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(
        SettingsError, match=r"absent: there is no such kubeconfig.*set KUBECONFIG or give --kubeconfig"
    ):
        open_access(None, None)


def test_without_the_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['kubernetes'] = None\n"
        "from kd_runtime.cli.main import main; sys.argv = ['kd', 'watch', 'job']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "pip install 'kubedistill[cluster]'" in done.stderr
    assert "Traceback" not in done.stderr
