"""A world of virtual time for each test that asks for one."""

from __future__ import annotations

import pytest
from operator_world import World


@pytest.fixture
def world() -> World:
    """One with nothing in it yet."""
    return World()
