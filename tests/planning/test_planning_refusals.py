"""`kd plan` of what cannot end well: its class, one sentence with field, value and remedy, and nothing started (contract 9)."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from artifacts.faulty_proxy import Fault, faulty_proxy
from fakes import fake_model
from faulty_teacher import free_port
from manifests import FULL, job
from outbound.servers import web
from planning.test_planning_examples import OpenAIServer, planned
from s3_server import S3Server

from kd_runtime.artifacts.store import open_store
from kd_runtime.planning.digests import DigestMemory
from kd_runtime.planning.sources import open_model
from kd_runtime.planning.tokenizers import tokenizer_digest


class Place:
    """A job in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        fake_model(folder / "teacher", 1)
        fake_model(folder / "student", 2)
        (folder / "data.jsonl").write_text('{"instruction": "a"}\n{"instruction": "b"}\n')
        self.store = f"file://{folder}/store/"

    def refused(self, code: int, change: Callable[[dict[str, Any]], None] = lambda spec: None, **env: str) -> str:
        """What `kd plan` says of the job: one sentence, and the store holds no plan, no artifact and no answer."""
        document = job(FULL, self.folder, self.folder / "data.jsonl", self.store)
        change(document["spec"])
        (self.folder / "job.yaml").write_text(yaml.safe_dump(document))
        done = subprocess.run(
            [sys.executable, "-m", "kd_runtime.cli.main", "plan", str(self.folder / "job.yaml")],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "2000", **env},
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert not list(self.folder.glob("store/plans/*")) and not list(self.folder.glob("store/a*/*"))
        assert not (self.folder / ".kd").exists(), "no run folder, so no teacher's log"
        assert re.match(r"[A-Z]\w+: \S", done.stderr) and done.stderr.count("\n") == 1, done.stderr
        return done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def external(url: str, **more: Any) -> Callable[[dict[str, Any]], None]:
    """The teacher is a server of somebody else's."""

    def change(spec: dict[str, Any]) -> None:
        spec["teacher"] = {"external": {"protocol": "KD", "baseURL": url, "model": "teacher", **more}}

    return change


def test_a_wrong_api_key_is_77(place: Place) -> None:
    with OpenAIServer() as url:
        change = external(url, apiKeySecretRef={"name": "other", "key": "key"})
        said = place.refused(77, change, KD_SECRET_OTHER_KEY="wrong")
    assert "spec.teacher.external.apiKeySecretRef: the key of Secret other/key is refused by" in said
    assert "(401); put a valid key there" in said and "wrong" not in said


KEY = {"apiKeySecretRef": {"name": "other", "key": "key"}}


def test_the_foreign_tokenizer_of_an_external_teacher_is_64(place: Place) -> None:
    with OpenAIServer(says=json.dumps({"tokenizer": "f" * 64}).encode()) as url:
        said = place.refused(64, external(url, **KEY), KD_SECRET_OTHER_KEY="right")
    own = tokenizer_digest(place.folder / "student")[:12]
    assert f"stage logits: the teacher {url} has another tokenizer (ffffffffffff) than the student file://" in said
    assert f"({own})" in said and "use a teacher of the student's family, or train by SFT" in said


@pytest.mark.parametrize("says", [None, b"ok", b"{}"])
def test_an_external_teacher_that_does_not_say_its_tokenizer_is_64(place: Place, says: bytes | None) -> None:
    with OpenAIServer(says=says) as url:
        said = place.refused(64, external(url, **KEY), KD_SECRET_OTHER_KEY="right")
    code = 404 if says is None else 200
    root = url.removesuffix("/v1")
    assert f"spec.teacher.external.protocol: {root}/kd/v1/score ({code}) does not say which tokenizer" in said
    assert "serve it with this version's `kd teacher serve`" in said


def test_an_external_teacher_of_the_students_tokenizer_passes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    document = job(FULL, place.folder, place.folder / "data.jsonl", place.store)
    monkeypatch.setenv("KD_SECRET_OTHER_KEY", "right")
    says = json.dumps({"tokenizer": tokenizer_digest(place.folder / "student")}).encode()
    with OpenAIServer(says=says) as url:
        external(url, **KEY)(document["spec"])
        (place.folder / "job.yaml").write_text(yaml.safe_dump(document))
        assert planned(place.folder / "job.yaml")[0].plan.stage("logits").teacher


