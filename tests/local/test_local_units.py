"""`kd run` against a real teacher behind a counting proxy: what was answered once is not asked again, whoever asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from artifacts.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from manifests import job, tiny_train

from kd_runtime.artifacts.lineage import list_artifacts
from kd_runtime.artifacts.manifest import manifest_name
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.teachers import wire

pytestmark = pytest.mark.runtime
KD = [sys.executable, "-m", "kd_runtime.cli.main"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass
class Counted:
    """What a teacher was asked since it was last ``taken``; chats that hold ``unwanted`` are refused."""

    chats: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(question, seed) -> how often."""
    rows: Counter[str] = field(default_factory=Counter)
    """Row key -> how often it was asked to be scored."""
    unwanted: str = "\0"
    url: str = ""

    def __call__(self, method: str, path: str, body: bytes) -> Fault | None:
        if path.endswith("/chat/completions"):
            asked = json.loads(body)
            question = asked["messages"][-1]["content"]
            self.chats[question, asked["seed"]] += 1
            return Fault.Unwanted if self.unwanted in question else None
        if method == "POST" and path.endswith(wire.PATH):
            self.rows.update(row.key.hex() for row in wire.decode_request(body).rows)
        return None

    def taken(self) -> Counted:
        """What was asked since; counting begins anew."""
        before = Counted(self.chats, self.rows)
        self.chats, self.rows = Counter(), Counter()
        return before

    @property
    def questions(self) -> Counter[str]:
        """How often each question was asked, whatever the seed."""
        return Counter(question for question, _ in self.chats.elements())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[FaultyProxy]:
    """A proxy before a teacher that somebody else runs."""
    folder = tmp_path_factory.mktemp("teacher")
    ready, model = folder / "ready.json", str(tiny_models / "teacher")
    command = [*KD, "teacher", "serve", "--model", model, "--engine", "Transformers", "--port", "0"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*command, "--ready-file", str(ready)], env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        while not ready.exists():
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.1)
        with faulty_proxy(json.loads(ready.read_text())["url"]) as proxy:
            yield proxy
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def counted(teacher: FaultyProxy) -> Counted:
    teacher.judge = counted = Counted(url=teacher.url)
    return counted


@dataclass
class Job:
    """A job of questions, its store, and its run folder."""

    folder: Path
    store_folder: Path
    models: Path
    data: Path
    url: str

    def write(self, rows: int, samples: int, train: bool = False) -> Path:
        self.data.write_text("".join(json.dumps({"instruction": f"Say {n}."}) + "\n" for n in range(rows)))
        body = {"samplesPerPrompt": samples, "keepTruncated": True, "sampling": {"temperature": 1.0, "maxTokens": 8}}
        stages: list[dict[str, Any]] = [
            {"name": "answers", "generate": body},
            {"name": "logits", "capture": {"topK": 4}},
            *([{"name": "student", "train": tiny_train()}] if train else []),
        ]
        external = {"protocol": "KD", "baseURL": f"{self.url}/v1", "model": "teacher"}
        document = job(stages, self.models, self.data, f"file://{self.store_folder}/", teacher={"external": external})
        document["spec"]["dataset"]["maxRejectedRatio"] = 0.5
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    @property
    def store(self) -> Store:
        return open_store(f"file://{self.store_folder}/")


def kd(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [*KD, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, timeout=400, check=False
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def tiny_job(tmp_path: Path, tiny_models: Path, counted: Counted) -> Job:
    return Job(tmp_path / "here", tmp_path / "store", tiny_models, tmp_path / "data.jsonl", counted.url)


def test_more_rows_more_samples_and_a_retry_ask_the_new_pairs_alone(tiny_job: Job, counted: Counted) -> None:
    counted.unwanted = "Say 5."
    kd("run", tiny_job.write(rows=6, samples=4))
    first = counted.taken()
    assert first.questions == Counter({f"Say {n}.": 4 for n in range(6)})
    assert set(first.chats.values()) == set(first.rows.values()) == {1}

    kd("run", tiny_job.write(rows=16, samples=4))
    grown = counted.taken()
    assert grown.questions == Counter({f"Say {n}.": 4 for n in range(6, 16)})
    assert set(grown.chats.values()) == {1} and not set(grown.rows) & set(first.rows)

    manifest = tiny_job.write(rows=16, samples=8)
    kd("run", manifest)
    doubled = counted.taken()
    assert doubled.questions == Counter({f"Say {n}.": 4 for n in range(16)})
    assert not set(doubled.chats) & (set(first.chats) | set(grown.chats))
    assert not set(doubled.rows) & (set(first.rows) | set(grown.rows))

    counted.unwanted = "\0"
    assert "8 rejected rows" in kd("rejects", "list", manifest, "--stage", "answers")
    kd("rejects", "retry", manifest, "--stage", "answers")
    kd("run", manifest)
    retried = counted.taken()
    assert retried.questions == Counter({"Say 5.": 8})
    assert not set(retried.rows) & (set(first.rows) | set(grown.rows) | set(doubled.rows))
    assert "0 rejected rows" in kd("rejects", "list", manifest)


def test_two_runs_of_one_plan_at_once_end_with_one_artifact_each_and_a_copy_is_found(
    tiny_job: Job, counted: Counted, tmp_path: Path
) -> None:
    manifest = tiny_job.write(rows=12, samples=1, train=True)
    there = tmp_path / "there"
    there.mkdir()
    (there / "job.yaml").write_text(manifest.read_text())
    runs = [
        subprocess.Popen([*KD, "run", str(path)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for path in (manifest, there / "job.yaml")
    ]
    said = [run.communicate(timeout=400)[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    artifacts = {m.stage_type: m for m in list_artifacts(tiny_job.store)}
    assert sorted(artifacts) == ["capture", "generate", "ingest", "train"]
    assert len(list_artifacts(tiny_job.store)) == 4 and not list(tiny_job.store.list("history/"))
    assert max(counted.chats.values()) <= 2 and max(counted.rows.values()) <= 2
    for artifact in artifacts.values():  # who came second left nothing behind
        names = {i.name for i in tiny_job.store.list(f"artifacts/{artifact.key}/")}
        own = {ref.name for ref in artifact.objects if ref.name.startswith("artifacts/")}
        assert names == own | {manifest_name(artifact.key)}
    asked = counted.taken()
    assert len(asked.chats) == 12

    copy = Job(tmp_path / "copied", tmp_path / "copy", tiny_job.models, tiny_job.data, tiny_job.url)
    kd("copy", artifacts["train"].key[:16], "--store", tiny_job.store.uri, "--to", copy.store.uri)
    found = kd("run", copy.write(rows=12, samples=1, train=True))
    assert " done " not in found and found.count("found") >= 4
    assert not counted.chats and not counted.rows
    assert copy.store.get(manifest_name(artifacts["train"].key)) == tiny_job.store.get(
        manifest_name(artifacts["train"].key)
    )
