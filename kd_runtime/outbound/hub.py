"""The clients of the Hugging Face hub: redirects to where the files lie are followed, and each hop is checked."""

from __future__ import annotations

from typing import Any

import httpx

from kd_runtime.outbound.addresses import Guard, guard_of
from kd_runtime.outbound.http import guard_client

FIELD = "hf:// ($HF_ENDPOINT and where it leads)"
TIMEOUT_SECONDS = 60.0

_guarded: Guard | None = None
"""What huggingface_hub's own client is held to; it has one for the whole process."""


def hub_client() -> httpx.Client:
    """A client for reading parts of files."""
    return guard_client(httpx.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS), guard_of(FIELD))


def guard_hub() -> None:
    """Hold huggingface_hub's own client to this process's guard.

    Xet transfers are off then: a library of their own opens their connections, to where the hub says.
    """
    global _guarded
    guard = guard_of(FIELD)
    if guard == _guarded:
        return
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def guarded() -> Any:
        client: Any = default_client_factory()  # httpx2's: the same from within
        return guard_client(client, guard)

    set_client_factory(guarded)
    if guard is not None:
        constants.HF_HUB_DISABLE_XET = True
    _guarded = guard
