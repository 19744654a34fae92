"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from s3_server import s3_server  # noqa: F401 - a fixture for all rooms
from tiny import tiny_models_folder

os.environ.pop("COLUMNS", None)  # pytest-xdist's workers have one: commands are tested as where there is no terminal

LONG = ("tests/local/", "tests/training/", "tests/operator/")
"""Rooms whose files take longest: first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which workers are given files."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session")
def tiny_models() -> Path:
    """A folder with ``teacher/`` and ``student/``: Qwen3, 512 tokens. Read only: copy what you change."""
    return tiny_models_folder()
