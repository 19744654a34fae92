"""Where a stage caches what it reads, and how much of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_runtime.api.failures import SettingsError
from kd_runtime.artifacts.cache import DEFAULT_LIMIT_BYTES
from kd_runtime.stages.runner import local_cache


def test_the_cache_is_where_and_as_large_as_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("KD_CACHE_BYTES", raising=False)
    assert (local_cache(None).root, local_cache(None).limit_bytes) == (tmp_path, DEFAULT_LIMIT_BYTES)
    monkeypatch.setenv("KD_CACHE_BYTES", "1024")
    assert (local_cache(tmp_path / "own").root, local_cache(None).limit_bytes) == (tmp_path / "own", 1024)


@pytest.mark.parametrize("said", ["", "0", "-1", "10Gi"])
def test_a_size_that_is_no_number_of_bytes_is_refused_by_name(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_CACHE_BYTES", said)
    with pytest.raises(SettingsError, match="KD_CACHE_BYTES="):
        local_cache(None)
