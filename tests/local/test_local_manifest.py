"""Manifests on a machine: relative paths, the runtime beside the job, and the run folder that one `kd run` has at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from manifests import FULL, job

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.lint import lint
from kd_runtime.local.folder import RunFolder
from kd_runtime.local.manifest import absolute_paths, load_job


def write(tmp_path: Path, *documents: object) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def test_relative_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    document = job(FULL, tmp_path, tmp_path / "d.jsonl", ".kd/store/")
    document["spec"]["dataset"]["uri"] = "data/../rows.jsonl"
    document["spec"]["student"]["model"]["uri"] = "file://models/student"
    spec = load_job(write(tmp_path, document)).job.spec
    assert spec.artifacts.uri == f"file://{tmp_path}/.kd/store/"
    assert spec.dataset.uri == f"file://{tmp_path}/rows.jsonl"
    assert spec.student.model.uri == f"file://{tmp_path}/models/student"


@pytest.mark.parametrize("uri", ["s3://bucket/x", "hf://owner/name", "file:///absolute/x/"])
def test_other_uris_stay_as_they_are(uri: str, tmp_path: Path) -> None:
    assert absolute_paths({"uri": uri}, tmp_path) == {"uri": uri}


def test_only_addresses_are_paths(tmp_path: Path) -> None:
    assert absolute_paths({"name": "a", "fields": {"prompt": "p"}}, tmp_path) == {
        "name": "a",
        "fields": {"prompt": "p"},
    }


def test_a_runtime_in_the_same_file_gives_its_defaults(tmp_path: Path) -> None:
    runtime = {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "ClusterDistillationRuntime",
        "metadata": {"name": "mine"},
        "spec": {"defaults": {"stages": {"capture": {"topK": 5}}}},
    }
    document = job(FULL, tmp_path, tmp_path / "d.jsonl", "file:///store/")
    document["spec"]["stages"][1] = {"name": "logits", "capture": {}}
    local = load_job(write(tmp_path, runtime, document))
    assert local.runtime.metadata.name == "mine"
    capture = local.job.spec.stages[1].capture
    assert capture is not None
    assert capture.top_k == 5


def test_a_file_without_a_job_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="0 documents of kind DistillationJob"):
        load_job(write(tmp_path, {"kind": "ConfigMap"}))


@pytest.mark.parametrize("text", ["", "---\n", "kind: ConfigMap", "kind: ClusterDistillationRuntime\n---\n" * 2])
def test_a_runtime_file_without_one_runtime_is_named(tmp_path: Path, text: str) -> None:
    runtime = tmp_path / "runtime.yaml"
    runtime.write_text(text)
    path = write(tmp_path, job(FULL, tmp_path, tmp_path / "d.jsonl", ".kd/store/"))
    said = f"{runtime}: file: holds {text.count('Runtime')} documents of kind ClusterDistillationRuntime; name a file that holds one"
    with pytest.raises(SettingsError) as caught:
        load_job(path, runtime)
    assert str(caught.value) == said
    assert [str(error) for error in lint(path, runtime).errors] == [said]


@pytest.mark.parametrize("spec", [[1], "x", {"runtimeRef": [1]}, {"runtimeRef": "cpu"}])
def test_a_spec_that_is_no_map_is_named(tmp_path: Path, spec: object) -> None:
    document = {**job(FULL, tmp_path, tmp_path / "d.jsonl", ".kd/store/"), "spec": spec}
    with pytest.raises(SettingsError, match=r"spec(\.runtimeRef)?: .*is a (list|string), not a map; write a map"):
        load_job(write(tmp_path, document))


def test_a_runtime_that_is_nowhere_is_named(tmp_path: Path) -> None:
    document = job(FULL, tmp_path, tmp_path / "d.jsonl", ".kd/store/")
    document["spec"]["runtimeRef"] = {"name": "team"}
    with pytest.raises(
        SettingsError, match=r"spec\.runtimeRef\.name: team is neither .*; name its file with --runtime"
    ):
        load_job(write(tmp_path, document))


def test_one_run_at_a_time_has_the_folder(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "run"),
        pytest.raises(SettingsError, match="another `kd run`"),
        RunFolder(tmp_path / "run"),
    ):
        pass
    with RunFolder(tmp_path / "run"):
        pass


def test_a_run_keeps_its_id_until_its_plan_has_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    first = folder.state()
    assert folder.state().run_id == first.run_id
    folder.keep(replace(first, plan="p", ended=True))
    assert folder.state().run_id != first.run_id
