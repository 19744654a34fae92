"""Live progress: a stage says how far it is; whoever listens shows it. A convenience, never needed for correctness."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import httpx

MIN_INTERVAL_SECONDS = 0.5


@dataclass(frozen=True)
class Progress:
    """One report. ``unit`` says what is counted (rows, steps, bytes); ``tokens_per_second`` and ``loss`` where they exist."""

    stage: str
    index: int
    completed: int
    total: int
    unit: str
    tokens: int = 0
    tokens_per_second: float = 0.0
    loss: float | None = None
    message: str = ""


class Reporter:
    """Posts progress to ``$KD_PROGRESS_URL`` in the background, at most twice a second; silent where it is unset or gone.

    The last report before ``close`` is always sent. Every ``update`` also calls ``heard`` (the stall watch), if given.
    """

    def __init__(self, stage: str, index: int = 0, url: str | None = None, heard: Callable[[], None] | None = None):
        self.stage, self.index = stage, index
        self.url = url if url is not None else os.environ.get("KD_PROGRESS_URL")
        self._heard = heard
        self._latest: Progress | None = None
        self._sent: Progress | None = None
        self._started = time.monotonic()
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        if self.url:
            self._thread = threading.Thread(target=self._post_forever, name="progress", daemon=True)
            self._thread.start()

    def update(
        self, completed: int, total: int, unit: str, *, tokens: int = 0, loss: float | None = None, message: str = ""
    ) -> None:
        """Say how far the stage is. ``tokens`` is the running total of this process; the rate is derived from it."""
        if self._heard:
            self._heard()
        rate = tokens / max(time.monotonic() - self._started, 1e-6)
        self._latest = Progress(self.stage, self.index, completed, total, unit, tokens, rate, loss, message)
        self._wake.set()

    def restart_clock(self) -> None:
        """Tokens are counted from now: called when loading is over and the work begins."""
        self._started = time.monotonic()

    def close(self) -> None:
        """Send what is unsent and stop the thread."""
        self._closed = True
        self._wake.set()
        if self._thread:
            self._thread.join(timeout=2)

    def _post_forever(self) -> None:
        with httpx.Client(timeout=2.0) as client:
            while not self._closed:
                self._wake.wait()
                self._wake.clear()
                self._post(client)
                if not self._closed:
                    time.sleep(MIN_INTERVAL_SECONDS)
            self._post(client)

    def _post(self, client: httpx.Client) -> None:
        latest = self._latest
        if latest is None or latest is self._sent:
            return
        body: dict[str, Any] = asdict(latest)
        token = os.environ.get("KD_PROGRESS_TOKEN")
        with contextlib.suppress(httpx.HTTPError):
            client.post(str(self.url), json=body, headers={"Authorization": f"Bearer {token}"} if token else {})
            self._sent = latest
