"""A model's shape is read from its headers alone, and a cut file is found before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import CONFIG, safetensors

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.planning.headers import read_header
from kd_runtime.planning.sources import model_files, open_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors())
    (folder / "notes.txt").write_text("not read")
    return folder


def read(folder: Path):  # type: ignore[no-untyped-def]
    source = open_model(f"file://{folder}")
    return read_header(source, model_files(source.files()))


def test_shape_and_parameters_come_from_the_headers(model: Path) -> None:
    header = read(model)
    assert (header.parameters, header.layers, header.hidden, header.vocabulary, header.tied) == (64, 2, 4, 16, True)
    assert header.weight_bytes == (model / "model.safetensors").stat().st_size


def test_only_what_loading_reads_counts(model: Path) -> None:
    names = [f.path for f in model_files(open_model(f"file://{model}").files())]
    assert names == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("keep", [4, 40, -1])
def test_a_cut_file_is_named(model: Path, keep: int) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"model\.safetensors.*upload it again"):
        read(model)


def test_an_index_that_names_a_missing_file_is_found(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(DataError, match=r"model-2\.safetensors"):
        read(model)


def test_a_folder_without_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match="convert the weights to safetensors"):
        read(model)


def test_weights_under_another_name_are_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "old.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"loaded instead")
    with pytest.raises(SettingsError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        read(model)


def test_a_published_folder_is_read_through_its_pointer(model: Path, tmp_path: Path) -> None:
    (tmp_path / "kd.json").write_text(json.dumps({"path": "model/"}))
    source = open_model(f"file://{tmp_path}")
    assert read_header(source, model_files(source.files())).parameters == 64


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"{", b'{"path": 1}', b'{"path": ""}', b'{"path": "../other"}', b"\xff"]
)
def test_a_pointer_that_names_no_folder_below_is_named(model: Path, tmp_path: Path, body: bytes) -> None:
    (tmp_path / "kd.json").write_bytes(body)
    with pytest.raises(SettingsError, match=r"/kd\.json: names no `path` below its folder, .*; publish again"):
        open_model(f"file://{tmp_path}")
