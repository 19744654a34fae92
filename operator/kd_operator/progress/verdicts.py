"""What was found out about tokens, kept for a few minutes under their sha256: the API server is asked once, not at each post."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kd_operator.progress.identity import Refusal, Sender

ACCEPTED_SECONDS = 180.0
"""How long a token outlives its pod or its job here, at most."""
REFUSED_SECONDS = 30.0
MOST = 8192

Verdict = Sender | Refusal


def digest(token: str) -> str:
    """What a token goes by here; the token itself is kept nowhere."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class _Kept:
    verdict: Verdict
    until: float


class Verdicts:
    """The newest verdicts. Posts of one token that come while it is examined wait for that one examination."""

    def __init__(self, clock: Callable[[], float], most: int = MOST):
        self._clock, self._most = clock, most
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._examined: dict[str, asyncio.Task[Verdict]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def examinations(self) -> int:
        """How many tokens are being examined now."""
        return len(self._examined)

    def known(self, key: str) -> Verdict | None:
        """The verdict that still holds."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until <= self._clock():
            del self._kept[key]
            return None
        return kept.verdict

    def examined(self, key: str) -> bool:
        """Whether an examination is going on that one more may wait for."""
        return key in self._examined

    async def examine(self, key: str, ask: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """Ask, and keep the answer. An examination that fails is kept nowhere; it fails for all that wait."""
        task = self._examined.get(key)
        if task is None:
            task = asyncio.ensure_future(self._ask(key, ask))
            self._examined[key] = task
        return await asyncio.shield(task)

    async def _ask(self, key: str, ask: Callable[[], Awaitable[Verdict]]) -> Verdict:
        try:
            verdict = await ask()
        finally:
            del self._examined[key]
        seconds = ACCEPTED_SECONDS if isinstance(verdict, Sender) else REFUSED_SECONDS
        now = self._clock()
        self._kept[key] = _Kept(verdict, now + seconds)
        self._kept.move_to_end(key)
        while len(self._kept) > self._most or next(iter(self._kept.values())).until <= now:
            self._kept.popitem(last=False)
        return verdict
