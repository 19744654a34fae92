"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from s3_server import s3_server  # noqa: F401 - a fixture for all rooms
from tiny import tiny_models_folder

os.environ.pop("COLUMNS", None)  # pytest-xdist's workers have one: commands are tested as where there is no terminal


@pytest.fixture(scope="session")
def tiny_models() -> Path:
    """A folder with ``teacher/`` and ``student/``: Qwen3, 512 tokens. Read only: copy what you change."""
    return tiny_models_folder()