def test_an_unreachable_endpoint_is_69(place: Place) -> None:
    said = place.refused(69, external(f"http://127.0.0.1:{free_port()}/v1"))
    assert re.search(
        r"spec\.teacher\.external\.baseURL: http://\S+/v1 does not answer \(ConnectError\); check the address", said
    )


def test_an_endpoint_at_a_private_address_that_the_runtime_does_not_list_is_64(place: Place) -> None:
    with OpenAIServer() as url:
        change = external(url, apiKeySecretRef={"name": "other", "key": "key"})
        said = place.refused(64, change, KD_SECRET_OTHER_KEY="wrong", KD_PRIVATE_CIDRS="10.0.0.0/8")
        assert "spec.teacher.external.baseURL: 127.0.0.1 is at 127.0.0.1, a loopback address that" in said
        assert "spec.network.privateCIDRs does not hold; add a CIDR" in said
        place.refused(77, change, KD_SECRET_OTHER_KEY="wrong", KD_PRIVATE_CIDRS="10.0.0.0/8,127.0.0.0/8")


def test_an_endpoint_that_redirects_is_64_and_is_not_followed(place: Place) -> None:
    with web() as elsewhere, web(redirect=f"http://127.0.0.1:{elsewhere.port}/v1/models") as server:
        said = place.refused(64, external(f"http://127.0.0.1:{server.port}/v1"))
        assert f"redirects to http://127.0.0.1:{elsewhere.port}/v1/models, which is not followed" in said
        assert elsewhere.hosts == []


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_a_cut_safetensors_file_is_65(place: Place, model: str) -> None:
    weights = place.folder / model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    size = weights.stat().st_size
    said = place.refused(65)
    assert f"{model}/model.safetensors: has {size} bytes where its header promises {size + 1}" in said
    assert "it is cut off, upload it again" in said


def test_a_foreign_tokenizer_is_64(place: Place) -> None:
    tokenizer = place.folder / "teacher" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"ab": 2', '"ba": 2'))
    said = place.refused(64)
    assert re.search(r"the teacher file://\S+ has another tokenizer \(\w+\) than the student file://\S+ \(\w+\)", said)
    assert "use a teacher of the student's family, or train by SFT" in said


def test_a_bucket_that_may_only_be_read_is_77(place: Place, s3_server: S3Server) -> None:
    with faulty_proxy(s3_server.url) as proxy:
        proxy.judge = lambda method, path, body: Fault.Denied if method in ("PUT", "POST", "DELETE") else None
        artifacts = {"uri": f"s3://{s3_server.bucket}/readonly/", "endpoint": proxy.url, "region": "us-east-1"}
        said = place.refused(77, lambda spec: spec.update(artifacts=artifacts), **s3_server.environment())
    assert f"access to bucket {s3_server.bucket} is denied" in said and "check the credentials" in said


@pytest.mark.parametrize(
    ("model", "stage", "remedy"),
    [("student", "student", "a smaller microBatchSize or maxLength"), ("teacher", "answers", "a smaller model")],
)
def test_a_model_ten_times_too_large_for_the_machine_is_64(place: Place, model: str, stage: str, remedy: str) -> None:
    huge = place.folder / model
    rows = 10 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (4 * 1024)
    header = {"w": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}}
    text = json.dumps(header).encode()
    with (huge / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + rows * 4096)  # all holes: it takes no room
    remember(place, huge)
    said = place.refused(64)
    assert re.search(
        rf"stage {stage}: needs about [\d,.]+ GiB of memory for file://\S+/{model} and can have [\d.]+ GiB", said
    )
    assert remedy in said


def remember(place: Place, model: Path) -> None:
    """As if the store had seen the model before: nobody reads terabytes of zeros for this test."""
    store, source = open_store(place.store), open_model(f"file://{model}")
    file = next(each for each in source.files() if each.path == "model.safetensors")
    store.put(DigestMemory(store)._name(source, file), json.dumps({"sha256": "0" * 64}).encode())


def test_an_evaluation_without_rows_held_out_is_64(place: Place) -> None:
    said = place.refused(64, lambda spec: spec["dataset"].update(holdout={"fraction": 0}))
    assert "spec.dataset.holdout.fraction: 0 leaves no rows for exam; hold some out, or remove the stage" in said
