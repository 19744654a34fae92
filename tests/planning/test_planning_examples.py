"""`kd plan` of every manifest in examples/, those with hf:// and s3:// against a recorded hub and a store of this machine."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from fakes import fake_model
from hub import RecordedHub
from moto.server import ThreadedMotoServer
from rich.console import Console

from kd_runtime.api.classes import keyed
from kd_runtime.api.failures import DeniedError, SettingsError, TeacherError
from kd_runtime.api.parse import load_documents, parse_job
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.local.run import Planned, show_plan
from kd_runtime.planning.lookup import Lookup

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICKSTARTS = ("quickstart", "quickstart-cluster")
BUCKETS = ("data", "team-a", "models", "kubedistill")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/ as after `make demo`'s import, with models of a few hundred bytes."""
    root = tmp_path_factory.mktemp("examples")
    shutil.copytree(EXAMPLES, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".models", ".kd"))
    fake_model(root / ".models" / "smollm2-135m-instruct", num_hidden_layers=30)
    return root


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A hub with two repositories and an S3 server with four buckets: the environment that reaches them."""
    root = tmp_path_factory.mktemp("hub")
    fake_model(root / "teacher", 1)
    fake_model(root / "student", 2)
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    for bucket in BUCKETS:
        client.create_bucket(Bucket=bucket)
    client.put_object(Bucket="data", Key="questions.jsonl", Body=b'{"question": "1+1?", "answer": "2"}\n' * 50)
    for file in sorted(fake_model(root / "smollm2", num_hidden_layers=30).iterdir()):
        client.upload_file(str(file), "kubedistill", f"models/smollm2-135m-instruct/{file.name}")
    client.upload_file(str(EXAMPLES / "data/instructions.jsonl"), "kubedistill", "data/instructions.jsonl")
    with RecordedHub(
        {"Qwen/Qwen2.5-72B-Instruct": root / "teacher", "Qwen/Qwen2.5-0.5B-Instruct": root / "student"}
    ) as hub:
        yield {
            "HF_ENDPOINT": hub.url, "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1",
        }  # fmt: skip
    server.stop()


@pytest.fixture
def environment(services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in services.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("KD_SECRET_TEACHER_APIKEY", "right")


class OpenAIServer:
    """Answers /v1/models to who has the key; and the score route with ``says``, where it has one."""

    def __init__(self, says: bytes | None = None) -> None:
        self.says = says

    def __enter__(self) -> str:
        says = self.says

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = self.headers.get("Authorization") == "Bearer right"
                body = b'{"data": [{"id": "teacher"}]}' if self.path == "/v1/models" else says
                self.send_response(401 if not allowed else 404 if body is None else 200)
                self.end_headers()
                self.wfile.write(body if allowed and body is not None else b"{}")

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def planned(path: Path) -> tuple[Planned, str]:
    console = Console(record=True, width=160, file=io.StringIO())
    return show_plan(path, None, console), console.export_text()


def test_every_example_is_known_to_this_test() -> None:
    names = {path.name for path in EXAMPLES.glob("*.yaml")}
    assert names == {
        "quickstart.yaml",
        "quickstart-cluster.yaml",
        "sft-given-answers.yaml",
        "kd-given-answers.yaml",
        "external-teacher.yaml",
        "qwen-72b.yaml",
    }


@pytest.mark.parametrize("name", ["quickstart", "sft-given-answers", "kd-given-answers", "qwen-72b"])
def test_an_example_is_planned_and_nothing_is_made(name: str, place: Path, environment: None) -> None:
    found, text = planned(place / f"{name}.yaml")
    assert {state.state for state in found.states.values()} == {Lookup.ToDo}
    for stage in found.plan.stages:
        assert stage.key[:12] in text
    assert found.estimates["student"].tokens > 0


def test_the_clusters_quickstart_is_planned_against_its_own_endpoint(
    place: Path, environment: None, services: dict[str, str]
) -> None:
    path = place / "quickstart-here.yaml"
    text = (place / "quickstart-cluster.yaml").read_text()
    path.write_text(text.replace("http://s3.storage.svc:9000", services["AWS_ENDPOINT_URL"]))
    found, _ = planned(path)
    assert [stage.name for stage in found.plan.stages] == [
        "dataset", "small", "answers", "logits", "student", "exam", "release",
    ]  # fmt: skip
    assert {state.state for state in found.states.values()} == {Lookup.ToDo}


def test_the_two_quickstarts_differ_in_nothing_that_is_keyed_but_where_their_files_lie(place: Path) -> None:
    """So that what the one made, the other finds."""
    here, there = (parse_job(load_documents(place / f"{name}.yaml")[0], shipped_runtime("cpu")) for name in QUICKSTARTS)
    assert keyed(here.spec) == keyed(there.spec)


def test_an_external_teacher_is_probed(place: Path, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer() as url:
        path = place / "external-here.yaml"
        path.write_text((place / "external-teacher.yaml").read_text().replace("http://127.0.0.1:8000/v1", url))
        found, _ = planned(path)
        assert found.plan.stage("answers").teacher == "teacher"
        path.write_text(path.read_text().replace("model: teacher", "model: another"))
        with pytest.raises(SettingsError, match=r"'another' is not served.*teacher"):
            planned(path)
        monkeypatch.setenv("KD_SECRET_TEACHER_APIKEY", "wrong")
        with pytest.raises(DeniedError, match="apiKeySecretRef"):
            planned(path)
    monkeypatch.setenv("KD_SECRET_TEACHER_APIKEY", "right")
    with pytest.raises(TeacherError, match="does not answer"):
        planned(path)


def test_a_secret_that_is_not_exported_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KD_SECRET_TEACHER_APIKEY", raising=False)
    with pytest.raises(SettingsError, match="KD_SECRET_TEACHER_APIKEY is not set"):
        planned(place / "external-teacher.yaml")


def test_more_layers_than_there_are_cannot_be_kept(place: Path) -> None:
    path = place / "too-many.yaml"
    path.write_text((place / "sft-given-answers.yaml").read_text().replace("keepLayers: 24", "keepLayers: 31"))
    with pytest.raises(SettingsError, match="31 exceeds the 30 layers"):
        planned(path)


def test_a_foreign_tokenizer_is_refused_before_any_teacher_starts(place: Path) -> None:
    other = fake_model(place / ".models" / "foreign")
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text().replace('"ab": 2', '"ba": 2'))
    path = place / "foreign.yaml"
    text = (place / "kd-given-answers.yaml").read_text()
    path.write_text(text.replace("model: {uri: .models/smollm2-135m-instruct}", "model: {uri: .models/foreign}", 1))
    with pytest.raises(SettingsError, match="another tokenizer"):
        planned(path)
