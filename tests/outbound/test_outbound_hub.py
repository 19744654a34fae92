"""The hub's clients follow redirects to where the files lie; each hop is checked, those of huggingface_hub included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import fake_model
from hub import RecordedHub
from outbound.servers import web

from kd_runtime.api.failures import SettingsError
from kd_runtime.outbound.addresses import VARIABLE
from kd_runtime.outbound.hub import guard_hub
from kd_runtime.planning.sources import HubSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's files."""
    fake_model(tmp_path / "repo", 3)
    return tmp_path / "repo"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub may be asked; afterwards its client is as it was."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    yield
    monkeypatch.delenv(VARIABLE, raising=False)
    guard_hub()


def test_a_hub_within_is_refused_unless_it_is_listed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    with RecordedHub({"owner/name": folder}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv(VARIABLE, "")
        source = HubSource("hf://owner/name", "main")
        for ask in (
            source.files,
            lambda: source.read("config.json"),
            lambda: source.fetch("config.json", tmp_path / "got" / "config.json"),
        ):
            with pytest.raises(SettingsError, match=r"hf:// .*: 127\.0\.0\.1 is at 127\.0\.0\.1, a loopback"):
                ask()
        assert hub.requests == []
        assert constants.HF_HUB_DISABLE_XET
        monkeypatch.setenv(VARIABLE, "127.0.0.0/8")
        source = HubSource("hf://owner/name", "main")
        assert {f.path for f in source.files()} >= {"config.json", "model.safetensors"}
        source.fetch("config.json", tmp_path / "got" / "config.json")
        assert source.read("config.json") == (tmp_path / "got" / "config.json").read_bytes()


def test_where_a_hub_leads_is_checked_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with web() as inner, web(redirect=f"http://127.0.0.2:{inner.port}/file") as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.port}")
        monkeypatch.setenv(VARIABLE, "127.0.0.1/32")
        source = HubSource("hf://owner/name", "main")
        for ask in (source.files, lambda: source.read("config.json")):
            with pytest.raises(SettingsError, match=r"127\.0\.0\.2 is at 127\.0\.0\.2"):
                ask()
        assert inner.hosts == [] and len(hub.hosts) == 2
        hub.redirect = f"http://127.0.0.1:{inner.port}/file"
        assert HubSource("hf://owner/name", "main").read("config.json") == b"ok"
