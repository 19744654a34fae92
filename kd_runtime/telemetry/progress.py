"""Live progress: a stage says how far it is; whoever listens shows it. A convenience, never needed for correctness."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

INTERVAL_SECONDS = 0.5
"""Between two posts to a listener on this machine."""
CLUSTER_INTERVAL_SECONDS = 10.0
"""Between two posts to the operator, which hears a thousand jobs."""
LONGEST_PAUSE_SECONDS = 120.0
"""After failures, or where the operator asks for more."""
TIMEOUT_SECONDS = 2.0
RATED_SECONDS = 1.0
"""What a rate is taken over at least: tokens that come at one moment have none."""
MESSAGE_CHARACTERS = 256
"""Of a message as it is posted: the operator takes 4 KiB in all."""


@dataclass(frozen=True)
class Progress:
    """One report. ``unit`` says what is counted (rows, steps, bytes); ``tokens_per_second`` and ``loss`` where they exist,
    ``checkpoint`` where in the store the newest one lies."""

    stage: str
    index: int
    completed: int
    total: int
    unit: str
    tokens: int = 0
    tokens_per_second: float = 0.0
    loss: float | None = None
    message: str = ""
    checkpoint: str = ""


class Reporter:
    """Posts progress to ``$KD_PROGRESS_URL`` in the background; silent where it is unset or gone.

    With ``$KD_PROGRESS_TOKEN_FILE`` set (on a cluster) at most once in 10 s, else twice a second; after failures, or where
    the listener says so (Retry-After), less often. The last report before ``close`` is sent at once, unless the listener
    asked to be left alone until later. Every ``update`` also calls ``heard`` (the stall watch), if given.
    """

    def __init__(self, stage: str, index: int = 0, url: str | None = None, heard: Callable[[], None] | None = None):
        self.stage, self.index = stage, index
        self.url = url if url is not None else os.environ.get("KD_PROGRESS_URL")
        self._heard = heard
        self._token_file = os.environ.get("KD_PROGRESS_TOKEN_FILE")
        self._interval = CLUSTER_INTERVAL_SECONDS if self._token_file else INTERVAL_SECONDS
        self._latest: Progress | None = None
        self._sent: Progress | None = None
        self._failures = 0
        self._pause = self._interval
        self._not_before = 0.0
        self._first: tuple[float, int] | None = None
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if self.url:
            self._thread = threading.Thread(target=self._post_forever, name="progress", daemon=True)
            self._thread.start()

    def update(
        self,
        completed: int,
        total: int,
        unit: str,
        *,
        tokens: int = 0,
        loss: float | None = None,
        message: str = "",
        checkpoint: str = "",
    ) -> None:
        """Say how far the stage is. ``tokens`` is the running total of this process; the rate is derived from it."""
        if self._heard:
            self._heard()
        rate = self._rate(tokens)
        if loss is not None and not math.isfinite(loss):
            loss = None  # JSON has no NaN
        self._latest = Progress(self.stage, self.index, completed, total, unit, tokens, rate, loss, message, checkpoint)
        self._wake.set()

    def _rate(self, tokens: int) -> float:
        """Tokens a second since the first were told of: what came before, loading and compiling, says nothing of the rest."""
        now = time.monotonic()
        if self._first is None and tokens:
            self._first = now, tokens
        if self._first is None or not tokens:  # none are made any more: rows are put together, or a summary
            return 0.0
        began, had = self._first
        return (tokens - had) / (now - began) if now - began >= RATED_SECONDS else 0.0

    def close(self) -> None:
        """Send what is unsent and stop the thread. A listener that did not answer the last time is not waited for."""
        self._closed.set()
        self._wake.set()
        if self._thread and not self._failures:
            self._thread.join(timeout=TIMEOUT_SECONDS)

    def _post_forever(self) -> None:
        # No proxy of the environment: the listener is on this machine or in this cluster, and the token is for it alone.
        with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            while not self._closed.is_set():
                self._wake.wait()
                self._wake.clear()
                self._post(client)
                self._closed.wait(self._pause)
            self._post(client)

    def _post(self, client: httpx.Client) -> None:
        latest = self._latest
        if latest is None or latest is self._sent or time.monotonic() < self._not_before:
            return
        try:
            answer = client.post(str(self.url), json=_body(latest), headers=self._headers())
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            self._failed(0.0)
            return
        if answer.is_success:
            self._sent, self._failures, self._pause = latest, 0, self._interval
        else:
            self._failed(_retry_after(answer))

    def _headers(self) -> dict[str, str]:
        """The token as it is now: kubelet replaces the file's content while the pod runs."""
        if self._token_file:
            # Closed after each post: for one in 10 s the operator should keep no connection.
            token = Path(self._token_file).read_text().strip()
            return {"Authorization": f"Bearer {token}", "Connection": "close"}
        known = os.environ.get("KD_PROGRESS_TOKEN")
        return {"Authorization": f"Bearer {known}"} if known else {}

    def _failed(self, asked: float) -> None:
        """Come back with the newest report then: after what the listener asks for, or ever more seldom."""
        self._failures += 1
        self._pause = pause_seconds(self._interval, self._failures, asked)
        if asked:
            self._not_before = time.monotonic() + self._pause
        self._wake.set()


def pause_seconds(interval: float, failures: int, asked: float) -> float:
    """How long to leave a listener alone that failed so often in a row and asks for so many seconds (0: for none)."""
    pause = max(asked, interval) if asked else interval * 2 ** min(failures, 16)
    return min(pause, LONGEST_PAUSE_SECONDS)


def _body(report: Progress) -> dict[str, object]:
    return {**asdict(report), "message": report.message[:MESSAGE_CHARACTERS]}


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that the answer asks to wait; 0 where it does not say, or says a date."""
    said = answer.headers.get("Retry-After", "")
    return float(said) if said.isascii() and said.isdigit() else 0.0
